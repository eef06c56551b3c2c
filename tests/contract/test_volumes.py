"""What every driver of `Volumes` promises."""

from __future__ import annotations

import errno
import os
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from dovecote.errors import Invalid, NotFound, StorageFailed, Unsupported
from dovecote.host.storage.volumes import LoopVolumes, PoolVolumes, Volumes, open_directory
from dovecote.host.storage.volumes.juicefs import JuiceFSVolumes
from dovecote.host.storage.volumes.juicefs_commands import find_place
from dovecote.host.storage.volumes.loop import may_grow
from dovecote.model.volumes import Mount

pytestmark = [pytest.mark.system, pytest.mark.anyio]

MIB = 1 << 20


@pytest.fixture(params=["btrfs", "loop", "juicefs"])
async def volumes(request: pytest.FixtureRequest) -> AsyncIterator[Volumes]:
    with tempfile.TemporaryDirectory(prefix="dovecote-volumes-") as directory:
        place = Path(directory)
        driver: Volumes
        if request.param == "btrfs":
            driver = PoolVolumes(place / "pool", place / "at", max_bytes=1 << 30)
        elif request.param == "loop":
            driver = LoopVolumes(place / "images", place / "at")
        else:
            driver = juicefs(place)
        try:
            await driver.ensure()
            yield driver
        finally:
            await driver.remove()


def juicefs(place: Path) -> JuiceFSVolumes:
    found = find_place("test", objects_url="", meta_url="", directory=place / "data")
    return JuiceFSVolumes(found, place / "at", run_dir=place / "run", cache_dir=place / "cache")


def needs_growth(volumes: Volumes) -> None:
    if isinstance(volumes, LoopVolumes) and not may_grow():
        pytest.skip("ext4 grows for CAP_SYS_RESOURCE only, which is not there")


def fill(path: Path, limit: int) -> OSError | None:
    """Writes up to `limit` bytes as fast as it can; the error that stopped it."""
    try:
        with open(path, "ab", buffering=0) as file:
            while left := limit - file.tell():
                file.write(os.urandom(min(left, 65536)))
            os.fsync(file.fileno())
    except OSError as error:
        return error
    return None


async def test_ten_times_the_limit_cannot_be_written(volumes: Volumes) -> None:
    """A write over the limit fails with EDQUOT or ENOSPC, and what was written before stays readable."""
    await volumes.create("vol_a", max_bytes=16 * MIB)
    files = volumes.directory("vol_a")
    (files / "before").write_bytes(b"b" * MIB)
    error = fill(files / "big", 160 * MIB)
    assert error is not None
    assert error.errno in (errno.EDQUOT, errno.ENOSPC)
    assert (files / "before").read_bytes() == b"b" * MIB
    assert sum(path.stat().st_size for path in files.iterdir() if path.is_file()) <= 16 * MIB


async def test_a_full_volume_hurts_only_itself(volumes: Volumes) -> None:
    for name in ("vol_full", "vol_other"):
        await volumes.create(name, max_bytes=16 * MIB)
    assert fill(volumes.directory("vol_full") / "f", 64 * MIB)
    assert fill(volumes.directory("vol_other") / "f", 4 * MIB) is None


async def test_a_limit_can_be_raised_while_it_is_in_use(volumes: Volumes) -> None:
    needs_growth(volumes)
    await volumes.create("vol_a", max_bytes=16 * MIB)
    files = volumes.directory("vol_a")
    with open(files / "held", "wb") as held:
        assert fill(files / "f", 64 * MIB)
        await volumes.limit("vol_a", max_bytes=48 * MIB)
        assert held.write(b"x") == 1
    assert fill(files / "g", 8 * MIB) is None
    assert (await volumes.usage("vol_a")).max_bytes == 48 * MIB


async def test_a_limit_is_lowered_or_refused_but_never_ignored(volumes: Volumes) -> None:
    await volumes.create("vol_a", max_bytes=32 * MIB)
    if isinstance(volumes, LoopVolumes):
        with pytest.raises(Unsupported, match="cannot shrink"):
            await volumes.limit("vol_a", max_bytes=16 * MIB)
        assert (await volumes.usage("vol_a")).max_bytes == 32 * MIB
    else:
        await volumes.limit("vol_a", max_bytes=16 * MIB)
        assert fill(volumes.directory("vol_a") / "f", 20 * MIB)


