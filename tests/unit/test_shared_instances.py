"""Instances that sessions share: how they begin, rest, end and die, and what is left of the seats."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from dovecote.control.sessions.placing import Placing
from dovecote.errors import Failed, Gone, NoCapacity
from dovecote.model.serving import Affinity, Hook, Hooks, Sharing
from dovecote.model.states import SessionState
from tests.unit.control_world import World, until, world_on
from tests.unit.failing_hosts import DiesOnStart, NoMemory, SlowStart
from tests.unit.memory_host import Clock
from tests.unit.shared_function import ask, owners, shared

pytestmark = pytest.mark.anyio


async def test_a_start_that_fails_is_told_and_holds_no_seat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for host, code in ((DiesOnStart(Clock()), "start_failed"), (NoMemory(Clock()), "no_memory")):
        async with world_on(host, tmp_path, monkeypatch) as world:
            await shared(world, Sharing(sessions=2, instances=1))
            for _ in range(3):
                with pytest.raises((Failed, NoCapacity)) as failed:
                    await ask(world, "a")
                assert failed.value.code == code
            assert not host.instances


async def test_a_client_that_leaves_while_it_starts_takes_nothing_from_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = SlowStart(Clock())
    async with world_on(host, tmp_path, monkeypatch) as world:
        await shared(world, Sharing(sessions=2, instances=1))
        leaver, stayer = (asyncio.ensure_future(ask(world, key)) for key in "ab")
        await until(lambda: host.held("claim") == 1)
        leaver.cancel()
        host.let_go("claim")
        await stayer
        assert len(host.claims) == 1


async def test_the_initialize_hook_comes_before_the_first_request_and_its_failure_is_told(world: World) -> None:
    hooks = Hooks(initialize=Hook(path="/init"))  # nobody listens at the address of a host in memory
    monkey = Hook(path="/init", timeout=timedelta(seconds=0.05))
    await shared(world, Sharing(sessions=2), hooks=replace(hooks, initialize=monkey))
    with pytest.raises(Failed) as failed:
        await ask(world, "a")
    assert failed.value.code == "hook_failed"
    assert not world.host.instances


# -- rest and end


async def test_idle_sessions_free_their_seats_and_the_empty_instance_ends(world: World) -> None:
    await shared(world, Sharing(sessions=2), Affinity(idle_after=timedelta(seconds=100)))
    _, session = await ask(world, "a")
    world.clock.advance(60)
    await world.routing.touch(session.id)  # a stream of it is open
    world.clock.advance(60)
    await world.tick()
    assert (await world.record(session)).state is SessionState.READY
    world.clock.advance(60)
    await world.tick()
    parked = await world.record(session)
    assert (parked.state, parked.instance_id) == (SessionState.PARKED, None)
    world.clock.advance(101)
    await world.tick()
    assert not world.host.instances
    _, again = await ask(world, "a")
    assert again.id == session.id
    assert (await world.record(session)).state is SessionState.READY


async def test_a_quiet_instance_freezes_with_its_seats_and_thaws_for_any_of_them(world: World) -> None:
    await shared(world, Sharing(sessions=2))
    address, session = await ask(world, "a")
    world.clock.advance(11)
    await world.tick()
    assert world.host.count("freeze") == 1
    assert (await world.record(session)).state is SessionState.READY
    assert (await ask(world, "b"))[0] == address
    assert world.host.count("thaw") == 1


async def test_an_instance_with_a_request_inside_neither_freezes_nor_ends(world: World) -> None:
    await shared(world, Sharing(sessions=2), Affinity(idle_after=timedelta(seconds=20)))
    address, _ = await ask(world, "a")
    assert world.host.connect(address)
    for _ in range(3):
        world.clock.advance(60)
        await world.tick()
    assert len(world.host.instances) == 1
    assert (await ask(world, "b"))[0] == address
    world.host.disconnect(address)
    for _ in range(2):
        world.clock.advance(60)
        await world.tick()
    assert not world.host.instances


async def test_the_time_to_live_of_a_function_ends_its_sessions(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await shared(world, Sharing(sessions=2), Affinity(ttl=timedelta(seconds=60), refuses_reuse=True))
    _, session = await ask(world, "a")
    assert session.expires_at == session.created_at + timedelta(seconds=60)
    await world.rewrite_seat(session, expires_at=session.created_at)
    await world.tick()
    assert (await world.record(session)).state is SessionState.ENDED
    with pytest.raises(Gone) as gone:
        await ask(world, "a")
    assert gone.value.code == "session_expired"


async def test_ending_a_session_leaves_the_others_in_its_instance(world: World) -> None:
    await shared(world, Sharing(sessions=2))
    [(address, a), _] = [await ask(world, key) for key in "ab"]
    await world.routing.end(a.id, "its stream has ended")
    assert (await world.record(a)).reason == "its stream has ended"
    assert (await ask(world, "b", failed=address))[0] == address
    assert world.host.connect(address)


async def test_an_older_revision_takes_nobody_new_and_ends_with_its_last_seat(world: World) -> None:
    function = await shared(world, Sharing(sessions=5))
    old, a = await ask(world, "a")
    revision = await world.functions.revision(world.tenant, function.revision_id)
    await world.functions.revise(world.tenant, function.id, like=replace(revision, env={"V": "2"}))
    new, _ = await ask(world, "b")
    assert new != old
    assert (await ask(world, "a"))[0] == old
    await world.sessions.delete(world.tenant, a.id)
    await world.tick()
    assert [i.address for i in world.host.instances.values()] == [new.partition(":")[0]]


async def test_nothing_is_kept_of_a_function_whose_instances_are_gone(world: World) -> None:
    function = await shared(world, Sharing(sessions=2, instances=1))
    _, session = await ask(world, "a")
    pools = world.sessions.placing._pools
    assert len(pools._pools) == 1
    assert pools.of(function) is pools.of(function)
    await world.sessions.delete(session.tenant_id, session.id)
    world.clock.advance(1000)
    await world.tick()
    assert world.host.instances == {}
    assert (dict(pools._pools), pools._held) == ({}, set())
    await ask(world, "a")  # and it begins anew, within its bound
    await ask(world, "b")
    assert len(world.host.instances) == 1


# -- deaths and restarts


async def test_death_loses_all_that_sat_there_and_each_is_seated_anew(world: World) -> None:
    await shared(world, Sharing(sessions=3))
    sat = [await ask(world, key) for key in "abc"]
    [owner] = owners(world)
    await world.host.die(owner, "out of memory")
    for _, session in sat:
        lost = await world.becomes(session, SessionState.LOST)
        assert (lost.reason, lost.instance_id) == ("out of memory", None)
    again = [await ask(world, key) for key in "abc"]
    assert len({address for address, _ in again}) == 1
    assert again[0][0] != sat[0][0]
    assert [session.id for _, session in again] == [session.id for _, session in sat]


async def test_a_death_that_nobody_told_of_is_found_by_the_request_that_was_refused(world: World) -> None:
    await shared(world, Sharing(sessions=3))
    before, _ = await ask(world, "a")
    await world.host.die(owners(world)[0], is_told=False)
    assert (await ask(world, "a", failed=before))[0] != before


async def test_a_server_that_ended_is_started_again(world: World) -> None:
    await shared(world, Sharing(sessions=3))
    address, _ = await ask(world, "a")
    [instance] = world.host.instances.values()
    await world.host.end_server(instance)
    assert (await ask(world, "b", failed=address))[0] == address
    assert world.host.connect(address)


async def test_a_restart_of_control_keeps_seats(world: World) -> None:
    await shared(world, Sharing(sessions=2, instances=2))
    sat = {key: (await ask(world, key))[0] for key in "abc"}
    world.clock.advance(11)
    await world.tick()
    await world.restart()
    assert {key: (await ask(world, key))[0] for key in "abc"} == sat
    assert (await ask(world, "d"))[0] == sat["c"]
    with pytest.raises(NoCapacity):
        await ask(world, "e")
    assert len(world.host.claims) == 2


async def test_after_a_restart_what_died_meanwhile_is_lost_and_strays_end(world: World) -> None:
    function = await shared(world, Sharing(sessions=2))
    _, a = await ask(world, "a")
    await world.host.die(owners(world)[0], is_told=False)
    await world.restart()
    assert (await world.record(a)).state is SessionState.LOST
    await ask(world, "a")
    await world.functions.remove(world.tenant, function.id)
    await world.restart()
    assert not world.host.instances


async def test_an_instance_that_nobody_could_take_over_ends_at_the_next_look(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shared(world, Sharing(sessions=2))
    before, _ = await ask(world, "a")

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("not now")

    monkeypatch.setattr(Placing, "take_over", fail)
    await world.restart()
    [left] = world.host.instances
    after, _ = await ask(world, "a")
    await world.tick()
    assert [each.address for each in world.host.instances.values()] == [after.partition(":")[0]]
    assert left not in world.host.instances
    assert before != after
