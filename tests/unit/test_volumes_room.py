"""Volumes and mounts as control decides them, over a store and a host in memory."""

from __future__ import annotations

import pytest

from dovecote.control.fleet import Fleet
from dovecote.control.volumes import Volumes
from dovecote.errors import Conflict, Forbidden, Invalid, NotFound, StorageFailed
from dovecote.model.volumes import Mount, covers, parse_at, parse_path
from tests.unit.control_world import HOST_ID, World

pytestmark = pytest.mark.anyio

MIB = 1 << 20
AT = "/home/user/data"


@pytest.fixture
def volumes(world: World) -> Volumes:
    return Volumes(world.store, Fleet({HOST_ID: world.host}), world.tenancy, world.sessions)


async def test_a_mount_is_claimed_again_when_the_session_wakes(world: World, volumes: Volumes) -> None:
    volume = await volumes.create(world.tenant, "work", max_bytes=MIB)
    session = await world.sessions.create(world.tenant)
    await volumes.mount(world.tenant, session.id, Mount("work", AT, "a/b"))
    await world.sessions.park(world.tenant, session.id)
    await world.sessions.wake(world.tenant, session.id)
    instance = world.host.of(session.id)
    assert instance is not None
    assert instance.claim.mounts == (Mount(volume.id, AT, "a/b"),)


async def test_a_bucket_of_the_operators_is_mounted_read_only_or_not_at_all(world: World, volumes: Volumes) -> None:
    session = await world.sessions.create(world.tenant)
    wanted = Mount("@datasets", AT, "2026", read_only=True)
    await volumes.mount(world.tenant, session.id, wanted)
    instance = world.host.of(session.id)
    assert instance is not None
    assert instance.claim.mounts == (wanted,)
    assert await volumes.names(world.tenant, [wanted]) == [wanted]
    with pytest.raises(Invalid) as caught:
        await volumes.mount(world.tenant, session.id, Mount("@datasets", "/other"))
    assert caught.value.code == "read_only"
    with pytest.raises(NotFound) as missing:
        await volumes.mount(world.tenant, session.id, Mount("@secrets", "/other", read_only=True))
    assert "datasets" in missing.value.hint


async def test_a_volume_of_another_tenant_is_not_there(world: World, volumes: Volumes) -> None:
    volume = await volumes.create(world.tenant, "work", max_bytes=MIB)
    session = await world.sessions.create(world.other, wake=False)
    for name in ("work", volume.id):
        with pytest.raises(NotFound):
            await volumes.mount(world.other, session.id, Mount(name, AT))
    with pytest.raises(NotFound):
        await volumes.delete(world.other, "work", force=True)
    assert await volumes.list(world.other) == []


async def test_a_users_volume_is_for_that_users_sessions(world: World, volumes: Volumes) -> None:
    await volumes.create(world.tenant, "annas", max_bytes=MIB, user="anna")
    hers = await world.sessions.create(world.tenant, user="anna", wake=False)
    his = await world.sessions.create(world.tenant, user="ben", wake=False)
    await volumes.mount(world.tenant, hers.id, Mount("annas", AT))
    with pytest.raises(Forbidden):
        await volumes.mount(world.tenant, his.id, Mount("annas", AT))
    with pytest.raises(Forbidden):
        await volumes.resolve(world.tenant, [Mount("annas", AT)])


async def test_a_mount_that_is_in_use_stays_recorded(world: World, volumes: Volumes) -> None:
    await volumes.create(world.tenant, "work", max_bytes=MIB)
    session = await world.sessions.create(world.tenant)
    await volumes.mount(world.tenant, session.id, Mount("work", AT))
    world.host.used_mounts.add(AT)
    with pytest.raises(StorageFailed):
        await world.sessions.unmount(world.tenant, session.id, AT)
    assert (await world.sessions.get(world.tenant, session.id)).mounts
    await world.sessions.unmount(world.tenant, session.id, AT, force=True)
    assert not (await world.sessions.get(world.tenant, session.id)).mounts


