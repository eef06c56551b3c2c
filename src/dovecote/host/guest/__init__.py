"""The program inside each sandbox, and how the host talks to it."""

from dovecote.host.guest.build import ensure_guest
from dovecote.host.guest.channel import Guest
from dovecote.host.guest.files import Entry, FileChange, FileChangeKind, Listing, Stat
from dovecote.host.guest.protocol import (
    Command,
    CommandStatus,
    Dropped,
    Event,
    Exited,
    Finished,
    Hello,
    Output,
    Port,
    PortState,
    Started,
)

__all__ = [
    "Command",
    "CommandStatus",
    "Dropped",
    "Entry",
    "Event",
    "Exited",
    "FileChange",
    "FileChangeKind",
    "Finished",
    "Guest",
    "Hello",
    "Listing",
    "Output",
    "Port",
    "PortState",
    "Started",
    "Stat",
    "ensure_guest",
]
