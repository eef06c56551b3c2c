"""Sessions that share instances: who sits where, how many instances there are, and what is left after a death."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovecote.control.sessions import Wishes, keeping
from dovecote.control.sessions.activity import rest_of
from dovecote.control.sessions.placing import Placing
from dovecote.control.sessions.seats import emptiest, fullest
from dovecote.errors import Conflict, Failed, Gone, Invalid, NoCapacity, NotFound, Unsupported
from dovecote.model.records import Function, Session
from dovecote.model.serving import Affinity, Hook, Hooks, Mode, Sharing
from dovecote.model.sizes import NetworkPolicy
from dovecote.model.states import SessionState
from dovecote.model.volumes import Mount
from tests.unit.control_world import START, World, until, world_on
from tests.unit.failing_hosts import DiesOnStart, NoMemory, SlowStart
from tests.unit.memory_host import Clock

pytestmark = pytest.mark.anyio

NONE = Affinity(modes=(Mode.NONE,))


async def shared(world: World, sharing: Sharing, affinity: Affinity = Affinity(), hooks: Hooks = Hooks()) -> Function:
    return await world.functions.create(
        world.tenant, "chat", start=START, sharing=sharing, affinity=affinity, hooks=hooks
    )


async def ask(world: World, key: str | None, user: str = "ann", failed: str | None = None) -> tuple[str, Session]:
    function = await world.functions.get(world.tenant, "chat")
    routed = await world.routing.function(function, user=user, key=key, failed=failed)
    assert routed.session is not None
    return routed.address, routed.session


def owners(world: World) -> list[str]:
    return [instance.claim.owner for instance in world.host.instances.values()]


# -- the decisions


@given(st.lists(st.integers(0, 5), max_size=8), st.integers(2, 5))
def test_the_fullest_that_has_a_free_seat_is_taken(taken: list[int], capacity: int) -> None:
    index = fullest(taken, capacity=capacity)
    free = [count for count in taken if count < capacity]
    assert (None if index is None else taken[index]) == max(free, default=None)


@given(st.lists(st.integers(0, 5), max_size=8), st.integers(0, 5))
def test_the_one_with_the_fewest_requests_is_taken_unless_full(requests: list[int], limit: int) -> None:
    index = emptiest(requests, limit=limit)
    free = [count for count in requests if not limit or count < limit]
    assert (None if index is None else requests[index]) == min(free, default=None)


# -- seats


async def test_a_thousand_first_requests_of_one_session_start_one_instance(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And each only looks for its session: the rest is not done for each of them."""
    await shared(world, Sharing(sessions=20))
    statements = 0
    run = world.store._database.run  # type: ignore[attr-defined]

    async def counted(*args: object, **more: object) -> object:
        nonlocal statements
        statements += 1
        return await run(*args, **more)

    monkeypatch.setattr(world.store._database, "run", counted)  # type: ignore[attr-defined]
    routed = await asyncio.gather(*(ask(world, "one") for _ in range(1000)))
    assert len({address for address, _ in routed}) == 1
    assert len({session.id for _, session in routed}) == 1
    assert len(world.host.claims) == 1
    # `ask` itself reads the function for each, and who comes too late to begin it looks once more.
    assert statements < 4500


async def test_two_hundred_sessions_at_twenty_start_ten_instances(world: World) -> None:
    await shared(world, Sharing(sessions=20))
    routed = await asyncio.gather(*(ask(world, f"k{number}") for number in range(200)))
    assert sorted(Counter(address for address, _ in routed).values()) == [20] * 10
    assert len(world.host.claims) == 10
    assert all(not claim.keeps_files and claim.owner.startswith("fun_") for claim in world.host.claims)


