"""Functions and their immutable revisions: what is run."""

from dovecote.control.functions.bases import BASE, Bases, OnDemand
from dovecote.control.functions.functions import SANDBOX, Functions
from dovecote.control.functions.wishes import Runs, parse_spec

__all__ = ["BASE", "SANDBOX", "Bases", "Functions", "OnDemand", "Runs", "parse_spec"]
