"""Keeps a command's reader alive while its client takes nothing, as one does that waits for something else first."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator
from typing import TypeVar

T = TypeVar("T")

EVERY = 10.0  # seconds; a guest gives up a reader that takes nothing for 30
MOST = 128  # events, of 64 KiB each where there is much: with the time between them, 20 minutes


async def held(events: AsyncGenerator[T, None], *, every: float = EVERY, most: int = MOST) -> AsyncGenerator[T, None]:
    """The same events. While nobody takes them one more is taken after each `every` seconds, up to `most`."""
    kept: deque[T] = deque()
    arrived, taken = asyncio.Event(), asyncio.Event()
    errors: list[Exception] = []
    is_over = False

    async def take() -> None:
        nonlocal is_over
        try:
            async with contextlib.aclosing(events):
                async for event in events:
                    kept.append(event)
                    arrived.set()
                    taken.clear()
                    if len(kept) > 1:
                        with contextlib.suppress(TimeoutError):
                            await asyncio.wait_for(taken.wait(), every if len(kept) < most else None)
        except Exception as error:
            errors.append(error)
        finally:
            is_over = True
            arrived.set()

    taking = asyncio.create_task(take())
    try:
        while kept or not is_over:
            if kept:
                event = kept.popleft()
                taken.set()
                yield event
            else:
                arrived.clear()
                await arrived.wait()
        if errors:
            raise errors[0]
    finally:
        taking.cancel()
        await asyncio.gather(taking, return_exceptions=True)
