"""Hooks of functions: at which turns of a session's life they run, and what their failure means there."""

from __future__ import annotations

import asyncio

import pytest

from dovecote.control.sessions import hook_runs
from dovecote.errors import Failed
from dovecote.model.past import HookRun
from dovecote.model.records import Session, Start
from dovecote.model.serving import Hook, Hooks, Sharing
from dovecote.model.states import SessionState
from tests.unit.control_world import START, World, until

pytestmark = pytest.mark.anyio

ALL = Hooks(initialize=Hook(command="begin"), pre_freeze=Hook(command="rest"), pre_stop=Hook(command="leave"))
KEY = "k1"


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
    return await _published_of(world, await world.sessions.create(world.tenant, function="served"))


async def _published_of(world: World, session: Session) -> str:
    app = await world.apps.publish(world.tenant, session.id, name="shop", start=START)
    await world.apps.route(app.name)
    return app.name


async def _shared(world: World, keys: str = "ab") -> list[Session]:
    await world.functions.create(world.tenant, "served", start=START, hooks=ALL, sharing=Sharing(sessions=3))
    found = [(await world.call("served", user="ada", key=key)).session for key in keys]
    return [session for session in found if session is not None]


async def _of_function(world: World) -> dict[str, HookRun]:
    function = await world.functions.get(world.tenant, "served")
    return {run.hook: run for run in world.sessions.hooks.of(function.id)}


async def _told(world: World, session: Session, hook: str) -> HookRun:
    past = (await world.sessions.activity(world.tenant, session.id)).past
    return next(run for run in past.hooks if run.hook == hook)


async def test_how_hooks_of_a_shared_instance_went_is_told_of_each_session_in_it(world: World) -> None:
    first, second = await _shared(world)
    assert _ran(world) == ["begin"]
    world.host.exits["rest"] = 1
    world.clock.advance(11)
    await world.tick()
    for session in (first, second):
        assert (await _told(world, session, "initialize")).is_ok
        assert "exit code 1" in (await _told(world, session, "pre_freeze")).reason
    await world.sessions.park(world.tenant, first.id)
    assert not _last(await world.record(first), "pre_freeze").is_ok
    await world.host.die(next(iter(world.host.instances.values())).claim.owner)
    assert not _last(await world.becomes(second, SessionState.LOST), "pre_freeze").is_ok


async def test_a_session_that_ended_in_a_shared_instance_tells_of_its_hooks(world: World) -> None:
    [session] = await _shared(world, "a")
    world.clock.advance(11)
    await world.tick()
    await world.sessions.delete(world.tenant, session.id)
    assert [run.hook for run in (await world.record(session)).past.hooks] == ["initialize", "pre_freeze"]


async def test_a_session_whose_seat_came_to_nothing_says_which_hook_failed(world: World) -> None:
    world.host.exits["begin"] = 3
    with pytest.raises(Failed, match="initialize failed"):
        await _shared(world)
    [session] = await world.sessions.list(world.tenant)
    assert "exit code 3" in _last(session, "initialize").reason
    assert not (await _told(world, session, "initialize")).is_ok


async def test_a_function_tells_of_hooks_that_no_session_is_left_to_tell_of(world: World) -> None:
    for session in await _shared(world):
        await world.sessions.delete(world.tenant, session.id)
    world.host.exits["leave"] = 4
    world.clock.advance(400)
    await world.tick()
    assert not world.host.instances
    assert "exit code 4" in (await _of_function(world))["pre_stop"].reason


async def test_a_function_tells_of_the_last_failure_though_others_went_well_since(world: World) -> None:
    world.host.exits["begin"] = 3
    with pytest.raises(Failed):
        await _visited(world)
    world.host.exits.clear()
    session = (await world.call("served", user="ada", key=KEY)).session
    assert session is not None
    runs = world.sessions.hooks.of(session.function_id)
    assert [(run.hook, run.is_ok) for run in runs] == [("initialize", False), ("initialize", True)]


async def test_an_app_tells_how_its_hooks_went(world: World) -> None:
    world.host.exits["leave"] = 4
    name = await _published(world)
    function_id = (await world.apps.get(world.tenant, name)).function_id
    await world.apps.unpublish(world.tenant, name)
    assert [(run.hook, run.is_ok) for run in world.sessions.hooks.of(function_id)] == [
        *(("initialize", True), ("pre_stop", False))
    ]


async def test_runs_are_remembered_of_so_many_functions(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hook_runs, "MOST_FUNCTIONS", 1)
    session = await _visited(world)
    name = await _published_of(world, session)
    assert world.sessions.hooks.of((await world.apps.get(world.tenant, name)).function_id)
    assert not world.sessions.hooks.of(session.function_id)
