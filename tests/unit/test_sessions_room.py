"""Sessions over a host in memory and a real store: who waits for what, and what is left when something breaks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from pathlib import Path

import pytest

from dovecote.control.fleet import Command
from dovecote.control.sessions import Routed, keeping
from dovecote.errors import Conflict, DeadlineExceeded, DovecoteError, Failed, Gone, NoCapacity, NotFound, StorageFailed
from dovecote.model.records import Session, Start
from dovecote.model.sizes import NetworkPolicy
from dovecote.model.states import SessionState
from tests.unit.control_world import AT_ONCE, START, World, until, world_on
from tests.unit.memory_host import (
    Clock,
    Corrupt,
    DiesLater,
    DiesOnStart,
    FailsSave,
    FreezeFails,
    Left,
    MemoryHost,
    NeverReady,
    NoMemory,
    SlowStart,
)

pytestmark = pytest.mark.anyio

MakeWorld = Callable[[MemoryHost], AbstractAsyncContextManager[World]]


@pytest.fixture
def on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeWorld:
    monkeypatch.setattr(keeping, "RETRY_LOST_AFTER", 0.0)
    return lambda host: world_on(host, tmp_path, monkeypatch)


@pytest.fixture
async def world(on: MakeWorld) -> AsyncIterator[World]:
    async with on(MemoryHost(Clock())) as world:
        yield world


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


@pytest.mark.parametrize("visit", ["wake", "route_box"])
async def test_twenty_visitors_at_once_start_the_server_once(world: World, visit: str) -> None:
    session = await world.sessions.create(world.tenant, wake=False)
    await world.sessions.set_start(world.tenant, session.id, START)

    async def come() -> None:
        if visit == "wake":
            await world.sessions.wake(world.tenant, session.id)
        else:
            address = await world.routing.box(session.slug, START.port)
            assert address == "10.201.0.1:8000"

    await asyncio.gather(*(come() for _ in range(20)))
    assert len(world.host.starts()) == 1

    instance = world.host.of(session.id)
    assert instance is not None
    await world.host.end_server(instance)
    await asyncio.gather(*(come() for _ in range(20)))
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


# -- ending


async def test_deleting_may_be_repeated_and_frees_instance_files_and_key(world: World) -> None:
    session = await world.sessions.create(world.tenant, key="u42")
    with pytest.raises(Conflict):
        await world.sessions.create(world.tenant, key="u42")
    await world.sessions.delete(world.tenant, session.id)
    await world.sessions.delete(world.tenant, session.id)
    assert not world.host.instances
    assert not world.host.left
    ended = await world.record(session)
    assert (ended.state, ended.instance_id) == (SessionState.ENDED, None)
    with pytest.raises(Gone):
        await world.sessions.wake(world.tenant, session.id)
    assert (await world.sessions.create(world.tenant, key="u42")).id != session.id


async def test_deleting_a_session_deletes_its_orphans(world: World) -> None:
    session = await world.sessions.create(world.tenant)
    other = await world.sessions.create(world.tenant)
    for each in (session, other):
        world.host.orphans[each.id] = [Left("disk", {"a": b"of another life"}, 1, 1)]
    await world.sessions.park(world.tenant, session.id)
    assert session.id in world.host.orphans
    await world.sessions.delete(world.tenant, session.id)
    assert list(world.host.orphans) == [other.id]


async def test_deleting_frees_what_a_dead_instance_left(world: World) -> None:
    session = await world.sessions.create(world.tenant)
    await world.host.die(session.id)
    await world.becomes(session, SessionState.LOST)
    await world.sessions.delete(world.tenant, session.id)
    assert not world.host.left


async def test_deleting_again_frees_what_the_first_time_could_not(on: MakeWorld) -> None:
    async with on(MemoryHost(Clock())) as world:
        session = await world.sessions.create(world.tenant)
        world.host.refuse("stop", Failed("busy", code="internal"), times=1)
        with pytest.raises(Failed):
            await world.sessions.delete(world.tenant, session.id)
        await world.sessions.delete(world.tenant, session.id)
        assert not world.host.instances


async def _parked(world: World) -> Session:
    session = await world.sessions.create(world.tenant, idle_after=AT_ONCE)
    return await world.sessions.park(world.tenant, session.id)


async def _lost(world: World) -> Session:
    session = await world.sessions.create(world.tenant, idle_after=AT_ONCE)
    await world.host.die(session.id)
    return await world.becomes(session, SessionState.LOST)


async def _fresh(world: World) -> Session:
    return await world.sessions.create(world.tenant, wake=False)


async def _ready(world: World) -> Session:
    return await world.sessions.create(world.tenant)


@pytest.mark.parametrize("make", [_fresh, _parked, _ready])
async def test_a_session_whose_time_is_over_ends(world: World, make: Callable[[World], Awaitable[Session]]) -> None:
    session = await make(world)
    await world.sessions.update(world.tenant, session.id, ttl=AT_ONCE)
    if make is not _ready:
        with pytest.raises(Gone) as over:
            await world.sessions.wake(world.tenant, session.id)
        assert over.value.code == "session_expired"
    await world.tick()
    await world.tick()
    assert (await world.record(session)).state is SessionState.ENDED
    assert not world.host.instances
    assert not world.host.left


async def test_a_lost_session_whose_time_is_over_ends(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    session = await _lost(world)
    await world.sessions.update(world.tenant, session.id, ttl=AT_ONCE)
    looked = asyncio.Event()
    park = world.sessions.park

    async def park_late(tenant_id: str, session_id: str, *, reason: str, unless_used_since: float | None) -> Session:
        await looked.wait()  # others are parked before it
        return await park(tenant_id, session_id, reason=reason, unless_used_since=unless_used_since)

    monkeypatch.setattr(world.sessions, "park", park_late)
    for _ in range(3):
        looked.clear()
        await world.keeping.tick()
        looked.set()
        await world.keeping.stop()
    assert (await world.record(session)).state is SessionState.ENDED
    assert not world.host.left


# -- tenants and functions

CROSSINGS: dict[str, Callable[[World, str, Session], Awaitable[object]]] = {
    "get": lambda w, t, s: w.sessions.get(t, s.id),
    "update": lambda w, t, s: w.sessions.update(t, s.id, idle_after=timedelta(hours=1)),
    "set_start": lambda w, t, s: w.sessions.set_start(t, s.id, START),
    "set_network": lambda w, t, s: w.sessions.set_network(t, s.id, NetworkPolicy(internet=False)),
    "delete": lambda w, t, s: w.sessions.delete(t, s.id),
    "wake": lambda w, t, s: w.sessions.wake(t, s.id),
    "freeze": lambda w, t, s: w.sessions.freeze(t, s.id),
    "park": lambda w, t, s: w.sessions.park(t, s.id),
    "save": lambda w, t, s: w.sessions.save(t, s.id),
    "instance": lambda w, t, s: w.sessions.instance(t, s.id),
    "read_file": lambda w, t, s: anext(aiter(w.sandboxes.read_file(t, s.id, "/home/user/note"))),
    "run": lambda w, t, s: w.sandboxes.run(t, s.id, argv=["id"]),
    "publish": lambda w, t, s: w.apps.publish(t, s.id, start=START),
    "revision": lambda w, t, s: w.functions.revision(t, s.revision_id),
    "route_function": lambda w, t, s: w.call("web", tenant=t, user="u", key=s.key),
    "create": lambda w, t, s: w.sessions.create(t, function="web"),
    "list": lambda w, t, s: w.sessions.list(t, function="web"),
}


@pytest.mark.parametrize("state", ["ready", "frozen", "parked"])
@pytest.mark.parametrize("call", CROSSINGS)
async def test_another_tenants_session_is_not_there(world: World, call: str, state: str) -> None:
    await world.functions.create(world.tenant, "web", start=START)
    session = await world.sessions.create(world.tenant, function="web", key="u42")
    await world.write(session, b"private")
    if state == "frozen":
        await world.sessions.freeze(world.tenant, session.id)
    elif state == "parked":
        await world.sessions.park(world.tenant, session.id)
    before, calls = await world.sessions.get(world.tenant, session.id), len(world.host.calls)
    with pytest.raises(NotFound):
        await CROSSINGS[call](world, world.other, session)
    assert await world.sessions.get(world.tenant, session.id) == before
    assert len(world.host.calls) == calls


async def test_lists_and_removals_stay_in_their_tenant(world: World) -> None:
    function = await world.functions.create(world.tenant, "web", start=START)
    session = await world.sessions.create(world.tenant, function="web", user="ann")
    assert await world.sessions.list(world.other) == []
    assert await world.sessions.list(world.other, user="ann") == []
    assert await world.functions.list(world.other) == []
    await world.functions.remove(world.other, function.id)
    assert [each.id for each in await world.functions.list(world.tenant)] == [function.id]
    assert [each.id for each in await world.sessions.list(world.tenant)] == [session.id]


async def test_fifty_requests_with_one_unknown_key_make_one_session(world: World) -> None:
    await world.functions.create(world.tenant, "web", start=START)
    routes = await asyncio.gather(*(world.call("web", user="ann", key="c7") for _ in range(50)))
    assert len({_id(routed) for routed in routes}) == 1
    assert {routed.address for routed in routes} == {"10.201.0.1:8000"}
    assert len(await world.sessions.list(world.tenant)) == 1
    assert len(world.host.claims) == 1
    assert len(world.host.starts()) == 1


async def test_one_key_is_another_session_for_each_user_and_function(world: World) -> None:
    for name in ("one", "two"):
        await world.functions.create(world.tenant, name, start=START)
    routes = [await world.call(name, user=user, key="c7") for name in ("one", "two") for user in ("ann", "bob")]
    assert len({_id(routed) for routed in routes}) == 4


async def test_a_keyless_call_of_a_function_without_a_start_makes_no_session(world: World) -> None:
    await world.functions.create(world.tenant, "files")
    with pytest.raises(DovecoteError) as refused:
        await world.call("files", user="ann", key=None)
    assert refused.value.code == "port_closed"
    assert await world.sessions.list(world.tenant) == []
    assert world.host.claims == []


async def test_commands_see_the_variables_of_template_and_session(world: World) -> None:
    session = await world.sessions.create(world.tenant, env={"TOKEN": "t"})
    await world.sandboxes.start(world.tenant, session.id, argv=["env"], env={"MINE": "1"})
    instance = world.host.of(session.id)
    assert instance is not None
    command: Command = instance.commands[0].command
    assert (command.user, command.cwd) == ("user", "/home/user")
    assert command.env == {"LANG": "C.UTF-8", "TOKEN": "t", "MINE": "1"}


@pytest.mark.parametrize(("given", "seen"), [("app", "/home/user/app"), ("/srv", "/srv"), (None, "/home/user")])
async def test_a_relative_directory_starts_in_the_home(world: World, given: str | None, seen: str) -> None:
    session = await world.sessions.create(world.tenant)
    await world.sandboxes.start(world.tenant, session.id, argv=["ls"], cwd=given)
    await world.sessions.set_start(world.tenant, session.id, Start("serve", 80, given or ""))
    await world.sessions.wake(world.tenant, session.id)
    instance = world.host.of(session.id)
    assert instance is not None
    assert [each.command.cwd for each in instance.commands] == [seen, seen]


def _id(routed: Routed) -> str:
    assert routed.session is not None
    return routed.session.id
