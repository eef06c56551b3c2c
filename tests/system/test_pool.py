"""The btrfs pool itself: what a crash leaves, how much, and what a snapshot holds."""

from __future__ import annotations

import asyncio
import mmap
import os
import stat
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from dovecote.errors import Conflict, StorageFailed
from dovecote.host.storage import btrfs, loops, mounts
from dovecote.host.storage.pool import BtrfsDisks

pytestmark = [pytest.mark.system, pytest.mark.anyio]

MIB = 1 << 20
OWNER = 3_000_000


@pytest.fixture
async def disks() -> AsyncIterator[BtrfsDisks]:
    with tempfile.TemporaryDirectory(prefix="dovecote-pool-") as directory:
        driver = pool(Path(directory))
        try:
            await driver.ensure()
            yield driver
        finally:
            await driver.remove()
            assert loops.devices_of(Path(directory) / "pool") == []
            assert mounts.mounted_below(Path(directory)) == []


def pool(place: Path, max_bytes: int = 1 << 30) -> BtrfsDisks:
    return BtrfsDisks(place / "pool", place / "at", max_bytes=max_bytes)


def place_of(disks: BtrfsDisks) -> Path:
    return disks._at.parent


async def test_two_hundred_disks_cost_little(disks: BtrfsDisks) -> None:
    """In bytes; what they cost in time is for the bench."""
    for number in range(200):
        await disks.create(f"d{number}", max_bytes=512 * MIB, owner=OWNER)
    assert len(await disks.list()) == 200
    assert (await disks.usage("d199")).bytes < 100_000
    os.sync()
    assert (place_of(disks) / "pool").stat().st_blocks * 512 < 64 * MIB


def _append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def _overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"other")


def _store(path: Path) -> None:
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 4096) as stored:
        stored[0:4] = b"page"


