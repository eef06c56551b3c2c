"""The hosts that we have, and the contract that each of them keeps."""

from dovecote.control.fleet.contract import Host
from dovecote.control.fleet.fleet import Fleet
from dovecote.host.guest import Command, Exited, Guest, Output
from dovecote.host.instances import SERVER_TAG, Claim, Connection, Death, Leftover, Memory, Observed, Placed
from dovecote.host.storage.images import Images, Made

__all__ = [
    "SERVER_TAG",
    "Claim",
    "Command",
    "Connection",
    "Death",
    "Exited",
    "Fleet",
    "Guest",
    "Host",
    "Images",
    "Leftover",
    "Made",
    "Memory",
    "Observed",
    "Output",
    "Placed",
]
