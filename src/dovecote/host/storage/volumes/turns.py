"""Changes of limits in a volume, one after another."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from weakref import WeakValueDictionary

from dovecote.errors import Conflict

WITHIN = 60.0  # seconds; less than anybody waits for a change, so that none begins later than that


class Turns:
    """Whoever asks, and though nobody waits any more for what an earlier one still does."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._volumes: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()

    @contextlib.contextmanager
    def take(self, volume: str) -> Iterator[None]:
        """Raises Conflict (path_in_use)."""
        with self._guard:
            lock = self._volumes.setdefault(volume, threading.Lock())
        if not lock.acquire(timeout=WITHIN):
            raise Conflict(
                f"a limit in volume {volume} is being changed", code="path_in_use", hint="try again in a moment"
            )
        try:
            yield
        finally:
            lock.release()