async def written(volumes: Volumes, least: int) -> int:
    """What vol_a holds. Where several hosts count, what was written is known a few seconds later."""
    deadline = time.monotonic() + (15 if isinstance(volumes, JuiceFSVolumes) else 0)
    while True:
        now = (await volumes.usage("vol_a")).bytes
        if now >= least or time.monotonic() > deadline:
            return now
        await anyio.sleep(0.1)


async def test_usage_follows_what_is_written(volumes: Volumes) -> None:
    await volumes.create("vol_a", max_bytes=32 * MIB)
    before = (await volumes.usage("vol_a")).bytes
    assert fill(volumes.directory("vol_a") / "f", 4 * MIB) is None
    now = await written(volumes, before + 4 * MIB)
    assert 4 * MIB <= now - before < 6 * MIB


async def test_volumes_survive_removal_and_the_next_start(volumes: Volumes) -> None:
    await volumes.create("vol_a", max_bytes=16 * MIB)
    (volumes.directory("vol_a") / "f").write_text("kept")
    await volumes.remove()
    await volumes.remove()
    assert not volumes.directory("vol_a").exists()
    await volumes.ensure()
    await volumes.ensure()
    assert (volumes.directory("vol_a") / "f").read_text() == "kept"
    assert fill(volumes.directory("vol_a") / "g", 64 * MIB)


async def test_creating_again_keeps_the_files_and_sets_the_limit(volumes: Volumes) -> None:
    needs_growth(volumes)
    await volumes.create("vol_a", max_bytes=16 * MIB)
    (volumes.directory("vol_a") / "f").write_text("kept")
    await volumes.create("vol_a", max_bytes=32 * MIB)
    assert (volumes.directory("vol_a") / "f").read_text() == "kept"
    assert (await volumes.usage("vol_a")).max_bytes == 32 * MIB


async def test_delete_may_be_repeated(volumes: Volumes) -> None:
    await volumes.create("vol_a", max_bytes=16 * MIB)
    assert await volumes.list() == ["vol_a"]
    await volumes.delete("vol_a")
    await volumes.delete("vol_a")
    assert await volumes.list() == []
    with pytest.raises(NotFound):
        await volumes.usage("vol_a")
    with pytest.raises(NotFound):
        await volumes.limit("vol_a", max_bytes=16 * MIB)


@pytest.mark.parametrize("name", ["", "..", "a/b", "../a", "a\n"])
async def test_a_name_cannot_leave_its_place(volumes: Volumes, name: str) -> None:
    with pytest.raises(Invalid):
        await volumes.create(name, max_bytes=16 * MIB)


async def test_a_path_is_made_for_its_owner(volumes: Volumes) -> None:
    await volumes.create("vol_a", max_bytes=16 * MIB)
    files = volumes.directory("vol_a")
    os.close(open_directory(files, Mount("vol_a", "/data", "user/session", uid=7, gid=8)))
    found = (files / "user/session").stat()
    assert (found.st_uid, found.st_gid) == (7, 8)


async def test_a_read_only_mount_makes_nothing(volumes: Volumes) -> None:
    await volumes.create("vol_a", max_bytes=16 * MIB)
    files = volumes.directory("vol_a")
    with pytest.raises(NotFound):
        open_directory(files, Mount("vol_a", "/data", "user", read_only=True))
    assert not (files / "user").exists()


@pytest.mark.parametrize("target", ["/etc", "..", "../..", "real", "/proc/self/root"])
async def test_a_link_in_a_volume_leads_nowhere(volumes: Volumes, target: str) -> None:
    """Neither out of the volume nor to another place in it, and nothing is made or given away behind it."""
    await volumes.create("vol_a", max_bytes=16 * MIB)
    files = volumes.directory("vol_a")
    (files / "real").mkdir()
    os.symlink(target, files / "link")
    for path in ("link", "link/made"):
        with pytest.raises(StorageFailed) as caught:
            open_directory(files, Mount("vol_a", "/data", path, uid=7))
        assert caught.value.code == "not_a_directory"
    assert not (files / "real/made").exists()
    assert (files / "real").stat().st_uid == 0
    assert Path("/etc").stat().st_uid == 0
