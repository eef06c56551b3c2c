"""A short memory of what was read from the store, so that a busy path does not read it again."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Hashable
from functools import partial
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """Values by key, each for `ttl` seconds after it was read, at most `most` of them. One reading for all who wait."""

    def __init__(self, *, ttl: float, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._ttl = ttl
        self._most = most
        self._clock = clock
        self._known: OrderedDict[K, tuple[V, float]] = OrderedDict()  # what was read first is first
        self._reading: dict[K, asyncio.Future[V | None]] = {}

    async def get(self, key: K, read: Callable[[], Coroutine[Any, Any, V | None]]) -> V | None:
        """As it is remembered, else as `read` finds it; None is not remembered."""
        known = self._known.get(key)
        if known is not None and self._clock() < known[1]:
            return known[0]
        reading = self._reading.get(key)
        if reading is None:
            reading = self._reading[key] = asyncio.ensure_future(read())
            reading.add_done_callback(partial(self._was_read, key))
        return await asyncio.shield(reading)

    def _was_read(self, key: K, reading: asyncio.Future[V | None]) -> None:
        value = None if reading.cancelled() or reading.exception() else reading.result()
        if self._reading.get(key) is reading:  # else it may have been read before it was changed
            del self._reading[key]
            if value is not None:
                self._put(key, value)

    def _put(self, key: K, value: V) -> None:
        self._known.pop(key, None)
        self._known[key] = value, self._clock() + self._ttl
        while len(self._known) > self._most:
            self._known.popitem(last=False)

    def forget(self) -> None:
        """Everything. Called after something was changed here, so that it is read as it is now."""
        self._reading.clear()
        self._known.clear()
