"""A function whose sessions share instances, and the requests for it."""

from __future__ import annotations

from dovecote.model.records import Function, Session
from dovecote.model.serving import Affinity, Hooks, Sharing
from tests.unit.control_world import START, World


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
