"""What every driver of `Volumes` promises of limits of paths, or says that it cannot."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import errno
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import anyio
import pytest

from dovecote.errors import NotFound, StorageFailed, Unsupported
from dovecote.host.storage.volumes import LoopVolumes, PoolVolumes, Volumes, closing
from dovecote.host.storage.volumes.juicefs import JuiceFSVolumes
from dovecote.host.storage.volumes.kept import KeptLimit, KeptLimits
from dovecote.model.volumes import Mount
from tests.contract.test_volumes import fill, juicefs

pytestmark = [pytest.mark.system, pytest.mark.anyio]

MIB = 1 << 20
VOLUME = "vol_a"
CHAT = "anna/chat7"


@pytest.fixture(params=["btrfs", "juicefs"])
async def volumes(request: pytest.FixtureRequest) -> AsyncIterator[Volumes]:
    with tempfile.TemporaryDirectory(prefix="dovecote-paths-") as directory:
        place = Path(directory)
        driver: Volumes
        if request.param == "btrfs":
            driver = PoolVolumes(place / "pool", place / "at", max_bytes=1 << 30)
        else:
            driver = juicefs(place)
        try:
            await driver.ensure()
            await driver.create(VOLUME, max_bytes=64 * MIB)
            yield driver
        finally:
            await driver.remove()


async def opened(volumes: Volumes, path: str, *, read_only: bool = False) -> Path:
    """The directory that a mount of a path would show; it is made as for one."""
    mount = Mount(VOLUME, "/data", path, read_only)
    os.close(await anyio.to_thread.run_sync(volumes.open, mount))
    return volumes.directory(VOLUME) / path


async def becomes(volumes: Volumes, claim: Callable[[int], bool], path: str | None = None) -> int:
    """What a path, or the volume, holds. Deleted space comes back a moment later, and hosts tell each other late."""
    deadline = time.monotonic() + 30
    while True:
        usage = await (volumes.usage(VOLUME) if path is None else volumes.path_usage(VOLUME, path))
        if claim(usage.bytes):
            return usage.bytes
        assert time.monotonic() < deadline, usage
        await anyio.sleep(0.1)


def refused(directory: Path, most: int) -> bool:
    """Whether somebody cannot write so much there, as the limit has it."""
    error = fill(directory / "filled", most)
    return error is not None and error.errno in (errno.EDQUOT, errno.ENOSPC)


def fill_up(directory: Path) -> None:
    """To the last block, whatever becomes of the file that meets the limit."""
    for size in (8 * MIB, MIB, 65536, 4096):
        assert any(fill(directory / f"{size}-{number}", size) for number in range(300))


async def test_a_path_holds_so_much_and_the_rest_of_the_volume_goes_on(volumes: Volumes) -> None:
    await volumes.limit_path(VOLUME, CHAT, max_bytes=8 * MIB)
    chat = await opened(volumes, CHAT)
    (chat / "before").write_bytes(b"b" * MIB)
    assert refused(chat, 40 * MIB)
    assert (chat / "before").read_bytes() == b"b" * MIB
    assert sum(each.stat().st_size for each in chat.iterdir()) <= 8 * MIB
    assert not refused(await opened(volumes, "anna/chat8"), 16 * MIB)
    assert not refused(volumes.directory(VOLUME), 8 * MIB)


async def test_what_a_path_holds_counts_for_the_volume(volumes: Volumes) -> None:
    await volumes.limit_path(VOLUME, CHAT, max_bytes=48 * MIB)
    chat = await opened(volumes, CHAT)
    assert not refused(chat, 40 * MIB)
    await becomes(volumes, lambda held: held >= 40 * MIB)
    await becomes(volumes, lambda held: held >= 40 * MIB, CHAT)
    assert refused(volumes.directory(VOLUME), 40 * MIB)
    assert (await volumes.usage(VOLUME)).max_bytes == 64 * MIB


async def test_the_volumes_limit_is_changed_with_limited_paths_in_it(volumes: Volumes) -> None:
    await volumes.limit_path(VOLUME, CHAT, max_bytes=200 * MIB)
    chat = await opened(volumes, CHAT)
    await volumes.limit(VOLUME, max_bytes=16 * MIB)
    assert refused(chat, 32 * MIB)
    await volumes.limit(VOLUME, max_bytes=96 * MIB)
    assert not refused(chat, 32 * MIB)
    assert (await volumes.usage(VOLUME)).max_bytes == 96 * MIB


@pytest.mark.parametrize("order", [("anna", CHAT), (CHAT, "anna")])
async def test_a_limit_within_a_limit_counts_for_both(volumes: Volumes, order: tuple[str, str]) -> None:
    """Whichever was set first, and with files there before."""
    sizes = {"anna": 24 * MIB, CHAT: 8 * MIB}
    for path in order:
        folder = await opened(volumes, path)
        if not (folder / "early").exists():
            (folder / "early").write_bytes(b"e" * MIB)
        await volumes.limit_path(VOLUME, path, max_bytes=sizes[path])
    for path in order:
        assert (volumes.directory(VOLUME) / path / "early").read_bytes() == b"e" * MIB
    chat, anna = await opened(volumes, CHAT), await opened(volumes, "anna")
    assert refused(chat, 16 * MIB)
    assert fill(chat / "more", 5 * MIB) is None or isinstance(volumes, PoolVolumes)
    await becomes(volumes, lambda held: held >= 7 * MIB, "anna")
    assert not refused(anna, 8 * MIB)
    assert refused(anna, 20 * MIB)
    await becomes(volumes, lambda held: held <= 24 * MIB, "anna")
    assert not refused(await opened(volumes, "ben"), 16 * MIB)


async def test_limits_are_raised_lowered_and_lifted_while_in_use(volumes: Volumes) -> None:
    await volumes.limit_path(VOLUME, CHAT, max_bytes=4 * MIB)
    chat = await opened(volumes, CHAT)
    with open(chat / "held", "wb") as held:
        assert refused(chat, 8 * MIB)
        await volumes.limit_path(VOLUME, CHAT, max_bytes=24 * MIB)
        assert held.write(b"x") == 1
    assert fill(chat / "more", 8 * MIB) is None
    assert (await volumes.path_usage(VOLUME, CHAT)).max_bytes == 24 * MIB
    await volumes.limit_path(VOLUME, CHAT, max_bytes=6 * MIB)
    assert fill(chat / "yet more", MIB) is not None
    for _ in range(2):
        await volumes.unlimit_path(VOLUME, CHAT)
    assert fill(chat / "yet more", 32 * MIB) is None
    with pytest.raises(NotFound) as caught:
        await volumes.path_usage(VOLUME, CHAT)
    assert caught.value.code == "no_such_limit"
    assert not refused(await opened(volumes, CHAT), 8 * MIB)


async def test_files_that_were_there_stay_and_count(volumes: Volumes) -> None:
    chat = await opened(volumes, CHAT)
    (chat / "deep/er").mkdir(parents=True)
    (chat / "deep/er/file").write_bytes(b"f" * 3 * MIB)
    (chat / "deep/er/file").chmod(0o640)
    os.chown(chat / "deep/er/file", 7, 8)
    os.link(chat / "deep/er/file", chat / "again")
    os.symlink("/etc/passwd", chat / "link")
    os.chown(chat, 5, 6)
    await volumes.limit_path(VOLUME, CHAT, max_bytes=8 * MIB)
    chat = volumes.directory(VOLUME) / CHAT
    found = (chat / "deep/er/file").stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777, found.st_nlink) == (7, 8, 0o640, 2)
    assert os.readlink(chat / "link") == "/etc/passwd"
    assert (chat.stat().st_uid, chat.stat().st_gid) == (5, 6)
    assert sorted(os.listdir(chat.parent)) == ["chat7"]
    await becomes(volumes, lambda held: held >= 3 * MIB, CHAT)
    assert refused(chat, 7 * MIB)
    await becomes(volumes, lambda held: held < 10 * MIB)  # they are not there twice


async def test_a_limited_directory_that_was_removed_comes_again_with_its_limit(volumes: Volumes) -> None:
    """As whoever has what is above it mounted can: the sandbox removes it, or makes one of its own in its place."""
    await volumes.limit_path(VOLUME, CHAT, max_bytes=4 * MIB)
    for makes_own in (False, True):
        chat = await opened(volumes, CHAT)
        assert refused(chat, 8 * MIB)
        shutil.rmtree(chat)
        if makes_own:
            chat.mkdir()
        with pytest.raises(NotFound):
            await volumes.path_usage(VOLUME, CHAT)
        chat = await opened(volumes, CHAT)
        assert fill(chat / "new", 2 * MIB) is None
        assert refused(chat, 8 * MIB)
        await becomes(volumes, lambda held: held >= 2 * MIB, CHAT)


async def test_a_limit_is_there_after_the_next_start(volumes: Volumes) -> None:
    await volumes.limit_path(VOLUME, CHAT, max_bytes=4 * MIB)
    (await opened(volumes, CHAT) / "f").write_text("kept")
    await volumes.remove()
    await volumes.ensure()
    chat = await opened(volumes, CHAT)
    assert (chat / "f").read_text() == "kept"
    assert refused(chat, 8 * MIB)
    shutil.rmtree(chat)
    assert refused(await opened(volumes, CHAT), 8 * MIB)


async def test_a_volume_is_deleted_with_its_limited_paths(volumes: Volumes) -> None:
    for path in ("anna", CHAT, "ben"):
        await volumes.limit_path(VOLUME, path, max_bytes=4 * MIB)
        (await opened(volumes, path) / "f").write_text("x")
    assert refused(volumes.directory(VOLUME) / CHAT, 8 * MIB)
    fill_up(volumes.directory(VOLUME))
    for _ in range(2):
        await volumes.delete(VOLUME)
    assert await volumes.list() == []
    await volumes.create(VOLUME, max_bytes=64 * MIB)
    with pytest.raises(NotFound):
        await volumes.path_usage(VOLUME, CHAT)
    assert not refused(await opened(volumes, CHAT), 8 * MIB)


@pytest.mark.parametrize("target", ["/etc", "..", "real", "/proc/self/root"])
async def test_no_link_leads_a_limit_elsewhere(volumes: Volumes, target: str) -> None:
    files = volumes.directory(VOLUME)
    (files / "real").mkdir()
    os.symlink(target, files / "link")
    for path in ("link", "link/made"):
        with pytest.raises(StorageFailed) as caught:
            await volumes.limit_path(VOLUME, path, max_bytes=4 * MIB)
        assert caught.value.code == "not_a_directory"
        with pytest.raises(NotFound):
            await volumes.path_usage(VOLUME, path)
    assert os.readlink(files / "link") == target
    assert os.listdir(files / "real") == []


@pytest.mark.parametrize("replaced", ["anna", CHAT])
@pytest.mark.parametrize("is_link", [True, False])
async def test_what_somebody_puts_in_place_of_a_limited_directory_ends_its_limit_without_a_failure(
    volumes: Volumes, replaced: str, is_link: bool
) -> None:
    await volumes.limit_path(VOLUME, CHAT, max_bytes=4 * MIB)
    place = volumes.directory(VOLUME) / replaced
    shutil.rmtree(place)
    if is_link:
        place.symlink_to("/")
    else:
        place.write_text("a file")
    with pytest.raises(NotFound) as caught:
        await volumes.path_usage(VOLUME, CHAT)
    assert caught.value.code == "no_such_path"
    with pytest.raises(StorageFailed):
        await opened(volumes, CHAT)
    for _ in range(2):
        await volumes.unlimit_path(VOLUME, CHAT)
    with pytest.raises(NotFound) as caught:
        await volumes.path_usage(VOLUME, CHAT)
    assert caught.value.code == "no_such_limit"
    assert os.path.islink(place) == is_link


async def test_no_link_that_is_put_there_meanwhile_is_followed(
    volumes: Volumes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that holds nothing answers where one is."""
    await volumes.limit_path(VOLUME, CHAT, max_bytes=8 * MIB)
    chat = await opened(volumes, CHAT)
    (chat / "f").write_bytes(b"f" * 4 * MIB)
    await becomes(volumes, lambda held: held >= 4 * MIB, CHAT)
    statvfs, seen = os.statvfs, []

    def swapped(place: int | str | Path) -> os.statvfs_result:
        if not chat.is_symlink():
            chat.parent.rename(chat.parent.with_name("aside"))
            chat.parent.mkdir()
            chat.symlink_to("/proc")
        space = statvfs(place)
        seen.append(space.f_blocks)
        return space

    monkeypatch.setattr(os, "statvfs", swapped)
    assert (await volumes.path_usage(VOLUME, CHAT)).bytes >= 4 * MIB
    if chat.is_symlink():
        shutil.rmtree(chat.parent)
        chat.parent.with_name("aside").rename(chat.parent)
    await volumes.unlimit_path(VOLUME, CHAT)
    assert 0 not in seen