CHANGES: dict[str, Callable[[Path], object]] = {
    "append": _append,
    "overwrite": _overwrite,
    "mmap": _store,
    "truncate": lambda path: os.truncate(path, 5),
    "mode": lambda path: path.chmod(0o600),
    "time": lambda path: os.utime(path, (1, 1)),
    "attribute": lambda path: os.setxattr(path, "user.note", b"n"),
    "name": lambda path: path.rename(path.with_name("renamed")),
    "end": lambda path: path.unlink(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
async def test_a_change_is_seen_before_the_kernel_writes_it_out(
    disks: BtrfsDisks, change: Callable[[Path], object]
) -> None:
    file = await disks.create("a", max_bytes=16 * MIB, owner=OWNER) / "upper/file"
    file.write_bytes(bytes(8192))
    for number in range(2):
        await disks.snapshot("a", f"s{number}")
        await disks.mark("a", f"s{number}")
        assert not await disks.is_changed("a")
        assert await disks.which_changed({"a": 0}) == frozenset()
        if number == 0:
            change(file)
            assert await disks.is_changed("a")
            assert await disks.which_changed({"a": 0}) == {"a"}


async def test_a_snapshot_holds_what_was_stored_through_mmap(disks: BtrfsDisks) -> None:
    disk = await disks.create("a", max_bytes=16 * MIB, owner=OWNER)
    (disk / "upper/db").write_bytes(bytes(8192))
    with open(disk / "upper/db", "r+b") as file, mmap.mmap(file.fileno(), 8192) as stored:
        stored[4096:4100] = b"page"
        copy = await disks.snapshot("a", "a.1")
        assert (copy / "upper/db").read_bytes()[4096:4100] == b"page"


async def test_a_new_process_adopts_a_pool_that_is_mounted(disks: BtrfsDisks) -> None:
    disk = await disks.create("a", max_bytes=16 * MIB, owner=OWNER)
    (disk / "upper/f").write_text("running")
    device = mounts.source_of(place_of(disks) / "at")
    again = pool(place_of(disks))
    await again.ensure()
    assert await again.list() == ["a"]
    assert mounts.source_of(place_of(disks) / "at") == device
    assert len(loops.devices_of(place_of(disks) / "pool")) == 1


async def test_a_create_that_was_cut_off_is_cleaned_up(disks: BtrfsDisks) -> None:
    top = os.open(place_of(disks) / "at", os.O_RDONLY)
    try:
        btrfs.create_subvolume(top, ".new-a")
    finally:
        os.close(top)
    assert await disks.list() == []
    await disks.ensure()
    assert not (place_of(disks) / "at/.new-a").exists()
    await disks.create("a", max_bytes=MIB, owner=OWNER)


async def test_a_format_that_was_cut_off_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "pool.new").write_bytes(b"half")
    disks = pool(tmp_path)
    try:
        await disks.ensure()
        assert not (tmp_path / "pool.new").exists()
    finally:
        await disks.remove()


async def test_the_pool_grows_with_its_setting(disks: BtrfsDisks) -> None:
    await disks.remove()
    bigger = pool(place_of(disks), max_bytes=2 << 30)
    await bigger.ensure()
    space = os.statvfs(place_of(disks) / "at")
    assert space.f_blocks * space.f_frsize == 2 << 30


async def test_deleted_bytes_go_back_to_the_file(disks: BtrfsDisks) -> None:
    """And so to the host's own file system."""
    disk = await disks.create("a", max_bytes=256 * MIB, owner=OWNER)
    (disk / "upper/f").write_bytes(os.urandom(128 * MIB))
    os.sync()
    file = place_of(disks) / "pool"
    full = file.stat().st_blocks * 512
    assert full > 128 * MIB
    await disks.delete("a")
    async with asyncio.timeout(120):
        while file.stat().st_blocks * 512 > full - 96 * MIB:
            os.sync()
            await asyncio.sleep(0.2)


async def test_something_else_at_the_mount_point_is_not_adopted(disks: BtrfsDisks) -> None:
    other = BtrfsDisks(place_of(disks) / "other", place_of(disks) / "at", max_bytes=1 << 30)
    with pytest.raises(Conflict, match=r"not .*other"):
        await other.ensure()


async def test_a_disk_in_use_keeps_the_pool_from_going(disks: BtrfsDisks) -> None:
    disk = await disks.create("a", max_bytes=16 * MIB, owner=OWNER)
    with open(disk / "upper/f", "w"), pytest.raises(StorageFailed) as caught:
        await disks.remove()
    assert caught.value.code == "busy"
    assert await disks.list() == ["a"]


async def test_names_of_the_pool_are_for_root_only(disks: BtrfsDisks) -> None:
    assert (place_of(disks) / "at").stat().st_mode & 0o777 == 0o700
    assert (place_of(disks) / "pool").stat().st_mode & 0o777 == 0o600


async def test_changes_are_named_wherever_they_are(disks: BtrfsDisks) -> None:
    """New, rewritten and renamed, in directories old and new; what has no name any more is not named."""
    disk = await disks.create("a", max_bytes=64 * MIB, owner=OWNER)
    (disk / "upper/old/deep").mkdir(parents=True)
    for number in range(3000):
        (disk / f"upper/old/deep/f{number}").write_bytes(b"")
    await disks.snapshot("a", "before")
    await disks.mark("a", "before")
    (disk / "upper/top").write_text("new")
    (disk / "upper/old/deep/f7").write_text("rewritten")
    os.link(disk / "upper/old/deep/f8", disk / "upper/second-name")
    (disk / "upper/old/deep").rename(disk / "upper/moved")
    (disk / "upper/old/made").mkdir()
    for number in range(2000):
        (disk / f"upper/old/made/n{number}").write_text("new")
    with (disk / "upper/gone").open("w") as held:
        held.write("still open")
        (disk / "upper/gone").unlink()
        await disks.snapshot("a", "after")
    changed = {each.path for each in await disks.changed("a", snapshot="after", most=10_000) or ()}
    made = {b"old/made/n%d" % number for number in range(2000)}
    assert {b"", b"top", b"moved", b"moved/f7", b"old", b"old/made"} | made <= changed
    assert {b"second-name", b"moved/f8"} <= changed
    assert len(changed) < 2020
    assert await disks.changed("a", snapshot="after", most=2000) is None


async def test_what_is_known_of_a_new_file_without_a_look_is_what_a_look_shows(disks: BtrfsDisks) -> None:
    """And nothing is said of what was there before, has another name, or carries an attribute."""
    disk = await disks.create("a", max_bytes=64 << 20, owner=5000)
    (disk / "upper/old").write_bytes(b"old")
    await disks.snapshot("a", "before")
    await disks.mark("a", "before")
    sizes = (0, 1, 500, 2047, 2048, 2049, 4096, 70_000)
    for size in sizes:
        (disk / f"upper/s{size}").write_bytes(os.urandom(size))
    (disk / "upper/s1").chmod(0o4751)
    os.chown(disk / "upper/s500", 5001, 70_000)
    os.utime(disk / "upper/s2047", ns=(1, -1_500_000_001))
    for name in ("grown", "cut", "sparse", "twice", "marked", "moved"):
        (disk / "upper" / name).write_bytes(b"x" * 1000)
    os.truncate(disk / "upper/grown", 1500)
    os.truncate(disk / "upper/cut", 10)
    with (disk / "upper/sparse").open("r+b") as file:
        file.seek(100_000)
        file.write(b"end")
    with (disk / "upper/s500").open("r+b") as file, mmap.mmap(file.fileno(), 500) as memory:
        memory[7] ^= 1
    os.link(disk / "upper/twice", disk / "upper/other")
    os.setxattr(disk / "upper/marked", "user.mark", b"1")
    (disk / "upper/moved").rename(disk / "upper/elsewhere")
    (disk / "upper/old").write_bytes(b"rewritten")
    (disk / "upper/link").symlink_to("old")
    upper = await disks.snapshot("a", "after") / "upper"
    known = {each.path.decode(): each.plain for each in await disks.changed("a", snapshot="after", most=1000) or ()}
    assert known.keys() == {path.name for path in upper.iterdir()} | {""}
    told = {name: plain for name, plain in known.items() if plain is not None}
    assert told.keys() == {f"s{size}" for size in sizes} | {"grown", "cut", "sparse", "elsewhere"}
    for name, plain in told.items():
        there = (upper / name).lstat()
        shown = (stat.S_IMODE(there.st_mode), there.st_uid, there.st_gid, there.st_size)
        assert plain[:4] == shown, name
        assert (plain.mtime_ns, plain.ctime_ns) == (there.st_mtime_ns, there.st_ctime_ns), name
        assert plain.content in (None, (upper / name).read_bytes()), name
    assert {name for name in told if told[name].content} >= {"s1", "s500", "s2047", "elsewhere"}
    only_counted = await disks.changed("a", most=1000) or ()
    assert {each.path.decode() for each in only_counted} == known.keys()
    assert not any(each.plain.content for each in only_counted if each.plain)