@pytest.mark.parametrize("at", [AT, "/home/user", f"{AT}/below"])
async def test_mounts_do_not_hide_each_other(world: World, volumes: Volumes, at: str) -> None:
    await volumes.create(world.tenant, "work", max_bytes=MIB)
    session = await world.sessions.create(world.tenant, wake=False)
    await volumes.mount(world.tenant, session.id, Mount("work", AT, "one"))
    with pytest.raises(Conflict):
        await volumes.mount(world.tenant, session.id, Mount("work", at, "two"))


async def test_a_volume_that_a_function_names_is_deleted_by_force_only(world: World, volumes: Volumes) -> None:
    volume = await volumes.create(world.tenant, "work", max_bytes=MIB)
    mounts = await volumes.resolve(world.tenant, [Mount("work", AT)])
    await world.functions.create(world.tenant, "draws", mounts=mounts)
    with pytest.raises(Conflict, match="function draws"):
        await volumes.delete(world.tenant, "work")
    await volumes.delete(world.tenant, "work", force=True)
    assert volume.id not in world.host.kept_volumes.limits


async def test_a_volume_that_its_host_lost_is_listed_and_can_be_deleted(world: World, volumes: Volumes) -> None:
    volume = await volumes.create(world.tenant, "work", max_bytes=MIB)
    await world.host.kept_volumes.delete(volume.id)
    assert (await volumes.view(volume)).used_bytes is None
    await volumes.delete(world.tenant, "work")


@pytest.mark.parametrize("text", ["/a", "a/", "a//b", ".", "..", "a/../b", "a b", "a\n", "x" * 201, "/".join("x" * 17)])
def test_a_path_that_could_lead_elsewhere_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        parse_path(text)


@pytest.mark.parametrize("text", ["", "/", "a", "/proc", "/sys/x", "/dev/shm", "/run/x", "/a/", "/a/./b", "//proc"])
def test_a_place_that_is_the_systems_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        parse_at(text)


def test_places_with_a_common_beginning_do_not_cover_each_other() -> None:
    assert covers("/a/b", "/a")
    assert not covers("/ab", "/a")


async def test_a_session_is_opened_with_its_mounts(world: World, volumes: Volumes) -> None:
    """They are there in its first instance, and whenever it wakes."""
    volume = await volumes.create(world.tenant, "work", max_bytes=MIB)
    mounts = await volumes.resolve(world.tenant, [Mount("work", AT, "anna/chat7"), Mount("work", "/mnt")], user="anna")
    session = await world.sessions.create(world.tenant, user="anna", mounts=mounts)
    wanted = (Mount(volume.id, AT, "anna/chat7"), Mount(volume.id, "/mnt"))
    for _ in range(2):
        instance = world.host.of(session.id)
        assert instance is not None
        assert instance.claim.mounts == wanted
        await world.sessions.park(world.tenant, session.id)
        await world.sessions.wake(world.tenant, session.id)


async def test_a_session_cannot_be_opened_with_another_users_volume(world: World, volumes: Volumes) -> None:
    await volumes.create(world.tenant, "annas", max_bytes=MIB, user="anna")
    assert await volumes.resolve(world.tenant, [Mount("annas", AT)], user="anna")
    for user in ("ben", None):
        with pytest.raises(Forbidden):
            await volumes.resolve(world.tenant, [Mount("annas", AT)], user=user)


async def test_mounts_that_would_hide_each_other_open_no_session(world: World, volumes: Volumes) -> None:
    await volumes.create(world.tenant, "work", max_bytes=MIB)
    mounts = await volumes.resolve(world.tenant, [Mount("work", AT), Mount("work", f"{AT}/below")])
    with pytest.raises(Conflict):
        await world.sessions.create(world.tenant, key="one", mounts=mounts)
    ours = await volumes.resolve(world.tenant, [Mount("work", AT)])
    await world.functions.create(world.tenant, "draws", mounts=ours)
    with pytest.raises(Conflict):
        await world.sessions.create(world.tenant, function="draws", key="one", mounts=ours)
    await world.sessions.create(world.tenant, key="one", wake=False)  # the key was not taken
