"""How many instances an app has: out for what is in flight, in after a lull, and which of them leave."""

from __future__ import annotations

import asyncio

import pytest

from dovecote.control.apps import AppInstance
from dovecote.control.apps.apps import surplus
from tests.unit.control_world import Load, World, until
from tests.unit.shop import has_instances, instances, publish, visit

pytestmark = pytest.mark.anyio


async def test_out_at_once_for_what_is_in_flight_and_in_after_a_lull(world: World) -> None:
    await publish(world, target_concurrency=10)
    world.loads["shop"] = Load(active=21, total=21)
    await world.apps.tick()
    await has_instances(world, 3)
    first = world.running("shop").instances[0]

    world.loads["shop"] = Load(active=0, total=21)
    await world.apps.tick()
    await has_instances(world, 3)
    world.clock.advance(7)
    await world.apps.tick()
    await has_instances(world, 1)
    assert world.running("shop").instances == [first]
    assert world.endpoints["shop"] == [first.address]

    world.clock.advance(61)
    await world.apps.tick()
    await has_instances(world, 0)
    assert world.endpoints["shop"] == []


async def test_never_more_than_the_maximum(world: World) -> None:
    await publish(world, target_concurrency=1)
    world.loads["shop"] = Load(active=1000, total=1000)
    await world.apps.tick()
    await world.apps.tick()
    await has_instances(world, 5)


async def test_the_minimum_runs_without_visitors(world: World) -> None:
    await publish(world, minimum=2)
    await world.apps.tick()
    await has_instances(world, 2)


def test_those_that_still_start_leave_first_then_the_newest() -> None:
    async def make() -> list[AppInstance]:
        return [
            AppInstance("oldest", "rev", is_ready=True),
            AppInstance("starting", "rev"),
            AppInstance("newer", "rev", is_ready=True),
            AppInstance("starting later", "rev"),
        ]

    current = asyncio.run(make())
    leave = [[i.owner for i in surplus(current, wanted)] for wanted in (4, 2, 1, 0, 9)]
    in_order = ["starting later", "starting", "newer", "oldest"]
    assert leave == [[], in_order[:2], in_order[:3], in_order, []]


async def test_a_counter_that_fell_is_no_visit_one_that_rose_is(world: World) -> None:
    await publish(world)
    for total, seconds in ((500, 0), (500, 61), (3, 61), (3, 61)):
        world.clock.advance(seconds)
        world.loads["shop"] = Load(total=total)
        await world.apps.tick()
        assert not world.running("shop").instances
    world.loads["shop"] = Load(total=4)
    await world.apps.tick()
    await has_instances(world, 1)


async def test_a_request_in_flight_keeps_a_leaving_instance_until_it_is_answered(world: World) -> None:
    await publish(world)
    await visit(world)
    (instance,) = instances(world)
    world.host.flows[instance.id] = 1
    world.clock.advance(100)
    await world.apps.tick()
    await until(lambda: world.host.count("freeze") >= 1)
    assert world.endpoints["shop"] == []
    assert instances(world) == [instance]
    del world.host.flows[instance.id]
    await has_instances(world, 0)
