"""The rooms of control over a host in memory, as most tests of them want it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dovecote.control.sessions import keeping
from tests.unit.control_world import MakeWorld, World, world_on
from tests.unit.invocation_world import Calls
from tests.unit.memory_host import Clock, MemoryHost


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
