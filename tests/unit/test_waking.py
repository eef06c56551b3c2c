"""Waking: who waits for what, and what a death leaves that the next waking finds."""

from __future__ import annotations

import asyncio

import pytest

from dovecote.errors import Conflict, DeadlineExceeded, Failed, NoCapacity, NotFound
from dovecote.model.states import SessionState
from tests.unit.control_world import START, MakeWorld, World, until
from tests.unit.failing_hosts import (
    DiesLater,
    DiesOnStart,
    NeverReady,
    NoMemory,
    SlowStart,
)
from tests.unit.memory_host import Clock

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("lost_sessions_are_tried_at_once")]


# -- waking


async def test_two_hundred_who_wait_for_one_session_make_one_claim(on: MakeWorld) -> None:
    host = SlowStart(Clock())
    async with on(host) as world:
        session = await world.sessions.create(world.tenant, wake=False)
        waiting = [asyncio.ensure_future(world.sessions.wake(world.tenant, session.id)) for _ in range(200)]
        await until(lambda: host.held("claim") == 1)
        host.let_go("claim")
        woken = await asyncio.gather(*waiting)
        assert {each.instance_id for each in woken} == {"ins_1"}
        assert len(host.claims) == 1


async def test_a_client_that_leaves_while_it_wakes_takes_nothing_from_the_others(on: MakeWorld) -> None:
    host = SlowStart(Clock())
    async with on(host) as world:
        session = await world.sessions.create(world.tenant, wake=False)
        leaver, stayer = (asyncio.ensure_future(world.sessions.wake(world.tenant, session.id)) for _ in range(2))
        await until(lambda: host.held("claim") == 1)
        leaver.cancel()
        await asyncio.wait([leaver])
        host.let_go("claim")
        assert (await stayer).state is SessionState.READY
        assert leaver.cancelled()
        assert len(host.claims) == 1


async def test_a_wake_that_everybody_left_comes_to_its_end(on: MakeWorld) -> None:
    host = SlowStart(Clock())
    async with on(host) as world:
        session = await world.sessions.create(world.tenant, wake=False)
        leaver = asyncio.ensure_future(world.sessions.wake(world.tenant, session.id))
        await until(lambda: host.held("claim") == 1)
        leaver.cancel()
        host.let_go("claim")
        await world.becomes(session, SessionState.READY)
        assert (await world.sessions.wake(world.tenant, session.id)).epoch == 1


async def test_each_claim_has_a_higher_epoch_a_refused_one_too(world: World) -> None:
    session = await world.sessions.create(world.tenant)
    await world.sessions.park(world.tenant, session.id)
    world.host.refuse("claim", NoCapacity("full", code="no_memory"), times=1)
    with pytest.raises(NoCapacity):
        await world.sessions.wake(world.tenant, session.id)
    await world.sessions.wake(world.tenant, session.id)
    await world.host.die(session.id)
    await world.sessions.wake(world.tenant, session.id)
    assert [claim.epoch for claim in world.host.claims] == [1, 3, 4]
    assert (await world.record(session)).epoch == 4


async def test_a_session_that_gets_no_memory_stays_what_it_was(on: MakeWorld) -> None:
    host = NoMemory(Clock())
    async with on(host) as world:
        session = await world.sessions.create(world.tenant, wake=False)
        with pytest.raises(NoCapacity, match="memory") as refused:
            await world.sessions.wake(world.tenant, session.id)
        assert refused.value.code == "no_memory"
        record = await world.record(session)
        assert record.state is SessionState.NEW
        assert "memory" in record.reason
        host.mend("claim")
        assert (await world.sessions.wake(world.tenant, session.id)).state is SessionState.READY


async def test_a_session_that_could_not_be_made_leaves_its_key_free(on: MakeWorld) -> None:
    host = NoMemory(Clock())
    async with on(host) as world:
        with pytest.raises(NoCapacity):
            await world.sessions.create(world.tenant, key="u42")
        host.mend("claim")
        assert (await world.sessions.create(world.tenant, key="u42")).state is SessionState.READY


async def test_a_session_that_there_is_no_room_for_is_not_even_recorded(world: World) -> None:
    world.host.total_memory = 0
    with pytest.raises(NoCapacity):
        await world.sessions.create(world.tenant, key="u42")
    assert await world.store.everyone().sessions.count() == 0


async def test_a_key_that_is_taken_is_refused_before_room_is_made(world: World) -> None:
    await world.sessions.create(world.tenant, key="u42", wake=False)
    world.host.total_memory = 0
    with pytest.raises(Conflict) as caught:
        await world.sessions.create(world.tenant, key="u42")
    assert caught.value.code == "exists"


async def test_a_new_session_is_recorded_before_anything_is_claimed_for_it(on: MakeWorld) -> None:
    """As one that starts: what a crash at that moment leaves is found by its record."""
    host = SlowStart(Clock())
    async with on(host) as world:
        creating = asyncio.ensure_future(world.sessions.create(world.tenant, key="u42"))
        await until(lambda: host.held("claim") == 1)
        (record,) = await world.store.everyone().sessions.list()
        assert (record.key, record.state, record.epoch) == ("u42", SessionState.STARTING, 1)
        assert [passage.state for passage in record.past.moves] == [SessionState.STARTING]
        host.let_go("claim")
        assert (await creating).state is SessionState.READY
        with pytest.raises(Conflict) as caught:
            await world.sessions.create(world.tenant, key="u42")
        assert caught.value.code == "exists"
        assert len(host.claims) == 1


