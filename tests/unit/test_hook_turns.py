"""Hooks of functions: at which turns of a session's life they run, and what their failure means there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dovecote.errors import Failed
from dovecote.model.past import HookRun
from dovecote.model.records import Session, Start
from dovecote.model.serving import Hook, Hooks
from dovecote.model.states import SessionState
from tests.unit.control_world import START, World, until, world_on
from tests.unit.memory_host import Clock, MemoryHost

pytestmark = pytest.mark.anyio

ALL = Hooks(initialize=Hook(command="begin"), pre_freeze=Hook(command="rest"), pre_stop=Hook(command="leave"))
KEY = "k1"


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    async with world_on(MemoryHost(Clock()), tmp_path, monkeypatch) as world:
        yield world


async def _visited(world: World, *, hooks: Hooks = ALL, start: Start | None = START) -> Session:
    await world.functions.create(world.tenant, "served", start=start, hooks=hooks)
    routed = await world.call("served", user="ada", key=KEY)
    assert routed.session is not None
    return await world.sessions.get(world.tenant, routed.session.id)


def _ran(world: World) -> list[str]:
    return [word for word, _ in world.host.ran]


def _last(session: Session, hook: str) -> HookRun:
    return next(run for run in session.past.hooks if run.hook == hook)


async def test_it_is_initialized_before_the_first_request_and_once(world: World) -> None:
    session = await _visited(world)
    assert _ran(world) == ["begin"]
    for _ in range(3):
        await world.call("served", user="ada", key=KEY)
    assert _ran(world) == ["begin"]
    assert _last(session, "initialize").is_ok


async def test_a_hundred_first_requests_initialize_once(world: World) -> None:
    await world.functions.create(world.tenant, "served", start=START, hooks=ALL)
    await asyncio.gather(*(world.call("served", user="ada", key=KEY) for _ in range(100)))
    assert _ran(world) == ["begin"]


async def test_thawing_and_a_restart_of_ours_initialize_nothing(world: World) -> None:
    session = await _visited(world)
    await world.sessions.freeze(world.tenant, session.id)
    await world.restart()
    await world.call("served", user="ada", key=KEY)
    assert _ran(world) == ["begin", "rest"]


async def test_another_instance_is_initialized_again(world: World) -> None:
    session = await _visited(world)
    await world.sessions.park(world.tenant, session.id)
    await world.call("served", user="ada", key=KEY)
    assert _ran(world) == ["begin", "leave", "begin"]


async def test_processes_that_go_on_from_memory_are_not_initialized_again(world: World) -> None:
    await world.functions.create(world.tenant, "served", start=START, hooks=ALL, level="runsc")
    session = (await world.call("served", user="ada", key=KEY)).session
    assert session is not None
    await world.sessions.pause(world.tenant, session.id, hibernate=True)
    await world.call("served", user="ada", key=KEY)
    await world.restart()
    await world.call("served", user="ada", key=KEY)
    assert _ran(world) == ["begin", "rest"]


async def test_a_start_whose_initialize_fails_is_refused_and_the_next_request_tries_again(world: World) -> None:
    world.host.exits["begin"] = 3
    with pytest.raises(Failed, match=r"initialize failed: exit code 3") as caught:
        await _visited(world)
    assert caught.value.code == "hook_failed"
    world.host.exits.clear()
    routed = await world.call("served", user="ada", key=KEY)
    assert routed.session is not None
    assert _ran(world) == ["begin", "begin"]


async def test_files_are_there_without_initialize(world: World) -> None:
    world.host.exits["begin"] = 3
    with pytest.raises(Failed):
        await _visited(world)
    [session] = await world.sessions.list(world.tenant)
    await world.write(session, b"text")
    assert await world.read(session) == b"text"


async def test_without_a_server_waking_initializes(world: World) -> None:
    await world.functions.create(world.tenant, "served", hooks=ALL)
    session = await world.sessions.create(world.tenant, function="served")
    world.host.exits["begin"] = 1
    with pytest.raises(Failed) as caught:
        await world.sessions.wake(world.tenant, session.id)
    assert caught.value.code == "hook_failed"


async def test_a_pre_freeze_that_fails_is_recorded_and_freezing_goes_on(world: World) -> None:
    session = await _visited(world)
    world.host.exits["rest"] = 1
    frozen = await world.sessions.freeze(world.tenant, session.id)
    assert frozen.state is SessionState.FROZEN
    run = _last(await world.record(session), "pre_freeze")
    assert not run.is_ok
    assert "exit code 1" in run.reason


async def test_a_pre_stop_that_fails_is_recorded_and_parking_goes_on(world: World) -> None:
    session = await _visited(world)
    await world.write(session, b"kept")
    world.host.exits["leave"] = 1
    parked = await world.sessions.park(world.tenant, session.id)
    assert parked.state is SessionState.PARKED
    assert "exit code 1" in _last(await world.record(session), "pre_stop").reason
    assert await world.read(session) == b"kept"


async def test_a_frozen_one_is_thawed_for_its_pre_stop(world: World) -> None:
    session = await _visited(world)
    await world.sessions.freeze(world.tenant, session.id)
    async with asyncio.timeout(5):
        await world.sessions.park(world.tenant, session.id)
    assert _ran(world) == ["begin", "rest", "leave"]


async def test_deleting_calls_pre_stop(world: World) -> None:
    session = await _visited(world)
    await world.sessions.delete(world.tenant, session.id)
    assert _ran(world) == ["begin", "leave"]
    assert _last(await world.record(session), "pre_stop").is_ok


async def test_an_instance_that_never_served_has_nothing_to_be_told(world: World) -> None:
    await world.functions.create(world.tenant, "served", start=START, hooks=ALL)
    session = await world.sessions.create(world.tenant, function="served")
    await world.sessions.park(world.tenant, session.id)
    assert _ran(world) == []


async def test_a_call_that_comes_during_pre_freeze_keeps_it_awake(world: World) -> None:
    session = await _visited(world)
    world.host.hold("list_commands")
    resting = asyncio.ensure_future(world.sessions.rest(session.id, unless_used_since=world.clock.now))
    await asyncio.sleep(0.01)
    async with world.sessions.use(world.tenant, session.id):
        world.host.let_go("list_commands")
        assert not await resting


async def test_moves_are_remembered_with_their_reasons_and_bounded(world: World) -> None:
    session = await _visited(world, hooks=Hooks())
    await world.sessions.park(world.tenant, session.id)
    assert [move.state for move in (await world.record(session)).past.moves] == [
        *("starting", "ready", "parking", "parked")
    ]
    for _ in range(5):
        await world.sessions.wake(world.tenant, session.id)
        await world.sessions.park(world.tenant, session.id)
    moves = (await world.record(session)).past.moves
    assert len(moves) == 10
    assert moves[-1].reason == "asked to"


async def test_instances_of_apps_are_initialized_and_told_of_their_end(world: World) -> None:
    revised = await _published(world)
    assert "begin" in _ran(world)
    await world.apps.unpublish(world.tenant, revised)
    await until(lambda: _ran(world)[-1:] == ["leave"])


async def test_an_app_whose_initialize_fails_is_not_served(world: World) -> None:
    world.host.exits["begin"] = 3
    with pytest.raises(Failed, match="initialize failed"):
        await _published(world)


async def _published(world: World) -> str:
    await world.functions.create(world.tenant, "served", start=START, hooks=ALL)
    session = await world.sessions.create(world.tenant, function="served")
    app = await world.apps.publish(world.tenant, session.id, name="shop", start=START)
    await world.apps.route(app.name)
    return app.name
