"""The program inside each sandbox, and how the host talks to it."""

from dovecote.host.guest.build import ensure_guest
from dovecote.host.guest.channel import Guest
from dovecote.host.guest.protocol import (
    Command,
    CommandStatus,
    Dropped,
    Entry,
    Event,
    Exited,
    Finished,
    Hello,
    Output,
    Port,
    PortState,
    Started,
    Stat,
)

__all__ = [
    "Command",
    "CommandStatus",
    "Dropped",
    "Entry",
    "Event",
    "Exited",
    "Finished",
    "Guest",
    "Hello",
    "Output",
    "Port",
    "PortState",
    "Started",
    "Stat",
    "ensure_guest",
]
