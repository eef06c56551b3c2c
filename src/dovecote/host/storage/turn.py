"""Whose turn it is to collect garbage: one process at a time, whichever host it is on. By the store's own clock."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

from dovecote.errors import Conflict, StorageFailed
from dovecote.host.storage.bucket import Bucket, Stored
from dovecote.host.storage.condemned import Clock

LONGEST_RUN = 3600.0  # seconds; a run that is not done then goes on with the next one
GIVEN_UP_AFTER = timedelta(hours=2)  # a turn that was never ended is a crash's
_FOLDER = "turns"
_TURN = re.compile(_FOLDER + r"/([0-9]{12})")


@dataclass(frozen=True)
class Turn:
    """`at` is the store's time when it began."""

    number: int
    at: datetime
    ends_at: float  # of the clock of this process

    def name(self) -> str:
        return f"{_FOLDER}/{self.number:012d}"


class Turns:
    """Turns are numbered and each is created once, so of two processes that want the next one, one gets it."""

    def __init__(self, bucket: Bucket, *, clock: Clock) -> None:
        self._bucket = bucket
        self._clock = clock

    def take(self, *, every: timedelta = timedelta(0)) -> Turn | None:
        """None when the last one began less than `every` ago. Raises Conflict (collecting)."""
        began = self._clock()
        found = self._turns()
        now = self._store_time()
        if found:
            number, last, is_done = found[-1]
            if not is_done and now - last.modified_at < GIVEN_UP_AFTER:
                raise _busy()
            if is_done and now - last.modified_at < every:
                return None
        number = found[-1][0] + 1 if found else 1
        turn = Turn(number, now, began + LONGEST_RUN)
        try:
            self._bucket.put_new(turn.name(), b"")
        except Conflict:
            raise _busy() from None
        for old, _, _ in found[:-1]:  # the newest before stays: somebody may be about to look at it
            self._bucket.delete(f"{_FOLDER}/{old:012d}")
            self._bucket.delete(f"{_FOLDER}/{old:012d}-done")
        return turn

    def end(self, turn: Turn) -> None:
        with suppress(Conflict):
            self._bucket.put_new(f"{turn.name()}-done", b"")

    def _turns(self) -> list[tuple[int, Stored, bool]]:
        stored = {each.name: each for each in self._bucket.list(_FOLDER)}
        turns = [(int(match[1]), each) for name, each in stored.items() if (match := _TURN.fullmatch(name))]
        return [(n, each, f"{each.name}-done" in stored) for n, each in sorted(turns, key=lambda turn: turn[0])]

    def _store_time(self) -> datetime:
        name = f"probe/{secrets.token_hex(16)}"
        self._bucket.put_new(name, b"")
        try:
            for each in self._bucket.list("probe"):
                if each.name == name:
                    return each.modified_at
        finally:
            self._bucket.delete(name)
        raise StorageFailed("the store does not list what it was given", code="store_unreachable")


def _busy() -> Conflict:
    return Conflict(
        "another process collects garbage of this store, or was killed while it did",
        code="collecting",
        hint="wait for it; one that was killed is given up after two hours",
    )


Stopped = Callable[[], bool]
