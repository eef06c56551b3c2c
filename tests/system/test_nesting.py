"""Limited paths on btrfs: cut off anywhere, taken apart from inside, and who has them mounted meanwhile."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from dovecote.errors import Conflict, StorageFailed, Unsupported
from dovecote.host.storage import btrfs, groups, mounts
from dovecote.host.storage.pool import BtrfsDisks
from dovecote.host.storage.volumes import PoolVolumes, moving
from dovecote.host.storage.volumes.kept import KeptLimit, KeptLimits
from dovecote.host.storage.volumes.nesting import Nesting
from dovecote.model.volumes import Mount
from tests.contract.test_volumes import fill

pytestmark = [pytest.mark.system, pytest.mark.anyio]

MIB = 1 << 20
VOLUME = "vol_a"
CHAT = "anna/chat7"
# What the server does, stopped dead at a moment of its choice.
CUT_OFF = """
import asyncio, os, sys
from pathlib import Path
from typing import Any
from dovecote.host.storage import mounts
from dovecote.host.storage.volumes import PoolVolumes, moving
place, moment, path = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
def dies(*_, **__): os._exit(9)
def then_dies(act): return lambda *a, **k: (act(*a, **k), dies())
if moment == "copied": moving._check_room = dies
if moment == "beside": mounts.exchange = dies
if moment == "exchanged": mounts.exchange = then_dies(mounts.exchange)
if moment == "carried": moving._carry = then_dies(moving._carry)
if moment == "written": moving.Moving.move = then_dies(moving.Moving.move)
volumes = PoolVolumes(place / "pool", place / "at", max_bytes=1 << 30)
asyncio.run(volumes.limit_path("vol_a", path, max_bytes=16 << 20))
"""


@pytest.fixture
async def place() -> AsyncIterator[Path]:
    with tempfile.TemporaryDirectory(prefix="dovecote-nesting-") as directory:
        yield Path(directory)


@pytest.fixture
def mounted() -> list[str]:
    """Paths that instances have."""
    return []


@pytest.fixture
async def volumes(place: Path, mounted: list[str]) -> AsyncIterator[PoolVolumes]:
    made = PoolVolumes(place / "pool", place / "at", max_bytes=1 << 30, mounted=lambda _: mounted)
    try:
        await made.ensure()
        await made.create(VOLUME, max_bytes=64 * MIB)
        yield made
    finally:
        await made.remove()


def written(volumes: PoolVolumes, path: str, size: int = MIB) -> Path:
    folder = volumes.directory(VOLUME) / path
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "f").write_bytes(b"f" * size)
    return folder


def counted(place: Path) -> set[str]:
    """Groups of what is nested."""
    top = os.open(place / "at", os.O_RDONLY)
    try:
        return {name for name in os.listdir(btrfs.sysfs(top) / "qgroups") if name.startswith("1_")}
    finally:
        os.close(top)


def opened(volumes: PoolVolumes, path: str, *, read_only: bool = False) -> None:
    os.close(volumes.open(Mount(VOLUME, "/data", path, read_only)))


def is_only_in_memory(file: Path) -> bool:
    command = ["filefrag", "-v", str(file)]
    return "delalloc" in subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


async def until_it_holds(volumes: PoolVolumes, least: int, most: int) -> None:
    """Space of what was deleted comes back with the next commit."""
    deadline = time.monotonic() + 30
    while not least <= (held := (await volumes.usage(VOLUME)).bytes) <= most:
        assert time.monotonic() < deadline, held
        await anyio.sleep(0.1)


@pytest.mark.parametrize("moment", ["copied", "beside", "exchanged", "carried", "written"])
async def test_no_file_is_lost_or_there_twice_wherever_it_is_killed(
    place: Path, volumes: PoolVolumes, moment: str
) -> None:
    """While a directory with files, and with a limited path in it, gets a limit."""
    written(volumes, "anna")
    await volumes.limit_path(VOLUME, CHAT, max_bytes=8 * MIB)
    written(volumes, CHAT)
    done = await anyio.to_thread.run_sync(
        lambda: subprocess.run([sys.executable, "-c", CUT_OFF, place, moment, "anna"], timeout=60, check=False)
    )
    assert done.returncode == 9
    await volumes.ensure()
    files = volumes.directory(VOLUME)
    for _ in range(2):
        assert sorted(os.listdir(files)) == ["anna"]
        assert sorted(os.listdir(files / "anna")) == ["chat7", "f"]
        assert os.listdir(files / CHAT) == ["f"]
        for path in ("anna", CHAT):
            assert (files / path / "f").read_bytes() == b"f" * MIB
        assert {*os.listdir(place / "at")} - {".moving"} == {".limits", ".records", VOLUME}
        assert not list((place / "at" / ".moving").glob("*"))
        await volumes.limit_path(VOLUME, "anna", max_bytes=16 * MIB)
    await until_it_holds(volumes, 2 * MIB, 3 * MIB)
    assert fill(files / CHAT / "g", 9 * MIB)
    assert fill(files / "anna/g", 9 * MIB)


@pytest.mark.parametrize("there", ["", "anna", CHAT, f"{CHAT}/below"])
async def test_files_that_somebody_has_in_reach_are_not_copied_away(
    volumes: PoolVolumes, mounted: list[str], there: str
) -> None:
    chat = written(volumes, CHAT)
    mounted.append(there)
    with pytest.raises(Conflict) as caught:
        await volumes.limit_path(VOLUME, CHAT, max_bytes=8 * MIB)
    assert caught.value.code == "path_in_use"
    assert (chat / "f").read_bytes() == b"f" * MIB
    mounted[:] = ["ben", "anna/chat8"]
    await volumes.limit_path(VOLUME, CHAT, max_bytes=8 * MIB)
    mounted.append(there)
    await volumes.limit_path(VOLUME, CHAT, max_bytes=4 * MIB)
    assert (chat / "f").read_bytes() == b"f" * MIB


async def test_an_empty_directory_is_replaced_unless_somebody_has_it(volumes: PoolVolumes, mounted: list[str]) -> None:
    (volumes.directory(VOLUME) / CHAT).mkdir(parents=True)
    mounted.append(CHAT)
    with pytest.raises(Conflict):
        await volumes.limit_path(VOLUME, CHAT, max_bytes=4 * MIB)
    mounted[:] = [""]
    await volumes.limit_path(VOLUME, CHAT, max_bytes=4 * MIB)
    assert fill(volumes.directory(VOLUME) / CHAT / "g", 8 * MIB)


async def test_files_in_place_of_what_had_the_limit_are_not_handed_out_without_it(volumes: PoolVolumes) -> None:
    await volumes.limit_path(VOLUME, CHAT, max_bytes=4 * MIB)
    (volumes.directory(VOLUME) / CHAT).rmdir()
    chat = written(volumes, CHAT)
    with pytest.raises(Conflict) as caught:
        opened(volumes, CHAT)
    assert caught.value.code == "path_in_use"
    os.close(volumes.open(Mount(VOLUME, "/data", CHAT, read_only=True)))
    await volumes.limit_path(VOLUME, CHAT, max_bytes=4 * MIB)
    opened(volumes, CHAT)
    assert fill(chat / "g", 8 * MIB)


@pytest.mark.parametrize("times", [1, 99])
async def test_who_swaps_the_directory_on_the_way_gets_the_limit_or_nothing(
    volumes: PoolVolumes, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    await volumes.limit_path(VOLUME, CHAT, max_bytes=4 * MIB)
    chat = volumes.directory(VOLUME) / CHAT
    chat.rmdir()
    replace, left = Nesting._replace, [None] * times

    def swapped(*arguments: Any) -> None:
        replace(*arguments)
        if left:
            left.pop()
            chat.rmdir()
            chat.mkdir()

    monkeypatch.setattr(Nesting, "_replace", swapped)
    if times > 1:
        with pytest.raises(Conflict):
            opened(volumes, CHAT)
        return
    opened(volumes, CHAT)
    assert fill(chat / "f", 8 * MIB)


async def test_what_was_moved_counts_where_it_is_once_it_is_mounted(volumes: PoolVolumes) -> None:
    for path in ("anna", "ben", CHAT):
        await volumes.limit_path(VOLUME, path, max_bytes=8 * MIB)
    written(volumes, CHAT, 6 * MIB)
    files = volumes.directory(VOLUME)
    await until_it_holds(volumes, 6 * MIB, 7 * MIB)
    (files / CHAT).rename(files / "ben/chat7")
    await volumes.limit_path(VOLUME, "ben/chat7", max_bytes=8 * MIB)
    assert fill(files / "ben/g", 4 * MIB)
    assert fill(files / "anna/g", 7 * MIB) is None


async def test_groups_go_with_what_they_count(place: Path, volumes: PoolVolumes) -> None:
    for path in ("anna", CHAT, "anna/chat7/task", "ben"):
        await volumes.limit_path(VOLUME, path, max_bytes=8 * MIB)
    assert len(counted(place)) == 3
    shutil.rmtree(volumes.directory(VOLUME) / "anna")
    deadline = time.monotonic() + 60
    while len(counted(place)) != 1:
        assert time.monotonic() < deadline
        await volumes.ensure()
        await anyio.sleep(0.2)
    await volumes.delete(VOLUME)
    assert counted(place) == set()
    assert sorted(os.listdir(place / "at/.limits")) == []


async def test_a_full_volume_can_be_made_larger_and_its_limits_changed(volumes: PoolVolumes) -> None:
    """Though the kernel would let nobody change a quota from inside of what is full."""
    await volumes.limit_path(VOLUME, CHAT, max_bytes=32 * MIB)
    assert fill(volumes.directory(VOLUME) / "f", 80 * MIB)
    with pytest.raises(StorageFailed) as caught:
        await volumes.limit_path(VOLUME, "another/deep/one", max_bytes=MIB)
    assert caught.value.code == "disk_full"
    await volumes.limit_path(VOLUME, CHAT, max_bytes=16 * MIB)
    await volumes.unlimit_path(VOLUME, CHAT)
    await volumes.limit(VOLUME, max_bytes=128 * MIB)
    assert fill(volumes.directory(VOLUME) / CHAT / "g", 16 * MIB) is None


async def test_who_mounts_waits_for_a_limit_that_is_being_set(
    volumes: PoolVolumes, monkeypatch: pytest.MonkeyPatch
) -> None:
    nesting: Nesting = volumes._nesting
    nesting._changing.add((VOLUME, CHAT))
    opened(volumes, "ben")
    opened(volumes, "anna/chat8")
    (volumes.directory(VOLUME) / CHAT).mkdir(parents=True)
    opening = [asyncio.ensure_future(asyncio.to_thread(opened, volumes, path)) for path in ("", "anna", CHAT)]
    opening.append(asyncio.ensure_future(asyncio.to_thread(opened, volumes, CHAT, read_only=True)))
    await asyncio.sleep(0)
    nesting._changing.clear()
    await asyncio.gather(*opening)
    monkeypatch.setattr("dovecote.host.storage.volumes.nesting._CHANGES_WITHIN", 0.0)
    nesting._changing.add((VOLUME, CHAT))
    for read_only in (False, True):
        with pytest.raises(Conflict) as caught:
            opened(volumes, "anna", read_only=read_only)
        assert caught.value.code == "path_in_use"


async def test_copies_are_on_the_disk_before_they_take_the_place_of_files(
    place: Path, volumes: PoolVolumes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what tells the next start of them, or a power cut would leave names without content."""
    chat = written(volumes, CHAT)
    exchange = mounts.exchange
    waiting: list[Path] = []

    def looked_at(*arguments: Any) -> None:
        there = [*chat.parent.glob(".dovecote-*/f"), *(place / "at/.moving").glob("*")]
        assert len(there) == 2
        waiting.extend(each for each in there if is_only_in_memory(each))
        exchange(*arguments)

    monkeypatch.setattr(mounts, "exchange", looked_at)
    (chat / "g").write_bytes(b"g" * MIB)
    assert is_only_in_memory(chat / "g")
    await volumes.limit_path(VOLUME, CHAT, max_bytes=8 * MIB)
    assert waiting == []
    assert (chat / "f").read_bytes() == b"f" * MIB


