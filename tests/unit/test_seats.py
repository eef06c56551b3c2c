"""Sessions that share instances: who sits where, and how many instances there are."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovecote.control.sessions import Wishes, keeping
from dovecote.control.sessions.activity import rest_of
from dovecote.control.sessions.seats import fullest
from dovecote.errors import Conflict, Gone, Invalid, NoCapacity, NotFound, Unsupported
from dovecote.model.serving import Affinity, Sharing
from dovecote.model.sizes import NetworkPolicy
from dovecote.model.states import SessionState
from dovecote.model.volumes import Mount
from tests.unit.control_world import START, World
from tests.unit.shared_function import ask, shared

pytestmark = pytest.mark.anyio


@given(st.lists(st.integers(0, 5), max_size=8), st.integers(2, 5))
def test_the_fullest_that_has_a_free_seat_is_taken(taken: list[int], capacity: int) -> None:
    index = fullest(taken, capacity=capacity)
    free = [count for count in taken if count < capacity]
    assert (None if index is None else taken[index]) == max(free, default=None)


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
    [(first, a), _, (last, _)] = [await ask(world, key) for key in "abc"]
    await world.sessions.delete(world.tenant, a.id)
    assert {(await ask(world, key))[0] for key in "de"} == {first, last}
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


async def test_a_session_that_is_created_or_woken_has_its_seat_before_its_first_request(world: World) -> None:
    await shared(world, Sharing(sessions=2))
    session = await world.sessions.create(world.tenant, function="chat", key="a", user="ann")
    assert session.state is SessionState.READY
    assert (await ask(world, "a"))[1].id == session.id
    await world.sessions.park(world.tenant, session.id, reason="idle")
    assert (await world.sessions.wake(world.tenant, session.id)).state is SessionState.READY
    assert len(world.host.claims) == 1


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


# -- when a seat is considered


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
