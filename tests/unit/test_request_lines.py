"""Requests at once: who waits in front of an instance, and who goes where when no session has a seat."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovecote.control.sessions.seats import emptiest
from dovecote.errors import Failed, Invalid, NoCapacity
from dovecote.model.serving import Affinity, Mode, Sharing
from tests.unit.control_world import World, until
from tests.unit.shared_function import ask, shared

pytestmark = pytest.mark.anyio

NONE = Affinity(modes=(Mode.NONE,))


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


@given(st.lists(st.integers(0, 5), max_size=8), st.integers(0, 5))
def test_the_one_with_the_fewest_requests_is_taken_unless_full(requests: list[int], limit: int) -> None:
    index = emptiest(requests, limit=limit)
    free = [count for count in requests if not limit or count < limit]
    assert (None if index is None else requests[index]) == min(free, default=None)


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
