"""Which cached objects somebody relies on who is not done: those must not be evicted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count

_MANY = 500_000  # digests in memory, beyond which those that no use needs are forgotten


class Uses:
    """Whoever looks objects up, and then works with them, does so in a use; an eviction spares what uses touched.

    It spares all that was touched since the oldest use that had not ended when it began. What was touched before that
    is known from what those uses left behind when they ended: a record of the tree, or a hold on it.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()  # around touching and looking for a file, and around sparing and deleting one
        self._moments = count()
        self._active: dict[int, int] = {}  # a use, and since when it counts
        self._touched: dict[bytes, int] = {}
        self._most = _MANY

    @contextmanager
    def use(self) -> Iterator[None]:
        """Objects that are touched inside stay until its end. Uses may be nested, and go on in other threads."""
        number = self._begin()
        try:
            yield
        finally:
            with self.lock:
                del self._active[number]

    @contextmanager
    def evicting(self) -> Iterator[Callable[[bytes], bool]]:
        """Answers what says, under the lock, whether an object must be spared."""
        number = self._begin(is_eviction=True)
        since = self._active[number]
        try:
            yield lambda digest: self._touched.get(digest, -1) >= since
        finally:
            with self.lock:
                del self._active[number]

    def touch(self, digest: bytes) -> None:
        """Called under the lock, before its file is looked for."""
        if len(self._touched) >= self._most:
            oldest = min([next(self._moments), *self._active.values()])
            self._touched = {each: at for each, at in self._touched.items() if at >= oldest}
            self._most = max(_MANY, 2 * len(self._touched))
        self._touched[digest] = next(self._moments)

    def _begin(self, *, is_eviction: bool = False) -> int:
        with self.lock:
            number = next(self._moments)
            self._active[number] = min([number, *self._active.values()]) if is_eviction else number
            return number
