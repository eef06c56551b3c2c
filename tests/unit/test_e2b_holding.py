"""Events are taken from a command also while a client takes none, and never too many of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from dovecote.api.e2b.holding import held
from dovecote.errors import Failed

pytestmark = pytest.mark.anyio


class Counted:
    """Counts what was taken of it, and how far that was ahead of what its reader has `seen`."""

    def __init__(self, number: int, error: Exception | None = None) -> None:
        self.number, self.error = number, error
        self.given = self.seen = self.ahead = 0
        self.is_closed = False

    async def events(self) -> AsyncGenerator[int, None]:
        try:
            for n in range(self.number):
                self.given = n + 1
                self.ahead = max(self.ahead, self.given - self.seen)
                yield n
            if self.error is not None:
                raise self.error
        finally:
            self.is_closed = True

    async def read(self, events: AsyncGenerator[int, None]) -> list[int]:
        got = []
        try:
            async for event in events:
                self.seen += 1
                got.append(event)
        except Failed:
            got.append(-1)
        return got


async def test_all_events_arrive_in_their_order() -> None:
    counted = Counted(500)
    assert await counted.read(held(counted.events())) == list(range(500))


async def test_an_error_comes_after_what_was_ahead_of_it() -> None:
    counted = Counted(3, Failed("died"))
    assert await counted.read(held(counted.events())) == [0, 1, 2, -1]


async def test_while_nobody_takes_a_bounded_number_is_taken() -> None:
    counted = Counted(1000)
    events = held(counted.events(), every=0.001, most=5)
    assert await anext(events) == 0
    counted.seen = 1
    async with asyncio.timeout(10):
        while counted.given < 6:  # noqa: ASYNC110 - the command has no event for it
            await asyncio.sleep(0.001)
    assert await counted.read(events) == list(range(1, 1000))
    assert counted.ahead <= 6


async def test_what_is_not_due_yet_is_left_to_the_command() -> None:
    counted = Counted(1000)
    events = held(counted.events(), every=60)
    await anext(events)
    for _ in range(100):
        await asyncio.sleep(0)
    assert counted.given <= 3
    await events.aclose()
    assert counted.is_closed
