"""Namespaces, addresses and firewall of the instances of one host."""

from dovecote.host.network.network import Attachment, Network
from dovecote.host.network.prerequisites import Problem, find_problems

__all__ = ["Attachment", "Network", "Problem", "find_problems"]