async def test_a_limit_that_takes_long_does_not_come_back_after_it_was_lifted(
    volumes: Volumes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever lifts it then is next, though nobody waits for the first one any more."""
    lifting: list[concurrent.futures.Future[None]] = []
    prepared, loop = KeptLimits.prepared, asyncio.get_running_loop()

    @contextlib.contextmanager
    def slowed(kept: KeptLimits, volume: str, limit: KeptLimit) -> Iterator[Callable[[], object]]:
        with prepared(kept, volume, limit) as keep:
            lifting.append(asyncio.run_coroutine_threadsafe(volumes.unlimit_path(VOLUME, CHAT), loop))
            concurrent.futures.wait(lifting, 0.5)
            yield keep

    monkeypatch.setattr(KeptLimits, "prepared", slowed)
    await volumes.limit_path(VOLUME, CHAT, max_bytes=4 * MIB)
    await asyncio.wrap_future(lifting[0])
    with pytest.raises(NotFound) as caught:
        await volumes.path_usage(VOLUME, CHAT)
    assert caught.value.code == "no_such_limit"
    assert not refused(await opened(volumes, CHAT), 8 * MIB)


async def test_what_is_not_there_has_no_limit(volumes: Volumes) -> None:
    with pytest.raises(NotFound):
        await volumes.limit_path("vol_missing", CHAT, max_bytes=4 * MIB)
    with pytest.raises(NotFound):
        await volumes.path_usage(VOLUME, CHAT)
    await volumes.unlimit_path(VOLUME, CHAT)
    assert os.listdir(volumes.directory(VOLUME)) == []


async def test_more_files_than_the_limit_or_the_volume_has_room_for_stay_as_they_are(volumes: Volumes) -> None:
    chat = await opened(volumes, CHAT)
    (chat / "f").write_bytes(b"f" * 8 * MIB)
    if isinstance(volumes, JuiceFSVolumes):
        await volumes.limit_path(VOLUME, CHAT, max_bytes=4 * MIB)
        assert refused(chat, MIB)
    else:
        with pytest.raises(StorageFailed) as caught:
            await volumes.limit_path(VOLUME, CHAT, max_bytes=4 * MIB)
        assert caught.value.code == "disk_full"
        assert not refused(chat, 16 * MIB)
    assert (chat / "f").read_bytes() == b"f" * 8 * MIB
    assert os.listdir(chat.parent) == ["chat7"]


async def test_a_path_in_a_limited_path_is_opened_within_its_limit(volumes: Volumes) -> None:
    await volumes.limit_path(VOLUME, "anna", max_bytes=4 * MIB)
    assert refused(await opened(volumes, "anna/chat/task"), 8 * MIB)
    with pytest.raises(NotFound):
        await opened(volumes, "anna/other", read_only=True)


async def test_small_files_count_too(volumes: Volumes) -> None:
    await volumes.limit_path(VOLUME, CHAT, max_bytes=2 * MIB)
    chat = await opened(volumes, CHAT)
    script = 'i=0; while [ $i -lt 9000 ]; do echo x > "f$i" || exit 9; i=$((i+1)); done'
    done = await anyio.to_thread.run_sync(
        lambda: subprocess.run(["sh", "-c", script], cwd=chat, capture_output=True, timeout=120, check=False)
    )
    assert done.returncode == 9


async def test_a_driver_that_cannot_says_so(tmp_path: Path) -> None:
    driver = LoopVolumes(tmp_path / "images", tmp_path / "at")
    try:
        await driver.ensure()
        await driver.create(VOLUME, max_bytes=16 * MIB)
        with pytest.raises(Unsupported) as caught:
            await driver.limit_path(VOLUME, CHAT, max_bytes=4 * MIB)
        assert (caught.value.code, "btrfs" in caught.value.hint) == ("no_path_limits", True)
        with closing(driver.open(Mount(VOLUME, "/data", CHAT))) as place:
            assert os.fstat(place).st_uid == 1000
    finally:
        await driver.remove()
