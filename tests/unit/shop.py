"""An app named shop over a host in memory, its instances and its visitors."""

from __future__ import annotations

from dovecote.model.records import App, Start
from tests.unit.control_world import START, World, until
from tests.unit.memory_instance import MemoryInstance

NEXT = Start("python3 next.py", 9000)


async def publish(world: World, *, minimum: int | None = None, target_concurrency: int | None = None) -> App:
    """Its session has ended: what the host then has is the app's."""
    session = await world.sessions.create(world.tenant)
    app = await world.apps.publish(
        world.tenant, session.id, name="shop", start=START, minimum=minimum, target_concurrency=target_concurrency
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
