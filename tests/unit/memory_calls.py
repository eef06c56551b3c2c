"""Calls of a host in memory, which tests count, hold and refuse."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Literal

Method = Literal[
    "claim",
    "freeze",
    "thaw",
    "save",
    "hibernate",
    "awaken",
    "stop",
    "save_leftover",
    "discard",
    "erase",
    "rewind",
    "verify",
    "observe",
    "list_commands",
    "start",
    "wait_port",
]


class Calls:
    """`calls` are the methods that were called and for whom, in order.

    `refuse` lets a method fail, `hold` keeps its callers inside until `let_go`.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self._refusals: dict[str, tuple[BaseException, int | None]] = {}
        self._gates: dict[str, asyncio.Event] = {}
        self._inside: Counter[str] = Counter()

    def refuse(self, method: Method, error: BaseException, *, times: int | None = None) -> None:
        """`times` None is from now on."""
        self._refusals[method] = error, times

    def mend(self, method: Method) -> None:
        self._refusals.pop(method, None)

    def hold(self, method: Method) -> None:
        self._gates[method] = asyncio.Event()

    def let_go(self, method: Method) -> None:
        self._gates.pop(method).set()

    def held(self, method: Method) -> int:
        return self._inside[method]

    def count(self, method: Method) -> int:
        return sum(1 for name, _ in self.calls if name == method)

    async def enter(self, method: Method, owner: str) -> None:
        """What every call has in common: it is noted, takes a turn of the loop, may be held, and may fail."""
        self.calls.append((method, owner))
        self._inside[method] += 1
        try:
            await asyncio.sleep(0)
            if (gate := self._gates.get(method)) is not None:
                await gate.wait()
        finally:
            self._inside[method] -= 1
        error, times = self._refusals.get(method, (None, None))
        if error is not None:
            if times is not None:
                self._refusals[method] = error, times - 1
                if times <= 1:
                    del self._refusals[method]
            raise error
