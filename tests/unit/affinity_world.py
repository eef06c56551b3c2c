"""Control, gateway and host as the model of affinity drives them: each can be killed, and time is given."""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import pytest

from dovecote.api import errors as api_errors
from dovecote.control.fleet import Claim
from dovecote.gateway.directory import Directory
from dovecote.gateway.question import Headers
from dovecote.gateway.wake import Wake
from tests.unit.control_world import World, world_on
from tests.unit.memory_gateway import ROUTE_TTL, SECRET, MemoryGateway
from tests.unit.memory_host import Clock, MemoryHost
from tests.unit.memory_instance import MemoryInstance
from tests.unit.memory_servers import Reset, Servers

PORT = 8000
WORKERS = 2
ADDRESS_RESTS = 3 * ROUTE_TTL  # seconds, as the network of a host has it


class Severed(Exception):
    """What a control that was killed meets wherever it still reaches out."""


class Life:
    """Of one control: after so many calls to its store and its host it is killed, before one or after it."""

    def __init__(self) -> None:
        self.left: int | None = None
        self.is_over = False
        self.happened = asyncio.Event()

    def end(self) -> None:
        self.is_over = True
        self.happened.set()

    def step(self) -> bool:
        """Whether this call is the last one: it takes place, and its answer is not heard any more."""
        if self.is_over:
            raise Severed
        if self.left is None:
            return False
        self.left -= 1
        if self.left <= 0:
            self.end()
        return self.is_over


class Reached:
    """What control reaches of something outside, as long as it lives."""

    def __init__(self, target: Any, life: Life) -> None:
        self._target, self._life = target, life

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        if inspect.iscoroutinefunction(found):
            return self._called(found)
        if inspect.isasyncgenfunction(found):
            return self._followed(found)
        if name in ("tenant", "everyone", "guest"):
            return lambda *arguments: Reached(found(*arguments), self._life)
        return Reached(found, self._life) if hasattr(found, "swap") else found

    def _called(self, found: Any) -> Any:
        async def call(*arguments: Any, **named: Any) -> Any:
            is_last = self._life.step()
            answer = await found(*arguments, **named)
            if is_last or self._life.is_over:
                raise Severed
            return answer

        return call

    def _followed(self, found: Any) -> Any:
        async def follow(*arguments: Any, **named: Any) -> AsyncIterator[Any]:
            self._life.step()
            async for each in found(*arguments, **named):
                if self._life.is_over:
                    raise Severed
                yield each

        return follow


class RestingAddresses(MemoryHost):
    """A host that gives an address again, once it has rested."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self._freed: dict[str, float] = {}

    def _made(self, claim: Claim, files: dict[str, bytes], generation: int) -> MemoryInstance:
        instance = super()._made(claim, files, generation)
        rested = [each for each, at in self._freed.items() if self.clock.now - at >= ADDRESS_RESTS]
        if rested:
            instance.address = rested[0]
            del self._freed[rested[0]]
        return instance

    async def _bury(self, instance: MemoryInstance) -> None:
        self._freed[instance.address] = self.clock.now
        await super()._bury(instance)


class AffinityWorld:
    """One machine. `control` is the present life of the server on it; None while it is away."""

    def __init__(self, world: World, host: RestingAddresses) -> None:
        self.world, self.host, self.clock = world, host, host.clock
        self.servers = Servers(host)
        self.gateway = MemoryGateway(self.servers, host.clock, workers=WORKERS)
        self.wake: Wake | None = None
        self.life = Life()

    def join(self) -> None:
        """A control begins over what is stored and what runs."""
        world, self.life = self.world, Life()
        store, host = world.store, world.host
        world.store, world.host = Reached(store, self.life), Reached(host, self.life)  # type: ignore[assignment]
        world.join()
        world.store, world.host = store, host
        host.on_death = world._died
        directory = Directory(world.tenancy, world.routing, world.functions, world.apps)
        self.wake = Wake(
            Path("/run/python"),
            domain="localhost",
            secret=SECRET,
            start_timeout=5.0,
            resolve=directory.resolve,
            render=api_errors.render,
        )
        self.gateway.ask, self.gateway.told = self._ask, self._told

    def now(self) -> datetime:
        return _Moment.now(UTC)

    async def adopt(self) -> None:
        """As `main` does before the first request."""
        await self.world.keeping.adopt()
        await self.world.apps.adopt()

    async def _ask(self, method: str, path: str, headers: Headers) -> bytes:
        """An answer, unless control is killed over it."""
        assert self.wake is not None
        life = self.life
        asking = asyncio.ensure_future(self.wake.answer(method, path, headers))
        killed = asyncio.ensure_future(life.happened.wait())
        try:
            await asyncio.wait({asking, killed}, return_when=asyncio.FIRST_COMPLETED)
            if life.is_over:
                raise Reset
            return asking.result()
        finally:
            asking.cancel()
            killed.cancel()

    async def _told(self, session_id: str, reason: str | None) -> None:
        routing = self.world.routing
        await (routing.touch(session_id) if reason is None else routing.end(session_id, reason))

    async def kill(self) -> None:
        """As SIGKILL does: nothing that it was about to do reaches anything any more."""
        self.life.end()
        self.gateway.ask = self.gateway.told = None
        self.host.on_death = lambda _: None
        while tasks := [task for task in asyncio.all_tasks() if _is_controls(task)]:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _is_controls(task: asyncio.Task[Any]) -> bool:
    coroutine = task.get_coro()
    frame = getattr(coroutine, "cr_frame", None)
    return frame is not None and "/src/dovecote/" in frame.f_code.co_filename


class _Moment(datetime):
    """Takes the place of `datetime` in the rooms of control: its `now` is that of the clock."""

    clock: Clock
    began: float

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
        return datetime(2026, 3, 1, tzinfo=UTC) + timedelta(seconds=cls.clock.monotonic() - cls.began)


@asynccontextmanager
async def affinity_world(directory: Path, patch: pytest.MonkeyPatch) -> AsyncIterator[AffinityWorld]:
    clock = Clock()
    _Moment.clock, _Moment.began = clock, clock.monotonic()
    for name, module in list(sys.modules.items()):
        if name.startswith(("dovecote.control", "dovecote.gateway.directory")) and hasattr(module, "datetime"):
            patch.setattr(module, "datetime", _Moment)
    host = RestingAddresses(clock)
    async with world_on(host, directory, patch) as world:
        world.start_timeout = 0.2
        there = AffinityWorld(world, host)
        await world.leave()
        there.join()
        yield there
