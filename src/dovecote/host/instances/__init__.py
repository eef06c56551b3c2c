"""Instances: what runs on this host, for whom."""

from dovecote.host.instances.connections import Connection
from dovecote.host.instances.instance import Claim, Death, Leftover, Memory, Observed, Placed
from dovecote.host.instances.instances import Instances
from dovecote.host.instances.looking import SERVER_TAG
from dovecote.host.instances.mounting import mounted_paths
from dovecote.host.instances.preparing import Parts, Preparing
from dovecote.host.instances.saving import Saving
from dovecote.host.instances.warm import WarmPool

__all__ = [
    "SERVER_TAG",
    "Claim",
    "Connection",
    "Death",
    "Instances",
    "Leftover",
    "Memory",
    "Observed",
    "Parts",
    "Placed",
    "Preparing",
    "Saving",
    "WarmPool",
    "mounted_paths",
]
