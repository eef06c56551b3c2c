"""What breaks of an app: starts that fail, instances that die, restarts of control, and stops that fail."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from dovecote.control.apps import apps
from dovecote.control.sessions import replicas
from dovecote.errors import Failed, NoCapacity
from tests.unit.control_world import START, Load, MakeWorld, World, until
from tests.unit.failing_hosts import DiesOnStart
from tests.unit.memory_host import Clock, MemoryHost
from tests.unit.memory_instance import NOW
from tests.unit.shop import NEXT, has_instances, instances, publish, visit

pytestmark = pytest.mark.anyio


# -- starts


async def test_a_start_that_fails_answers_all_who_wait_with_its_error(on: MakeWorld) -> None:
    async with on(DiesOnStart(Clock())) as world:
        await publish(world)
        answers = await asyncio.gather(*(visit(world) for _ in range(50)), return_exceptions=True)
        assert {error.code for error in answers if isinstance(error, Failed)} == {"start_failed"}
        assert all("no such module" in str(error) for error in answers)
        assert len(world.host.claims) == 1
        there = world.running("shop")
        assert there.failures == 1
        await until(lambda: not there.instances and not instances(world))


async def test_starts_that_fail_are_tried_less_and_less(on: MakeWorld) -> None:
    async with on(DiesOnStart(Clock())) as world:
        await publish(world, minimum=1)
        there = world.running("shop")
        pauses = []
        for failures in (1, 2, 3, 4):
            await world.apps.tick()
            await until(lambda failures=failures: there.failures == failures and not there.instances)
            await world.apps.tick()
            assert not there.instances
            pauses.append(there.retry_at() - there.failed_at)
            world.clock.advance(pauses[-1] + 0.1)
        assert pauses == [5, 10, 20, 40]
        assert len(world.host.claims) == 4


async def test_a_visitor_soon_after_a_failed_start_hears_of_it_a_later_one_starts_another(on: MakeWorld) -> None:
    host = DiesOnStart(Clock())
    async with on(host) as world:
        await publish(world)
        for _ in range(2):
            with pytest.raises(Failed):
                await visit(world)
        assert len(host.claims) == 1
        world.clock.advance(2)
        host.does_last = True
        assert await visit(world)
        assert world.running("shop").failures == 0


async def test_publishing_again_forgives_failures(on: MakeWorld) -> None:
    host = DiesOnStart(Clock())
    async with on(host) as world:
        session = await world.sessions.create(world.tenant)
        await world.apps.publish(world.tenant, session.id, name="shop", start=START)
        with pytest.raises(Failed):
            await visit(world)
        host.does_last = True
        await world.apps.publish(world.tenant, session.id, name="shop", start=NEXT)
        assert world.running("shop").failures == 0
        assert (await visit(world)).endswith(":9000")


async def test_no_capacity_is_told_to_whoever_waits(world: World) -> None:
    await publish(world)
    world.host.refuse("claim", NoCapacity("full", code="no_memory"), times=1)
    with pytest.raises(NoCapacity):
        await visit(world)
    world.clock.advance(2)
    assert await visit(world)


async def test_an_unforeseen_exception_of_a_claim_does_not_wedge_the_app(world: World) -> None:
    await publish(world)
    world.host.refuse("claim", RuntimeError("unforeseen"), times=1)
    with pytest.raises(Failed, match="unforeseen") as failure:
        await visit(world)
    assert failure.value.code == "internal"
    world.clock.advance(2)
    assert await visit(world)
    await has_instances(world, 1)


# -- deaths


async def test_after_a_death_the_next_visitor_gets_another(world: World) -> None:
    await publish(world)
    first = await visit(world)
    world.clock.advance(apps.LASTS + 1)
    (instance,) = instances(world)
    await world.host.die(instance.claim.owner)
    second = await visit(world)
    assert second != first
    await has_instances(world, 1)
    assert world.endpoints["shop"] == [second]


async def test_an_instance_that_dies_soon_counts_as_a_failed_start(world: World) -> None:
    await publish(world)
    await visit(world)
    (instance,) = instances(world)
    await world.host.die(instance.claim.owner, "it ran out of memory")
    with pytest.raises(Failed, match="out of memory") as failure:
        await visit(world)
    assert failure.value.code == "app_dies"
    world.clock.advance(2)
    assert await visit(world)


async def test_a_visitor_notices_a_server_that_ended_in_an_instance_that_lives(world: World) -> None:
    await publish(world)
    first = await visit(world)
    world.clock.advance(apps.LASTS + 1)
    (instance,) = instances(world)
    await world.host.end_server(instance)
    assert await visit(world) != first
    await has_instances(world, 1)


# -- restarts


async def test_a_restart_takes_over_what_runs_and_starts_nothing_idle(world: World) -> None:
    await publish(world)
    address = await visit(world)
    await world.restart()
    await until(lambda: world.endpoints["shop"] == [address])
    assert await visit(world) == address
    await world.apps.update(world.tenant, "shop", idle_after=timedelta(seconds=1))
    world.clock.advance(7)
    await world.apps.tick()
    await has_instances(world, 0)

    await world.restart()
    world.loads["shop"] = Load(total=12345)
    for _ in range(3):
        await world.apps.tick()
    assert world.running("shop").instances == []
    assert len(world.host.claims) == 1


async def test_a_restart_ends_instances_of_apps_and_revisions_that_are_gone(world: World) -> None:
    app = await publish(world, minimum=1)
    await world.apps.tick()
    await has_instances(world, 1)
    await world.leave()
    await world.functions.revise(
        world.tenant, app.function_id, like=await world.functions.revision(world.tenant, app.revision_id)
    )
    function = await world.store.tenant(world.tenant).functions.get(app.function_id)
    record = await world.store.tenant(world.tenant).apps.get(app.id)
    record = await world.store.tenant(world.tenant).apps.swap(replace(record, revision_id=function.revision_id))
    world.join()
    await world.apps.adopt()
    await world.tick()
    assert instances(world) == []
    assert world.running("shop").app == record


async def test_an_instance_whose_server_ended_meanwhile_is_not_taken_over(world: World) -> None:
    await publish(world)
    await visit(world)
    (instance,) = instances(world)
    await world.host.end_server(instance)
    await world.restart()
    await has_instances(world, 0)
    assert world.endpoints["shop"] == []


# -- stops


async def test_a_stop_that_fails_once_is_tried_again(world: World) -> None:
    await publish(world)
    await visit(world)
    world.host.refuse("stop", Failed("busy", code="internal"), times=1)
    world.clock.advance(100)
    await world.apps.tick()
    await has_instances(world, 0)


async def test_a_stop_that_fails_in_an_unforeseen_way_is_tried_again(on: MakeWorld) -> None:
    async with on(MemoryHost(Clock())) as world:
        await publish(world)
        await visit(world)
        (instance,) = world.running("shop").instances
        world.host.refuse("stop", RuntimeError("unforeseen"), times=1)
        world.clock.advance(100)
        await world.apps.tick()
        assert instance.life is not None
        await asyncio.wait([instance.life])
        assert instances(world) == []
        assert world.running("shop").instances == []


async def test_what_cannot_be_stopped_for_long_ends_at_a_later_look(
    on: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replicas, "STOP_TRIES", 1)
    async with on(MemoryHost(Clock())) as world:
        await publish(world)
        await visit(world)
        world.host.refuse("stop", Failed("busy", code="internal"))
        (instance,) = world.running("shop").instances
        await world.apps.unpublish(world.tenant, "shop")
        assert instance.life is not None
        assert len(instances(world)) == 1
        await world.tick()
        assert len(instances(world)) == 1
        world.host.mend("stop")
        await world.tick()
        assert instances(world) == []


async def test_an_instance_of_an_app_that_is_looked_after_is_no_stray(world: World) -> None:
    await publish(world)
    await visit(world)
    await world.tick()
    assert len(instances(world)) == 1


async def test_a_stray_that_cannot_be_stopped_keeps_no_server_from_starting(world: World) -> None:
    await publish(world)
    await visit(world)
    world.host.refuse("stop", Failed("busy", code="internal"), times=1)
    app = await world.apps.get(world.tenant, "shop")
    await world.leave()
    await world.store.tenant(world.tenant).apps.swap(replace(app, removed_at=NOW))
    world.join()
    await world.apps.adopt()
    world.host.mend("stop")
    await world.tick()
    assert instances(world) == []
