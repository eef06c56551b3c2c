"""What a save may refer to: names that are in the store and that no collection of garbage has condemned."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from enum import Enum

from dovecote.errors import NotFound, StorageFailed
from dovecote.host.storage.bucket import Bucket

FOLDER = "condemned"
REMEMBERED = 3600.0  # seconds that a process may rely on what it has seen
LONGEST_SAVE = 6 * 3600.0  # seconds from the first look at the store to the name that makes a save count
_MOST = 200_000  # names in memory
_SALT = b"DVS1"
_SALT_BYTES = 16
Clock = Callable[[], float]


class State(Enum):
    ABSENT = "absent"
    THERE = "there"
    CONDEMNED = "condemned"


def condemned_name(name: str) -> str:
    return f"{FOLDER}/{name}"


def boottime() -> float:
    """Seconds, those of a suspended machine included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Standing:
    """Looks names up before a save refers to them. Safe from many threads; lives as long as the process."""

    def __init__(self, bucket: Bucket, *, clock: Clock = boottime) -> None:
        self._bucket = bucket
        self._clock = clock
        self._seen: dict[str, float] = {}
        self._lock = threading.Lock()

    def of(self, name: str) -> State:
        """One that is condemned counts as lost for ever: whoever needs its content writes it under another name."""
        with self._lock:
            seen = self._seen.get(name)
        asked_at = self._clock()
        if seen is not None and asked_at - seen < REMEMBERED:
            return State.THERE
        # In this order: what was deleted between the two questions is condemned still, see docs/decisions.
        is_there = _exists(self._bucket, name)
        if self.is_condemned(name):
            return State.CONDEMNED
        if not is_there:
            return State.ABSENT
        self.note(name, asked_at)
        return State.THERE

    def is_condemned(self, name: str) -> bool:
        return _exists(self._bucket, condemned_name(name))

    def note(self, name: str, at: float | None = None) -> None:
        """It was written, or seen, at `at` of the clock."""
        with self._lock:
            if len(self._seen) > _MOST:
                self._seen.clear()
            self._seen[name] = self._clock() if at is None else at

    def begin(self) -> SaveTime:
        return SaveTime(self._clock)


class SaveTime:
    """How long one save has taken: a collection of garbage counts on no save taking longer than LONGEST_SAVE."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._began = clock()

    def check(self) -> None:
        """Called right before something is written that refers to something else. Raises StorageFailed."""
        if self._clock() - self._began > LONGEST_SAVE:
            raise StorageFailed(
                f"this save took more than {LONGEST_SAVE / 3600:.0f} hours and does not count",
                code="save_too_slow",
                hint="save again: what was written already is not written a second time",
            )


def salted(raw: bytes) -> bytes:
    """The same manifest under another name."""
    return _SALT + os.urandom(_SALT_BYTES) + raw


def unsalted(raw: bytes) -> bytes:
    return raw[len(_SALT) + _SALT_BYTES :] if raw.startswith(_SALT) else raw


def _exists(bucket: Bucket, name: str) -> bool:
    try:
        bucket.size(name)
    except NotFound:
        return False
    return True
