"""What sandboxes used, as it is remembered."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from dovecote.control.metering import APART, MOST, Metering
from dovecote.errors import Failed, NotFound
from tests.unit.control_world import World

pytestmark = pytest.mark.anyio


@pytest.fixture
def metering(world: World) -> Metering:
    return Metering(world.sessions, clock=world.clock.monotonic)


async def test_cpu_is_a_share_of_what_it_may_have_since_the_sample_before(world: World, metering: Metering) -> None:
    session = await world.sessions.create(world.tenant, spec="medium")  # two CPUs
    await metering.tick()
    world.clock.advance(10)
    world.host.cpu_seconds += 5
    first, second = await metering.history(world.tenant, session.id)
    assert (first.cpu_percent, second.cpu_percent) == (0.0, 25.0)
    assert (second.memory_bytes, second.cache_bytes) == (4096, 1024)
    assert second.limits.cpus == 2


async def test_asking_often_takes_no_more_samples(world: World, metering: Metering) -> None:
    session = await world.sessions.create(world.tenant)
    for _ in range(5):
        await metering.history(world.tenant, session.id)
    assert len(await metering.history(world.tenant, session.id)) == 1
    world.clock.advance(APART)
    assert len(await metering.history(world.tenant, session.id)) == 2


async def test_what_rests_is_neither_woken_nor_sampled(world: World, metering: Metering) -> None:
    session = await world.sessions.create(world.tenant)
    await metering.tick()
    await world.sessions.park(world.tenant, session.id)
    world.clock.advance(10)
    await metering.tick()
    assert len(await metering.history(world.tenant, session.id)) == 1
    assert world.host.instances == {}


async def test_samples_are_bounded_and_narrowed_by_time(world: World, metering: Metering) -> None:
    session = await world.sessions.create(world.tenant)
    for _ in range(MOST + 5):
        world.clock.advance(APART)
        await metering.tick()
    assert len(await metering.history(world.tenant, session.id)) == MOST
    later = datetime.now(UTC) + timedelta(hours=1)
    assert await metering.history(world.tenant, session.id, since=later) == []
    assert len(await metering.history(world.tenant, session.id, until=later)) == MOST


async def test_what_another_tenant_uses_cannot_be_seen(world: World, metering: Metering) -> None:
    session = await world.sessions.create(world.tenant)
    with pytest.raises(NotFound):
        await metering.history(world.other, session.id)


async def test_one_that_cannot_be_sampled_does_not_stop_the_others(
    world: World, metering: Metering, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, fine = [await world.sessions.create(world.tenant) for _ in range(2)]
    usage = world.host.usage

    async def sometimes(instance_id: str) -> dict[str, int | float]:
        if instance_id == broken.instance_id:
            raise Failed("not now")
        return await usage(instance_id)

    monkeypatch.setattr(world.host, "usage", sometimes)
    await metering.tick()
    assert len(await metering.history(world.tenant, fine.id)) == 1
