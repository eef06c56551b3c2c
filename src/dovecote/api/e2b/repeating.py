"""Requests that clients repeat because they missed the answer: the second one gets what the first one got."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from dovecote.errors import Invalid

KEEP = 3600.0  # seconds
MOST = 10_000
LONGEST_KEY = 256


@dataclass(frozen=True)
class _Kept:
    body: bytes
    at: float
    answer: asyncio.Future[str]


class Repeating:
    """Answers by tenant and key. Kept in this process, which is enough: a client repeats within seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kept: OrderedDict[tuple[str, str], _Kept] = OrderedDict()

    async def once(self, tenant_id: str, key: str | None, body: bytes, act: Callable[[], Awaitable[str]]) -> str:
        """What `act` answers, or answered to the same request before. A failure is not kept.

        Raises Invalid (key_reused) for a key that came with another body.
        """
        if key is None:
            return await act()
        if not 0 < len(key) <= LONGEST_KEY:
            raise Invalid(f"an Idempotency-Key has 1 to {LONGEST_KEY} characters")
        self._forget()
        place = (tenant_id, key)
        kept = self._kept.get(place)
        if kept is None:
            task = asyncio.ensure_future(act())  # of its own: it goes on when the first to ask leaves
            kept = self._kept[place] = _Kept(body, self._clock(), task)
            task.add_done_callback(lambda done: self._look(place, done))
        elif kept.body != body:
            raise Invalid("this Idempotency-Key came with another request before", code="key_reused")
        return await asyncio.shield(kept.answer)

    def _look(self, place: tuple[str, str], done: asyncio.Future[str]) -> None:
        if done.cancelled() or done.exception() is not None:
            self._kept.pop(place, None)

    def _forget(self) -> None:
        while self._kept:
            oldest = next(iter(self._kept))
            if len(self._kept) < MOST and self._kept[oldest].at + KEEP > self._clock():
                return
            self._kept.pop(oldest)
