"""Limits of paths as control decides them, over a store and a host in memory."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from dovecote.control.fleet import Fleet
from dovecote.control.volumes import Volumes, limits
from dovecote.errors import Conflict, DeadlineExceeded, Forbidden, Invalid, NotFound
from dovecote.model.records import Volume
from dovecote.model.volumes import Mount, parents, touches
from tests.unit.control_world import HOST_ID, World

pytestmark = pytest.mark.anyio

MIB = 1 << 20
AT = "/home/user/data"
CHAT = "anna/chat7"


@pytest.fixture
def world(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(limits, "time", world.clock)
    return world


def rooms(world: World) -> Volumes:
    return Volumes(world.store, Fleet({HOST_ID: world.host}), world.tenancy, world.sessions)


@pytest.fixture
def volumes(world: World) -> Volumes:
    return rooms(world)


@pytest.fixture
async def volume(world: World, volumes: Volumes) -> Volume:
    return await volumes.create(world.tenant, "work", max_bytes=64 * MIB)


def kept(world: World, volume: Volume, path: str = CHAT) -> int | None:
    """What the host has."""
    return world.host.kept_volumes.paths.get((volume.id, path))


async def test_a_limit_is_set_read_changed_and_lifted(world: World, volumes: Volumes, volume: Volume) -> None:
    for size in (4 * MIB, 8 * MIB):
        await volumes.limits.set(volume, CHAT, size)
        assert kept(world, volume) == size
        assert (await volumes.limits.get(volume, CHAT)).max_bytes == size
    assert [each.path for each in await volumes.limits.list(volume)] == [CHAT]
    await volumes.limits.lift(volume, CHAT)
    assert kept(world, volume) is None
    for act in (volumes.limits.get, volumes.limits.lift):
        with pytest.raises(NotFound) as caught:
            await act(volume, CHAT)
        assert caught.value.code == "no_such_limit"


async def test_they_are_listed_in_pages(volumes: Volumes, volume: Volume) -> None:
    for number in range(5):
        await volumes.limits.set(volume, f"user{number}", MIB)
    first = await volumes.limits.list(volume, limit=3)
    rest = await volumes.limits.list(volume, after=first[-1].id, limit=3)
    assert [each.path for each in (*first, *rest)] == [f"user{number}" for number in range(5)]


async def test_a_limit_that_its_host_refuses_is_as_it_was(world: World, volumes: Volumes, volume: Volume) -> None:
    world.host.kept_volumes.refuses = Conflict("somebody has it mounted", code="path_in_use")
    with pytest.raises(Conflict):
        await volumes.limits.set(volume, CHAT, 4 * MIB)
    assert await volumes.limits.list(volume) == []
    await volumes.limits.set(volume, CHAT, 4 * MIB)
    world.host.kept_volumes.refuses = Conflict("somebody has it mounted", code="path_in_use")
    with pytest.raises(Conflict):
        await volumes.limits.set(volume, CHAT, 8 * MIB)
    assert (await volumes.limits.get(volume, CHAT)).max_bytes == 4 * MIB
    await volumes.limits.set(volume, CHAT, 8 * MIB)
    assert kept(world, volume) == 8 * MIB


async def test_what_was_recorded_and_not_done_is_done_by_the_next_control(
    world: World, volumes: Volumes, volume: Volume
) -> None:
    await volumes.limits.set(volume, CHAT, 4 * MIB)
    await volumes.limits.set(volume, "ben", 4 * MIB)
    await volumes.limits.tick()
    records = world.store.tenant(world.tenant).path_limits
    ben = await records.find(path="ben")
    assert ben is not None
    await records.swap(replace(ben, is_lifted=True))  # and then it was killed
    world.host.kept_volumes.paths.pop((volume.id, CHAT))  # lost with the machine
    again = rooms(world)
    await again.limits.tick()
    assert world.host.kept_volumes.paths == {(volume.id, CHAT): 4 * MIB}
    assert [each.path for each in await again.limits.list(volume)] == [CHAT]
    assert await records.count() == 1


async def test_a_limit_that_lasted_is_not_set_again(world: World, volumes: Volumes, volume: Volume) -> None:
    await volumes.limits.set(volume, CHAT, 4 * MIB)
    world.clock.advance(limits.SETTLED_AFTER + 1)
    await volumes.limits.tick()
    assert (await volumes.limits.get(volume, CHAT)).is_settled
    world.host.kept_volumes.paths.clear()
    await rooms(world).limits.tick()
    assert kept(world, volume) is None
    await volumes.limits.set(volume, CHAT, 8 * MIB)
    assert not (await volumes.limits.get(volume, CHAT)).is_settled
    assert kept(world, volume) == 8 * MIB


async def test_a_host_that_fails_is_asked_again(world: World, volumes: Volumes, volume: Volume) -> None:
    await volumes.limits.set(volume, CHAT, 4 * MIB)
    world.host.kept_volumes.paths.clear()
    again = rooms(world)
    world.host.kept_volumes.refuses = Conflict("somebody has it mounted", code="path_in_use")
    await again.limits.tick()
    assert kept(world, volume) is None
    await again.limits.tick()
    assert kept(world, volume) == 4 * MIB


@pytest.mark.parametrize("act", ["set", "tick"])
async def test_a_limit_that_nobody_waits_for_is_alone_until_its_host_has_done_it(
    world: World, volumes: Volumes, volume: Volume, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    if act == "tick":
        await rooms(world).limits.set(volume, CHAT, 4 * MIB)
    began, may_end = asyncio.Event(), asyncio.Event()
    host, limit_path = world.host.kept_volumes, world.host.kept_volumes.limit_path

    async def slow(name: str, path: str, *, max_bytes: int) -> None:
        began.set()
        await may_end.wait()
        await limit_path(name, path, max_bytes=max_bytes)

    monkeypatch.setattr(host, "limit_path", slow)
    acting = volumes.limits.tick() if act == "tick" else volumes.limits.set(volume, CHAT, 4 * MIB)
    first: asyncio.Future[object] = asyncio.ensure_future(acting)
    await began.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert volumes.limits.lock(volume.id).locked()
    lifting = asyncio.ensure_future(volumes.limits.lift(volume, CHAT))
    may_end.set()
    await lifting
    assert kept(world, volume) is None
    assert await volumes.limits.list(volume) == []


async def test_a_limit_that_its_host_may_set_yet_stays_wished_for(
    world: World, volumes: Volumes, volume: Volume
) -> None:
    for size in (4 * MIB, 8 * MIB):
        world.host.kept_volumes.refuses = DeadlineExceeded("no answer", code="store_slow")
        with pytest.raises(DeadlineExceeded):
            await volumes.limits.set(volume, CHAT, size)
        wished = await volumes.limits.get(volume, CHAT)
        assert (wished.max_bytes, wished.is_settled) == (size, False)
        await volumes.limits.tick()
        assert kept(world, volume) == size
    await volumes.limits.lift(volume, CHAT)
    assert kept(world, volume) is None


async def test_a_volume_takes_its_limits_along(world: World, volumes: Volumes, volume: Volume) -> None:
    for number in range(3):
        await volumes.limits.set(volume, f"user{number}", MIB)
    other = await volumes.create(world.tenant, "other", max_bytes=MIB)
    await volumes.limits.set(other, CHAT, MIB)
    await volumes.delete(world.tenant, "work")
    records = world.store.tenant(world.tenant).path_limits
    assert [each.volume_id async for each in records.each()] == [other.id]


async def test_another_tenant_has_none_of_them(world: World, volumes: Volumes, volume: Volume) -> None:
    await volumes.limits.set(volume, CHAT, MIB)
    theirs = await volumes.create(world.other, "work", max_bytes=MIB)
    assert await volumes.limits.list(theirs) == []
    assert await world.store.tenant(world.other).path_limits.count() == 0
    with pytest.raises(NotFound):
        await volumes.limits.get(theirs, CHAT)
    with pytest.raises(NotFound):
        await volumes.resolve(world.other, [Mount(volume.id, AT, CHAT, max_bytes=8 * MIB)])
    assert kept(world, volume) == MIB


async def test_a_mount_can_ask_for_a_limit(world: World, volumes: Volumes, volume: Volume) -> None:
    """It is there before the mount is, and the mount that is kept does not say it: it may be changed later."""
    session = await world.sessions.create(world.tenant)
    session = await volumes.mount(world.tenant, session.id, Mount("work", AT, CHAT, max_bytes=4 * MIB))
    assert kept(world, volume) == 4 * MIB
    assert session.mounts == (Mount(volume.id, AT, CHAT),)
    await volumes.limits.set(volume, CHAT, 8 * MIB)
    await world.sessions.park(world.tenant, session.id)
    await world.sessions.wake(world.tenant, session.id)
    assert kept(world, volume) == 8 * MIB


async def test_a_users_volume_gets_no_limit_by_somebody_elses_mount(world: World, volumes: Volumes) -> None:
    annas = await volumes.create(world.tenant, "annas", max_bytes=64 * MIB, user="anna")
    with pytest.raises(Forbidden):
        await volumes.resolve(world.tenant, [Mount("annas", AT, CHAT, max_bytes=MIB)], user="ben")
    assert kept(world, annas) is None


@pytest.mark.parametrize(
    ("path", "size"),
    [
        ("", MIB),
        ("..", MIB),
        ("a//b", MIB),
        ("/a", MIB),
        (CHAT, 0),
        (CHAT, -1),
        (CHAT, 1 << 60),
        ("/".join(["x" * 128] * 9), MIB),
    ],
)
async def test_what_makes_no_sense_is_refused(volumes: Volumes, volume: Volume, path: str, size: int) -> None:
    with pytest.raises(Invalid):
        await volumes.limits.set(volume, path, size)
    assert await volumes.limits.list(volume) == []


async def test_a_bucket_has_no_limit(world: World, volumes: Volumes) -> None:
    with pytest.raises(Invalid) as caught:
        await volumes.resolve(world.tenant, [Mount("@datasets", AT, "2026", read_only=True, max_bytes=MIB)])
    assert caught.value.code == "read_only"


async def test_a_limit_of_what_its_host_lost_is_listed_without_what_it_holds(
    world: World, volumes: Volumes, volume: Volume
) -> None:
    limit = await volumes.limits.set(volume, CHAT, MIB)
    assert (await volumes.limits.view(volume, limit)).used_bytes == 0
    world.host.kept_volumes.paths.clear()
    assert (await volumes.limits.view(volume, limit)).used_bytes is None


def test_paths_above_and_below() -> None:
    assert parents("a/b/c") == ["a", "a/b"]
    assert parents("a") == []
    assert touches("a/b", "a")
    assert touches("", "a")
    assert touches("a", "a/b/c")
    assert not touches("a/b", "a/bc")
