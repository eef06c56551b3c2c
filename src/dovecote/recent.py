"""A short memory of what was read from the store, so that a busy path does not read it again."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """Values by key, each for `ttl` seconds after it was read, at most `most` of them."""

    def __init__(self, *, ttl: float, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._ttl = ttl
        self._most = most
        self._clock = clock
        self._known: OrderedDict[K, tuple[V, float]] = OrderedDict()  # what was read first is first
        self._changes = 0

    async def get(self, key: K, read: Callable[[], Awaitable[V | None]]) -> V | None:
        """As it is remembered, else as `read` finds it; None is not remembered."""
        known = self._known.get(key)
        if known is not None and self._clock() < known[1]:
            return known[0]
        changes = self._changes
        value = await read()
        if value is not None and changes == self._changes:  # else it may have been read before it was changed
            self._put(key, value)
        return value

    def _put(self, key: K, value: V) -> None:
        self._known.pop(key, None)
        self._known[key] = value, self._clock() + self._ttl
        while len(self._known) > self._most:
            self._known.popitem(last=False)

    def forget(self) -> None:
        """Everything. Called after something was changed here, so that it is read as it is now."""
        self._changes += 1
        self._known.clear()
