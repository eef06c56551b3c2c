"""Instances that several callers are in, the seats that sessions hold there, and who goes where. No I/O."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from dovecote.control.fleet import Host
from dovecote.control.sessions.hooks import Inside
from dovecote.control.sessions.idle import Move
from dovecote.control.sessions.lines import Sent
from dovecote.control.sessions.live import name_of
from dovecote.control.sessions.replicas import inside_of
from dovecote.errors import DovecoteError
from dovecote.model.past import Past
from dovecote.model.records import Revision, Session


@dataclass(eq=False)
class SharedInstance:
    """`coming` ends when it takes requests, or never will: then `failed` says why. `places` are requests that are
    on their way there."""

    owner: str
    revision: Revision
    host: Host
    instance_id: str = ""
    address: str = ""  # without its port
    pid: int = 0
    is_ready: bool = False
    is_frozen: bool = False
    is_serving: bool = False  # its server took connections when it was last looked at
    is_leaving: bool = False  # it takes nobody any more
    is_dead: bool = False
    seats: dict[str, Seat | None] = field(default_factory=dict)  # by session; None while it is on its way there
    places: int = 0
    sent: Sent = field(default_factory=Sent, repr=False)
    failed: DovecoteError | None = None
    used: float = field(default_factory=time.monotonic)
    turning: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False)  # held while it freezes, thaws or ends
    coming: asyncio.Task[None] | None = field(default=None, repr=False)
    past: Past = Past()  # its hooks, which are those of all who sit in it

    @property
    def port(self) -> int:
        return self.revision.start.port if self.revision.start else 0

    @property
    def route(self) -> str:
        return f"{self.address}:{self.port}"

    @property
    def is_open(self) -> bool:
        """Whether somebody new may be sent there, now or once it has come."""
        return not (self.is_leaving or self.is_dead)

    @property
    def inside(self) -> Inside:
        """The instance as a hook meets it."""
        return inside_of(self.host, self.instance_id, self.address, self.revision)

    def touch(self) -> None:
        self.used = time.monotonic()


@dataclass(eq=False)
class Seat:
    """What a session holds in a shared instance. `session` is its record as it was last written."""

    session: Session
    instance: SharedInstance
    touched: float = field(default_factory=time.monotonic)
    considered: Session | None = None  # as whose record it was last considered what becomes of it
    consider_at: float = 0.0  # by when that may be another, if it is only used

    @property
    def past(self) -> Past:
        return self.session.past.went_through(self.instance.past)

    def touch(self) -> None:
        self.touched = time.monotonic()
        self.instance.touch()


class Seats:
    """Those that are taken, by session and by its name."""

    def __init__(self) -> None:
        self._by_id: dict[str, Seat] = {}
        self._by_name: dict[tuple[str, str, str], Seat] = {}

    def get(self, session_id: str) -> Seat | None:
        return self._by_id.get(session_id)

    def named(self, name: tuple[str, str, str]) -> Seat | None:
        return self._by_name.get(name)

    def all(self) -> list[Seat]:
        return list(self._by_id.values())

    def take(self, seat: Seat) -> None:
        self._by_id[seat.session.id] = self._by_name[name_of(seat.session)] = seat

    def leave(self, session_id: str) -> Seat | None:
        seat = self._by_id.pop(session_id, None)
        if seat is not None and self.named(name := name_of(seat.session)) is seat:
            del self._by_name[name]
        return seat


def next_turn(
    instance: SharedInstance, *, quiet_for: float, is_current: bool, quiet_after: float, idle_after: float
) -> Move:
    """Nobody's instance ends once idle, an outdated one at once; one that is quiet freezes, its seats as they are."""
    if not instance.is_ready or not instance.is_open or instance.places:
        return Move.STAY
    if not instance.seats and (not is_current or quiet_for >= idle_after):
        return Move.END
    if not instance.is_frozen and quiet_for >= quiet_after:
        return Move.FREEZE
    return Move.STAY


def fullest(taken: Sequence[int], *, capacity: int) -> int | None:
    """The index of the one with the most seats taken that has a free one; None when all are full.

    Filling the fullest first leaves others to run empty, and those end.
    """
    free = [index for index, count in enumerate(taken) if count < capacity]
    return max(free, key=lambda index: (taken[index], -index), default=None)


def emptiest(requests: Sequence[int], *, limit: int) -> int | None:
    """The index of the one with the fewest requests that is not full; 0 is no limit."""
    free = [index for index, count in enumerate(requests) if not limit or count < limit]
    return min(free, key=lambda index: (requests[index], index), default=None)
