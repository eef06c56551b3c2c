"""What most of these tests begin with: the rooms of control over a host in memory, or the API over rooms in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from dovecote.control.sessions import keeping
from tests.unit.control_world import MakeWorld, World, world_on
from tests.unit.fake_rooms import KEY, Rooms
from tests.unit.invocation_world import Calls
from tests.unit.memory_host import Clock, MemoryHost
from tests.unit.serving import served


@pytest.fixture
def on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeWorld:
    """A world over the host that the test chose, for example one that fails."""
    return lambda host: world_on(host, tmp_path, monkeypatch)


@pytest.fixture
async def world(on: MakeWorld) -> AsyncIterator[World]:
    async with on(MemoryHost(Clock())) as world:
        yield world


@pytest.fixture
def lost_sessions_are_tried_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "RETRY_LOST_AFTER", 0.0)


@pytest.fixture
async def calls(world: World) -> AsyncIterator[Calls]:
    """The room of asynchronous calls."""
    calls = Calls(world.store, world.tenant, world.other)
    yield calls
    await calls.dispatching.stop()


@pytest.fixture
def rooms() -> Rooms:
    return Rooms()


@pytest.fixture
async def http(rooms: Rooms) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the API with a key, without a socket."""
    transport, headers = httpx.ASGITransport(rooms.api()), {"authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers) as client:
        yield client


@pytest.fixture
def url(rooms: Rooms) -> Iterator[str]:
    """Where the API is served, for clients that need a socket."""
    with served(rooms.api()) as url:
        yield url
