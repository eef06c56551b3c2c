"""Apps over a host in memory: instances that come and go with their visitors, and with what breaks."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta

import pytest

from dovecote.control.apps import AppInstance, apps
from dovecote.control.apps.apps import surplus
from dovecote.control.sessions import replicas
from dovecote.errors import Conflict, Failed, NoCapacity, NotFound
from dovecote.model.records import App, Start
from tests.unit.control_world import START, Load, MakeWorld, World, until
from tests.unit.failing_hosts import DiesOnStart
from tests.unit.memory_host import Clock, MemoryHost
from tests.unit.memory_instance import NOW, MemoryInstance

pytestmark = pytest.mark.anyio

NEXT = Start("python3 next.py", 9000)


async def publish(
    world: World, *, start: Start = START, minimum: int | None = None, target_concurrency: int | None = None
) -> App:
    """Its session is parked again: what the host then has is the app's."""
    session = await world.sessions.create(world.tenant)
    app = await world.apps.publish(
        world.tenant, session.id, name="shop", start=start, minimum=minimum, target_concurrency=target_concurrency
    )
    await world.sessions.delete(world.tenant, session.id)
    world.host.claims.clear()
    return app


def instances(world: World) -> list[MemoryInstance]:
    return [i for i in world.host.instances.values() if i.claim.owner.startswith("app_")]


async def visit(world: World) -> str:
    return await world.apps.route("shop")


async def has_instances(world: World, count: int) -> None:
    """So many that run, and nothing on its way in or out."""
    there = world.running("shop")
    await until(
        lambda: len(instances(world)) == count == len(there.instances) and all(i.is_ready for i in there.instances)
    )


# -- visitors


async def test_fifty_held_visitors_get_one_instance_from_one_start(world: World) -> None:
    await publish(world)
    world.host.hold("claim")
    visitors = [asyncio.ensure_future(visit(world)) for _ in range(50)]
    await until(lambda: world.host.held("claim") == 1)
    assert world.running("shop").waiting == 50
    world.host.let_go("claim")
    addresses = set(await asyncio.gather(*visitors))
    assert len(addresses) == 1
    assert len(world.host.claims) == len(world.host.starts()) == 1
    assert set(world.endpoints["shop"]) == addresses
    assert world.running("shop").waiting == 0


async def test_where_there_is_no_app_nobody_asks_for_their_loads(world: World) -> None:
    async def asked() -> Mapping[str, Load]:
        raise AssertionError("the gateway was asked")

    world.apps._loads = asked
    await world.apps.tick()


async def test_an_app_runs_the_files_that_were_published(world: World) -> None:
    session = await world.sessions.create(world.tenant, env={"TOKEN": "t"})
    await world.write(session, b"published")
    await world.apps.publish(world.tenant, session.id, name="shop", start=START)
    await world.write(session, b"later")
    await visit(world)
    (instance,) = instances(world)
    assert instance.files == {"/home/user/note": b"published"}
    assert not instance.claim.keeps_files
    (command,) = world.host.starts()
    assert command.env == {"LANG": "C.UTF-8", "TOKEN": "t", "PORT": "8000"}


async def test_a_visitor_who_leaves_takes_nothing_from_the_others(world: World) -> None:
    await publish(world)
    world.host.hold("claim")
    leaver, stayer = (asyncio.ensure_future(visit(world)) for _ in range(2))
    await until(lambda: world.host.held("claim") == 1)
    leaver.cancel()
    world.host.let_go("claim")
    assert await stayer
    assert len(world.host.claims) == 1


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


# -- scale


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


# -- coming and going


async def test_unpublishing_while_it_starts_leaves_nothing_behind_and_answers_who_waits(world: World) -> None:
    await publish(world)
    world.host.hold("claim")
    visitors = [asyncio.ensure_future(visit(world)) for _ in range(10)]
    await until(lambda: world.host.held("claim") == 1)
    unpublishing = asyncio.ensure_future(world.apps.unpublish(world.tenant, "shop"))
    answers = await asyncio.gather(*visitors, return_exceptions=True)
    assert all(isinstance(answer, NotFound) for answer in answers)
    world.host.let_go("claim")
    await unpublishing
    assert instances(world) == []
    assert "shop" not in world.endpoints
    with pytest.raises(NotFound):
        await visit(world)