async def test_two_limits_of_one_path_copy_its_files_once(
    volumes: PoolVolumes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though nobody keeps them apart: the second one would copy what the first one takes away."""
    chat = written(volumes, CHAT)
    limit, copy, again = volumes._nesting.limit, moving._copy, threading.Event()
    first, second = (threading.Thread(target=limit, args=(VOLUME, CHAT, size)) for size in (8 * MIB, 16 * MIB))
    copies: list[int] = []

    def slowed(source: int, target: int) -> None:
        copies.append(source)
        if len(copies) == 1:
            second.start()
            copy(source, target)
            again.wait(0.5)
        else:
            again.set()
            first.join(60)
            copy(source, target)

    monkeypatch.setattr(moving, "_copy", slowed)
    first.start()
    for each in (first, second):
        await anyio.to_thread.run_sync(each.join, 60)
    assert (chat / "f").read_bytes() == b"f" * MIB
    assert len(copies) == 1
    assert (await volumes.path_usage(VOLUME, CHAT)).max_bytes == 16 * MIB


@pytest.mark.parametrize("lifts", [False, True])
async def test_who_mounts_beside_a_change_does_not_bring_back_the_old_limit(
    volumes: PoolVolumes, monkeypatch: pytest.MonkeyPatch, lifts: bool
) -> None:
    await volumes.limit_path(VOLUME, CHAT, max_bytes=4 * MIB)
    nesting: Nesting = volumes._nesting
    act = partial(nesting.lift, VOLUME, CHAT) if lifts else partial(nesting.limit, VOLUME, CHAT, 16 * MIB)
    changing, read = threading.Thread(target=act), KeptLimits.on_the_way

    def then_it_changes(kept: KeptLimits, volume: str, path: str) -> dict[str, KeptLimit]:
        found = read(kept, volume, path)
        if path == CHAT:
            changing.start()
            changing.join(0.5)
        return found

    monkeypatch.setattr(KeptLimits, "on_the_way", then_it_changes)
    await anyio.to_thread.run_sync(opened, volumes, CHAT)
    await anyio.to_thread.run_sync(changing.join, 60)
    assert fill(volumes.directory(VOLUME) / CHAT / "g", 8 * MIB) is None


async def test_many_limits_at_once_are_each_kept(volumes: PoolVolumes) -> None:
    async with anyio.create_task_group() as tasks:
        for number in range(200):
            tasks.start_soon(
                lambda path: volumes.limit_path(VOLUME, path, max_bytes=MIB), f"user{number % 20}/chat{number}"
            )
    for number in range(0, 200, 20):
        assert fill(volumes.directory(VOLUME) / f"user{number % 20}/chat{number}/f", 2 * MIB)
    assert (await volumes.path_usage(VOLUME, "user1/chat21")).max_bytes == MIB


async def test_ordinary_quotas_cannot_and_say_so(place: Path) -> None:
    """As a kernel before 6.7 has them."""
    volumes = PoolVolumes(place / "pool", place / "at", max_bytes=1 << 30)
    volumes._disks = BtrfsDisks(place / "pool", place / "at", max_bytes=1 << 30, parts=("files",), simple=False)
    try:
        await volumes.ensure()
        await volumes.create(VOLUME, max_bytes=16 * MIB)
        with pytest.raises(Unsupported) as caught:
            await volumes.limit_path(VOLUME, CHAT, max_bytes=4 * MIB)
        assert caught.value.code == "no_path_limits"
        assert (await volumes.usage(VOLUME)).max_bytes == 16 * MIB
    finally:
        await volumes.remove()


def test_a_group_is_named_after_what_it_counts() -> None:
    assert groups.of(257) == (1 << 48) + 257
