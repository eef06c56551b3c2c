"""Calls that come while one is under way are served by one more, together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Together(Generic[K, V]):
    """`act` gets every key asked for before it starts, and answers for each. One `act` runs at a time.

    For work whose price hardly depends on how many keys there are: the kernel walks its whole table of connections
    for one address as for a hundred, and waits for every processor once however many links it removes.
    """

    def __init__(self, act: Callable[[frozenset[K]], Awaitable[Mapping[K, V]]]) -> None:
        self._act = act
        self._waiting: dict[K, asyncio.Future[V]] = {}
        self._task: asyncio.Task[None] | None = None

    async def call(self, key: K) -> V:
        """Raises what `act` raised. A caller that is cancelled takes nothing from the others."""
        if key not in self._waiting:
            self._waiting[key] = asyncio.get_running_loop().create_future()
        answer = self._waiting[key]
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        return await asyncio.shield(answer)

    async def _run(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, {}
                await self._serve(batch)
        finally:
            self._task = None
            for answer in self._waiting.values():  # only when this task itself is cancelled
                answer.cancel()
            self._waiting = {}

    async def _serve(self, batch: Mapping[K, asyncio.Future[V]]) -> None:
        try:
            answers = await self._act(frozenset(batch))
        except BaseException as error:
            for answer in batch.values():
                if isinstance(error, Exception):
                    answer.set_exception(error)
                    answer.exception()  # seen, should every caller be gone
                else:
                    answer.cancel()
            if not isinstance(error, Exception):
                raise
        else:
            for key, answer in batch.items():
                answer.set_result(answers[key])
