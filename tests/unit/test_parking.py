"""Parking and freezing: what is saved first, and what is left when something breaks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from dovecote.errors import Conflict, Failed, StorageFailed
from dovecote.model.states import SessionState
from tests.unit.control_world import AT_ONCE, START, MakeWorld, World, until
from tests.unit.failing_hosts import (
    Corrupt,
    FailsSave,
    FreezeFails,
)
from tests.unit.memory_host import Clock, MemoryHost

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("lost_sessions_are_tried_at_once")]


# -- parking


async def test_parking_saves_then_records_then_discards(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    session = await world.sessions.create(world.tenant)
    await world.write(session, b"mine")
    seen: list[tuple[str, SessionState, int]] = []
    for name in ("save_leftover", "discard"):
        act: Callable[[str], Awaitable[object]] = getattr(world.host, name)

        async def noted(owner: str, name: str = name, act: Callable[[str], Awaitable[object]] = act) -> object:
            record = await world.record(session)
            seen.append((name, record.state, record.saved_generation))
            return await act(owner)

        monkeypatch.setattr(world.host, name, noted)
    parked = await world.sessions.park(world.tenant, session.id)
    assert seen == [("save_leftover", SessionState.PARKING, 0), ("discard", SessionState.PARKED, 1)]
    assert (parked.state, parked.saved_generation, parked.instance_id) == (SessionState.PARKED, 1, None)
    assert not world.host.instances
    assert not world.host.left
    assert await world.read(session) == b"mine"


async def test_a_save_that_fails_loses_nothing_and_is_tried_again(on: MakeWorld) -> None:
    host = FailsSave(Clock())
    async with on(host) as world:
        session = await world.sessions.create(world.tenant, idle_after=AT_ONCE)
        await world.write(session, b"mine")
        with pytest.raises(StorageFailed):
            await world.sessions.park(world.tenant, session.id)
        lost = await world.record(session)
        assert lost.state is SessionState.LOST
        assert "no space left" in lost.reason
        assert host.left[session.id].files == {"/home/user/note": b"mine"}

        await world.tick()
        assert (await world.record(session)).state is SessionState.LOST
        host.mend_store()
        await world.tick()
        parked = await world.record(session)
        assert parked.state is SessionState.PARKED
        assert host.trees[parked.tree or ""] == {"/home/user/note": b"mine"}


async def test_a_session_whose_save_failed_can_be_woken_meanwhile(on: MakeWorld) -> None:
    async with on(FailsSave(Clock())) as world:
        session = await world.sessions.create(world.tenant)
        await world.write(session, b"mine")
        with pytest.raises(StorageFailed):
            await world.sessions.park(world.tenant, session.id)
        assert await world.read(session) == b"mine"


async def test_a_checkpoint_that_fails_leaves_the_session_as_it_is(on: MakeWorld) -> None:
    async with on(FailsSave(Clock())) as world:
        session = await world.sessions.create(world.tenant)
        with pytest.raises(StorageFailed):
            await world.sessions.save(world.tenant, session.id)
        assert (await world.sessions.get(world.tenant, session.id)).state is SessionState.READY
        await world.write(session, b"goes on")


async def test_files_that_fail_verification_damage_the_session_and_name_the_last_good_save(on: MakeWorld) -> None:
    async with on(Corrupt(Clock())) as world:
        session = await world.sessions.create(world.tenant)
        await world.write(session, b"mine")
        await world.sessions.save(world.tenant, session.id)
        await world.sessions.park(world.tenant, session.id)
        with pytest.raises(StorageFailed):
            await world.sessions.wake(world.tenant, session.id)
        damaged = await world.record(session)
        assert damaged.state is SessionState.DAMAGED
        assert "last good save is generation 1" in damaged.reason
        with pytest.raises(StorageFailed):
            await world.sessions.wake(world.tenant, session.id)
        assert (await world.record(session)).state is SessionState.DAMAGED


async def test_a_session_used_since_is_not_parked(world: World) -> None:
    session = await world.sessions.create(world.tenant)
    decided = world.clock.now
    world.clock.advance(60)
    await world.write(session, b"here I am")
    still = await world.sessions.park(world.tenant, session.id, unless_used_since=decided)
    assert still.state is SessionState.READY
    assert (await world.record(session)).state is SessionState.READY
    async with world.sessions.use(world.tenant, session.id):
        world.clock.advance(60)
        still = await world.sessions.park(world.tenant, session.id, unless_used_since=world.clock.now)
        assert still.state is SessionState.READY


async def test_a_session_with_a_detached_command_is_not_parked_until_it_ends(world: World) -> None:
    session = await world.sessions.create(world.tenant)
    started = await world.sandboxes.start(world.tenant, session.id, argv=["make"])
    world.clock.advance(60)
    still = await world.sessions.park(world.tenant, session.id, unless_used_since=world.clock.now)
    assert still.state is SessionState.READY
    assert not await world.sessions.rest(session.id, unless_used_since=world.clock.now)
    await world.sandboxes.signal(world.tenant, session.id, started.number, 9)
    parked = await world.sessions.park(world.tenant, session.id, unless_used_since=world.clock.now + 1)
    assert parked.state is SessionState.PARKED


async def test_the_recorded_server_alone_keeps_nothing_awake(world: World) -> None:
    session = await world.sessions.create(world.tenant, wake=False)
    await world.sessions.set_start(world.tenant, session.id, START)
    await world.sessions.wake(world.tenant, session.id)
    parked = await world.sessions.park(world.tenant, session.id, unless_used_since=world.clock.now + 1)
    assert parked.state is SessionState.PARKED


async def test_an_instance_that_could_not_be_stopped_is_not_taken_for_parked(on: MakeWorld) -> None:
    async with on(MemoryHost(Clock())) as world:
        session = await world.sessions.create(world.tenant, idle_after=AT_ONCE)
        await world.write(session, b"mine")
        world.host.refuse("stop", Failed("busy", code="internal"), times=1)
        with pytest.raises(Failed):
            await world.sessions.park(world.tenant, session.id)
        await world.tick()
        await world.restart()
        assert await world.read(session) == b"mine"


# -- freezing


async def test_freezing_is_refused_while_a_call_is_inside(world: World) -> None:
    session = await world.sessions.create(world.tenant)
    async with world.sessions.use(world.tenant, session.id):
        with pytest.raises(Conflict) as refused:
            await world.sessions.freeze(world.tenant, session.id)
    assert refused.value.code == "busy"
    assert world.host.count("freeze") == 0


async def test_freezing_is_refused_while_a_request_is_on_its_way(world: World) -> None:
    session = await world.sessions.create(world.tenant)
    world.host.flows["ins_1"] = 1
    with pytest.raises(Conflict):
        await world.sessions.freeze(world.tenant, session.id)
    assert (await world.sessions.get(world.tenant, session.id)).state is SessionState.READY


async def test_a_call_that_comes_while_it_freezes_thaws_it(world: World) -> None:
    session = await world.sessions.create(world.tenant)
    world.host.hold("freeze")
    freezing = asyncio.ensure_future(world.sessions.freeze(world.tenant, session.id))
    await until(lambda: world.host.held("freeze") == 1)
    world.host.hold("list_commands")
    listing = asyncio.ensure_future(world.sandboxes.commands(world.tenant, session.id))
    await until(lambda: world.host.held("list_commands") == 1)
    world.host.let_go("freeze")
    with pytest.raises(Conflict):
        await freezing
    world.host.let_go("list_commands")
    assert await listing == []
    assert world.host.count("thaw") == 1
    assert (await world.sessions.get(world.tenant, session.id)).state is SessionState.READY


async def test_a_frozen_session_is_recorded_and_thaws_for_the_next_call(world: World) -> None:
    session = await world.sessions.create(world.tenant)
    assert (await world.sessions.freeze(world.tenant, session.id)).state is SessionState.FROZEN
    assert (await world.record(session)).state is SessionState.FROZEN
    await asyncio.gather(*(world.write(session, b"awake", f"/f{n}") for n in range(20)))
    assert world.host.count("thaw") == 1
    assert len(world.host.claims) == 1


async def test_a_freezer_that_fails_changes_nothing(on: MakeWorld) -> None:
    async with on(FreezeFails(Clock())) as world:
        session = await world.sessions.create(world.tenant)
        with pytest.raises(Failed):
            await world.sessions.freeze(world.tenant, session.id)
        assert (await world.sessions.get(world.tenant, session.id)).state is SessionState.READY
        await world.write(session, b"goes on")
