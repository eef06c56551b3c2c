"""A connection of a driver that blocks, used in a thread. What is given up there is interrupted."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import sqlalchemy as sa

from dovecote.store.outcome import Outcome

T = TypeVar("T")

_INTERRUPT_EVERY = 0.02  # seconds
_INTERRUPTS = 300  # what waits for another process's lock hears of none, and has less time than they take


class InThread:
    """Opened in the thread where it is used: so it is closed after all that was begun.

    Whoever gives up what is done here first waits for its end. A statement that went on would have the thread, and
    those whose turn it is then would wait for it with their own time running.
    """

    def __init__(self, thread: ThreadPoolExecutor, engine: sa.Engine) -> None:
        self._thread = thread
        self._engine = engine
        self._connection: sa.Connection | None = None
        self._lock = threading.Lock()
        self._busy: Any = None  # the driver's connection while something is done on it

    async def once(self, statement: sa.Executable, values: Mapping[str, Any]) -> Outcome:
        """One statement and nothing else, handed over to the thread and back in one go."""

        def act() -> Outcome:
            try:
                return self._on_it(lambda connection: Outcome.of(connection.execute(statement, values)))
            finally:
                self._close()

        return await self._do(act)

    async def execute(self, statement: sa.Executable, values: Mapping[str, Any]) -> Outcome:
        return await self.run(lambda connection: Outcome.of(connection.execute(statement, values)))

    async def command(self, text: str) -> None:
        await self.run(lambda connection: connection.exec_driver_sql(text).close())

    async def run(self, act: Callable[[sa.Connection], T]) -> T:
        return await self._do(partial(self._on_it, act))

    async def invalidate(self) -> None:
        await asyncio.shield(self._begin(self._invalidate))

    async def close(self) -> None:
        await asyncio.shield(self._begin(self._close))

    async def _do(self, act: Callable[[], T]) -> T:
        doing = self._begin(act)
        try:
            await asyncio.wait({doing})
        except asyncio.CancelledError:
            doing.add_done_callback(lambda done: done.exception())  # nobody waits for it any more
            await self._give_up(doing)
            raise
        return doing.result()

    async def _give_up(self, doing: asyncio.Future[Any]) -> None:
        for _ in range(_INTERRUPTS):
            with self._lock:
                if self._busy is not None:
                    self._busy.interrupt()
            # Between two statements, and before the first, it does nothing.
            if (await asyncio.wait({doing}, timeout=_INTERRUPT_EVERY))[0]:
                return

    def _begin(self, act: Callable[[], T]) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._thread, act)

    # ---- in the thread

    def _on_it(self, act: Callable[[sa.Connection], T]) -> T:
        if self._connection is None:
            self._connection = self._engine.connect()
        self._is_busy(self._connection.connection.driver_connection)
        try:
            return act(self._connection)
        finally:
            self._is_busy(None)  # what comes back to the pool is another's next

    def _is_busy(self, connection: Any) -> None:
        with self._lock:
            self._busy = connection

    def _invalidate(self) -> None:
        if self._connection is not None:
            self._connection.invalidate()

    def _close(self) -> None:
        if self._connection is None:
            return
        open_one = None if self._connection.invalidated else self._connection.connection.driver_connection
        if open_one is not None and open_one.in_transaction:
            self._connection.invalidate()  # the next one's writes would never be committed
        self._connection.close()