async def test_unpublishing_while_the_port_is_awaited_leaves_nothing_behind(world: World) -> None:
    world.host.does_open = False
    await publish(world)
    visitor = asyncio.ensure_future(visit(world))
    await until(lambda: len(world.host.starts()) == 1)
    await world.apps.unpublish(world.tenant, "shop")
    with pytest.raises(NotFound):
        await visitor
    assert instances(world) == []


async def test_a_visitor_who_comes_as_it_is_unpublished_starts_nothing(world: World) -> None:
    await publish(world)
    there = world.running("shop")
    await world.apps.unpublish(world.tenant, "shop")
    # `route` had found the app; its wait begins a turn of the loop later.
    with pytest.raises(NotFound):
        await world.apps._someone(there)


async def test_an_unpublished_name_is_free_and_another_tenants_name_is_not(world: World) -> None:
    await publish(world)
    session = await world.sessions.create(world.other)
    with pytest.raises(Conflict):
        await world.apps.publish(world.other, session.id, name="shop", start=START)
    for call in (world.apps.get, world.apps.update, world.apps.unpublish, world.apps.instances):
        with pytest.raises(NotFound):
            await call(world.other, "shop")
    await world.apps.unpublish(world.tenant, "shop")
    app = await world.apps.publish(world.other, session.id, name="shop", start=START)
    assert app.tenant_id == world.other


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


async def test_a_new_revision_takes_over_only_when_it_is_ready(world: World) -> None:
    session = await world.sessions.create(world.tenant)
    await world.apps.publish(world.tenant, session.id, name="shop", start=START)
    old = await visit(world)
    world.host.hold("claim")
    await world.apps.publish(world.tenant, session.id, name="shop", start=NEXT)
    await world.apps.tick()
    await until(lambda: world.host.held("claim") == 1)
    assert await visit(world) == old
    assert world.endpoints["shop"] == [old]
    world.host.let_go("claim")
    await until(lambda: world.endpoints["shop"] != [old])
    assert (await visit(world)).endswith(":9000")
    await world.apps.tick()
    await has_instances(world, 1)
    assert old not in world.endpoints["shop"]


async def _with_a_broken_next_revision(world: World) -> str:
    """The address of the old one, which goes on serving."""
    session = await world.sessions.create(world.tenant)
    await world.apps.publish(world.tenant, session.id, name="shop", start=START)
    old = await visit(world)
    world.host.does_last = False
    await world.apps.publish(world.tenant, session.id, name="shop", start=NEXT)
    await world.apps.tick()
    there = world.running("shop")
    await until(lambda: there.failures == 1 and len(there.instances) == 1)
    return old


async def test_a_new_revision_that_does_not_start_leaves_the_old_one_serving(world: World) -> None:
    old = await _with_a_broken_next_revision(world)
    await world.apps.tick()
    assert world.endpoints["shop"] == [old]
    assert await visit(world) == old


async def test_an_old_revision_goes_to_zero_too_when_nobody_comes(world: World) -> None:
    await _with_a_broken_next_revision(world)
    world.clock.advance(10_000)
    await world.apps.tick()
    assert all(i.is_leaving for i in world.running("shop").instances)
    await has_instances(world, 0)


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
    record = await world.store.tenant(world.tenant).apps.swap(_of_revision(record, function.revision_id))
    world.join()
    await world.apps.adopt()
    await world.tick()
    assert instances(world) == []
    assert world.running("shop").app == record


def _of_revision(app: App, revision_id: str) -> App:
    return App(**{**vars(app), "revision_id": revision_id})


async def test_an_instance_whose_server_ended_meanwhile_is_not_taken_over(world: World) -> None:
    await publish(world)
    await visit(world)
    (instance,) = instances(world)
    await world.host.end_server(instance)
    await world.restart()
    await has_instances(world, 0)
    assert world.endpoints["shop"] == []


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