async def test_a_session_stays_where_it_sits_and_its_record_says_where(world: World) -> None:
    await shared(world, Sharing(sessions=2))
    first, session = await ask(world, "a")
    for key in "bcd":
        await ask(world, key)
    again, _ = await ask(world, "a")
    assert again == first
    record = await world.record(session)
    assert record.state is SessionState.READY
    assert record.instance_id is not None
    assert world.host.instances[record.instance_id].address == first.partition(":")[0]
    assert (await world.sessions.instance(world.tenant, session.id)).instance_id == record.instance_id


async def test_a_freed_seat_is_taken_before_another_instance_starts(world: World) -> None:
    await shared(world, Sharing(sessions=2))
    [(_, a), _, (last, _)] = [await ask(world, key) for key in "abc"]
    await world.sessions.delete(world.tenant, a.id)
    await ask(world, "d")
    assert (await ask(world, "e"))[0] == last or len(world.host.instances) == 2
    assert len(world.host.claims) == 2


async def test_at_the_most_instances_there_is_no_more_room_until_somebody_leaves(world: World) -> None:
    await shared(world, Sharing(sessions=2, instances=1))
    [(_, a), _] = [await ask(world, key) for key in "ab"]
    with pytest.raises(NoCapacity) as refused:
        await ask(world, "c")
    assert (refused.value.code, refused.value.retry_after is not None) == ("no_instances", True)
    await world.sessions.delete(world.tenant, a.id)
    await ask(world, "c")
    assert len(world.host.claims) == 1


async def test_keys_of_two_users_are_two_sessions(world: World) -> None:
    await shared(world, Sharing(sessions=5))
    assert (await ask(world, "a", user="ann"))[1].id != (await ask(world, "a", user="bob"))[1].id


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


async def test_a_start_that_fails_is_told_and_holds_no_seat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for host, code in ((DiesOnStart(Clock()), "start_failed"), (NoMemory(Clock()), "no_memory")):
        async with world_on(host, tmp_path, monkeypatch) as world:
            await shared(world, Sharing(sessions=2, instances=1))
            for _ in range(3):
                with pytest.raises((Failed, NoCapacity)) as failed:
                    await ask(world, "a")
                assert failed.value.code == code
            assert not host.instances


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


async def test_pausing_frees_the_seat_and_only_resuming_ends_it_where_that_was_wished(world: World) -> None:
    await shared(world, Sharing(sessions=2))
    session = await world.sessions.create(
        world.tenant, function="chat", key="a", user="ann", wake=False, resumes_on_use=False
    )
    await ask(world, "a")
    assert (await world.sessions.pause(world.tenant, session.id)).state is SessionState.PARKED
    with pytest.raises(Conflict) as paused:
        await ask(world, "a")
    assert paused.value.code == "paused"
    await world.sessions.resume(world.tenant, session.id)
    assert (await ask(world, "a"))[1].id == session.id


async def test_it_has_no_files_and_no_commands_of_its_own(world: World) -> None:
    await shared(world, Sharing(sessions=2))
    _, session = await ask(world, "a")
    with pytest.raises(Unsupported) as refused:
        await world.write(session, b"x")
    assert refused.value.code == "shared_instance"
    assert (await world.sessions.park(world.tenant, session.id)).state is SessionState.PARKED


async def test_it_has_no_network_no_start_no_mounts_and_no_variables_of_its_own(world: World) -> None:
    await shared(world, Sharing(sessions=2))
    _, session = await ask(world, "a")
    where = (world.tenant, session.id)
    mount, closed = Mount("vol_1", "/mnt/v"), NetworkPolicy(internet=False)
    wishes: list[Wishes] = [
        {"function": "chat", "env": {"A": "1"}},
        {"function": "chat", "network": closed},
        {"function": "chat", "mounts": [mount]},
    ]
    for refusing in (
        world.sessions.set_network(*where, closed),
        world.sessions.set_start(*where, START),
        world.sessions.mount(*where, mount),
        *(world.sessions.create(world.tenant, wake=False, **each) for each in wishes),
    ):
        with pytest.raises(Unsupported) as refused:
            await refusing
        assert refused.value.code == "shared_instance"


