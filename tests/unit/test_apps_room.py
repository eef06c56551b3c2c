"""Apps over a host in memory: their visitors, and apps that are published, changed and unpublished."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from dovecote.errors import Conflict, NotFound
from tests.unit.control_world import START, Load, World, until
from tests.unit.shop import NEXT, has_instances, instances, publish, visit

pytestmark = pytest.mark.anyio


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


# -- revisions


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