@pytest.mark.parametrize("visit", ["wake", "route_box"])
async def test_twenty_visitors_at_once_start_the_server_once(world: World, visit: str) -> None:
    session = await world.sessions.create(world.tenant, wake=False)
    await world.sessions.set_start(world.tenant, session.id, START)

    async def come(failed: str | None = None) -> None:
        if visit == "wake":
            await world.sessions.wake(world.tenant, session.id)
        else:
            address = await world.routing.box(session.slug, START.port, failed)
            assert address == "10.201.0.1:8000"

    await asyncio.gather(*(come() for _ in range(20)))
    assert len(world.host.starts()) == 1

    instance = world.host.of(session.id)
    assert instance is not None
    await world.host.end_server(instance)
    await asyncio.gather(*(come(failed="10.201.0.1:8000") for _ in range(20)))
    assert [command.env["PORT"] for command in world.host.starts()] == ["8000", "8000"]


async def test_a_start_that_fails_breaks_no_file_call(on: MakeWorld) -> None:
    host = DiesOnStart(Clock())
    async with on(host) as world:
        session = await world.sessions.create(world.tenant, wake=False)
        await world.sessions.set_start(world.tenant, session.id, START)
        await world.write(session, b"kept")
        assert await world.read(session) == b"kept"
        with pytest.raises(Failed, match="no such module") as failure:
            await world.routing.box(session.slug, START.port)
        assert failure.value.code == "start_failed"


async def test_a_start_that_the_guest_refuses_breaks_no_file_call(world: World) -> None:
    world.host.refuse("start", NotFound("no /bin/sh", code="command_not_found"))
    session = await world.sessions.create(world.tenant, wake=False)
    await world.sessions.set_start(world.tenant, session.id, START)
    await world.write(session, b"kept")
    assert await world.read(session) == b"kept"


async def test_a_port_that_never_opens_is_told_within_the_time_for_starts(on: MakeWorld) -> None:
    async with on(NeverReady(Clock())) as world:
        world.start_timeout = 0.02
        world.join()
        session = await world.sessions.create(world.tenant, wake=False)
        await world.sessions.set_start(world.tenant, session.id, START)
        with pytest.raises(DeadlineExceeded) as late:
            await world.routing.box(session.slug, START.port)
        assert late.value.code == "start_timeout"
        assert (await world.sessions.get(world.tenant, session.id)).state is SessionState.READY


# -- deaths


async def test_after_a_death_the_next_wake_finds_the_files_and_names_the_last_save(world: World) -> None:
    session = await world.sessions.create(world.tenant)
    await world.write(session, b"saved")
    await world.sessions.save(world.tenant, session.id)
    await world.sessions.save(world.tenant, session.id)
    await world.write(session, b"newer than any save")
    await world.host.die(session.id, "it ran out of memory")
    lost = await world.becomes(session, SessionState.LOST)
    assert lost.reason == "it ran out of memory"
    assert lost.instance_id is None
    assert await world.read(session) == b"newer than any save"
    last = world.host.claims[-1]
    assert (last.generation, last.epoch, last.workspace.tree) == (2, 2, lost.tree)


async def test_without_its_host_files_the_last_save_comes_back(world: World) -> None:
    session = await world.sessions.create(world.tenant)
    await world.write(session, b"saved")
    await world.sessions.save(world.tenant, session.id)
    await world.write(session, b"gone with the disk")
    await world.host.die(session.id)
    await world.becomes(session, SessionState.LOST)
    world.host.left.clear()
    assert await world.read(session) == b"saved"


async def test_a_visitor_whose_instance_died_before_it_was_known_gets_another(on: MakeWorld) -> None:
    host = DiesLater(Clock())
    async with on(host) as world:
        session = await world.sessions.create(world.tenant, wake=False)
        await world.sessions.set_start(world.tenant, session.id, START)
        assert await world.routing.box(session.slug, START.port) == "10.201.0.2:8000"
        assert (await world.record(session)).instance_id == "ins_2"


async def test_a_tick_notes_an_instance_that_died_before_it_was_known(on: MakeWorld) -> None:
    async with on(DiesLater(Clock())) as world:
        session = await world.sessions.create(world.tenant)
        assert session.state is SessionState.READY
        await world.tick()
        await world.becomes(session, SessionState.LOST)
        await world.write(session, b"works again")
        assert await world.read(session) == b"works again"


async def test_instances_that_always_die_are_an_error_not_a_loop(on: MakeWorld) -> None:
    host = DiesLater(Clock(), deaths=1000)
    async with on(host) as world:
        session = await world.sessions.create(world.tenant, wake=False)
        with pytest.raises(Failed) as failure:
            await world.routing.box(session.slug, 8000)
        assert failure.value.code == "instance_dies"