async def test_a_session_that_is_created_or_woken_has_its_seat_before_its_first_request(world: World) -> None:
    await shared(world, Sharing(sessions=2))
    session = await world.sessions.create(world.tenant, function="chat", key="a", user="ann")
    assert session.state is SessionState.READY
    assert (await ask(world, "a"))[1].id == session.id
    await world.sessions.park(world.tenant, session.id, reason="idle")
    assert (await world.sessions.wake(world.tenant, session.id)).state is SessionState.READY
    assert len(world.host.claims) == 1


async def test_ending_a_session_leaves_the_others_in_its_instance(world: World) -> None:
    await shared(world, Sharing(sessions=2))
    [(address, a), _] = [await ask(world, key) for key in "ab"]
    await world.routing.end(a.id, "its stream has ended")
    assert (await world.record(a)).reason == "its stream has ended"
    assert (await ask(world, "b", failed=address))[0] == address
    assert world.host.connect(address)


async def test_the_initialize_hook_comes_before_the_first_request_and_its_failure_is_told(world: World) -> None:
    hooks = Hooks(initialize=Hook(path="/init"))  # nobody listens at the address of a host in memory
    monkey = Hook(path="/init", timeout=timedelta(seconds=0.05))
    await shared(world, Sharing(sessions=2), hooks=replace(hooks, initialize=monkey))
    with pytest.raises(Failed) as failed:
        await ask(world, "a")
    assert failed.value.code == "hook_failed"
    assert not world.host.instances


# -- requests at once


async def test_a_refused_request_waits_for_its_turn_and_then_goes_to_the_same_instance(world: World) -> None:
    await shared(world, Sharing(sessions=3, requests=2))
    address, _ = await ask(world, "a")
    assert world.host.claims[0].connections == 2
    assert all(world.host.connect(address) for _ in range(2))
    assert not world.host.connect(address)
    order: list[str] = []

    async def wait(key: str) -> None:
        assert (await ask(world, key, failed=address))[0] == address
        order.append(key)

    await ask(world, "b")
    waiting = [asyncio.ensure_future(wait("a"))]
    await until(lambda: world.sessions.lines.waiting("ins_1") == 1)
    waiting.append(asyncio.ensure_future(wait("b")))
    await until(lambda: world.sessions.lines.waiting("ins_1") == 2)
    assert not order
    world.host.disconnect(address)
    await until(lambda: order == ["a"])
    world.host.disconnect(address)
    await asyncio.gather(*waiting)
    assert order == ["a", "b"]


@pytest.mark.parametrize("sessions", [1, 3])
async def test_waiting_for_a_turn_ends_with_the_start_timeout(world: World, sessions: int) -> None:
    world.start_timeout = 0.1
    world.join()
    await shared(world, Sharing(sessions=sessions, requests=1))
    address, _ = await ask(world, "a")
    assert world.host.connect(address)
    with pytest.raises(NoCapacity) as full:
        await ask(world, "a", failed=address)
    assert full.value.code == "instance_full"


@pytest.mark.parametrize("sessions", [1, 3])
async def test_nobody_is_sent_to_an_instance_that_died_while_he_waited(
    world: World, monkeypatch: pytest.MonkeyPatch, sessions: int
) -> None:
    await shared(world, Sharing(sessions=sessions, requests=1))
    address, _ = await ask(world, "a")

    async def gone(*_: object) -> bool:
        return False

    monkeypatch.setattr(world.sessions.lines, "wait", gone)
    with pytest.raises(Failed) as failed:
        await ask(world, "a", failed=address)
    assert failed.value.code == "instance_dies"


async def test_an_instance_of_ones_own_has_the_limit_too_and_a_bound_of_instances(world: World) -> None:
    await shared(world, Sharing(sessions=1, requests=1, instances=2))
    routed = [await ask(world, key) for key in "ab"]
    assert [claim.connections for claim in world.host.claims] == [1, 1]
    with pytest.raises(NoCapacity) as refused:
        await ask(world, "c")
    assert refused.value.code == "no_instances"
    await world.sessions.delete(world.tenant, routed[0][1].id)
    await ask(world, "c")


# -- without sessions


async def anyone(world: World) -> str:
    function = await world.functions.get(world.tenant, "chat")
    routed = await world.routing.function(function, user="ann", key=None)
    assert routed.session is None
    return routed.address


async def test_without_sessions_the_emptiest_instance_answers_and_more_start_when_all_are_full(world: World) -> None:
    await shared(world, Sharing(requests=2, instances=3), NONE)
    routed = await asyncio.gather(*(anyone(world) for _ in range(6)))
    assert sorted(Counter(routed).values()) == [2, 2, 2]
    assert all(world.host.connect(address) for address in routed)
    waiting = asyncio.ensure_future(anyone(world))
    await asyncio.wait([waiting], timeout=0.1)
    assert not waiting.done()
    world.host.disconnect(routed[0])
    assert await waiting == routed[0]


async def test_without_sessions_idle_instances_end(world: World) -> None:
    await shared(world, Sharing(requests=2), replace(NONE, idle_after=timedelta(seconds=30)))
    await anyone(world)
    world.clock.advance(31)
    await world.tick()
    assert not world.host.instances
    await anyone(world)
    with pytest.raises(Invalid) as refused:
        await world.sessions.create(world.tenant, function="chat")
    assert refused.value.code == "no_sessions"


# -- names


async def test_an_id_that_we_give_out_must_be_known(world: World) -> None:
    function = await shared(world, Sharing(sessions=2))
    _, session = await ask(world, None)
    known = await world.routing.function(function, user="ann", key=session.key, is_made_here=True)
    assert known.session is not None
    with pytest.raises(NotFound) as unknown:
        await world.routing.function(function, user="ann", key="never-given-out", is_made_here=True)
    assert unknown.value.code == "no_such_session"
    await world.sessions.delete(world.tenant, session.id)
    with pytest.raises(Gone):
        await world.routing.function(function, user="ann", key=session.key, is_made_here=True)


async def test_a_key_begins_anew_unless_reuse_is_refused(world: World) -> None:
    await shared(world, Sharing(sessions=2))
    _, first = await ask(world, "a")
    await world.sessions.delete(world.tenant, first.id)
    _, second = await ask(world, "a")
    assert second.id != first.id
    await world.rewrite_seat(second, expires_at=second.created_at)  # over, and nobody has looked yet
    assert (await ask(world, "a"))[1].id not in (first.id, second.id)


@pytest.mark.parametrize("key", ["-a", "a.b", "a" * 65])
async def test_strict_ids_are_those_of_function_compute(world: World, key: str) -> None:
    await shared(world, Sharing(sessions=2), Affinity(strict_ids=True))
    await ask(world, "a_-9")
    with pytest.raises(Invalid) as refused:
        await ask(world, key)
    assert refused.value.code == "malformed_id"


async def test_a_seat_is_considered_when_something_may_be_due_and_not_at_each_look(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0

    def counted(*args: object) -> object:
        nonlocal looks
        looks += 1
        return rest_of(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(keeping, "rest_of", counted)
    await shared(world, Sharing(sessions=2), Affinity(idle_after=timedelta(seconds=12)))
    _, session = await ask(world, "a")
    for _ in range(23):
        await world.tick()
        world.clock.advance(0.5)
    assert looks == 3  # at 0, 5 and 10 seconds
    assert (await world.record(session)).state is SessionState.READY
    world.clock.advance(0.5)
    await world.tick()
    assert (await world.record(session)).state is SessionState.PARKED


async def test_a_change_of_a_session_is_considered_at_the_next_look(world: World) -> None:
    await shared(world, Sharing(sessions=2))
    _, session = await ask(world, "a")
    await world.tick()
    await world.sessions.set_timeout(world.tenant, session.id, timedelta(microseconds=1))
    await world.tick()
    assert (await world.record(session)).state is SessionState.ENDED
