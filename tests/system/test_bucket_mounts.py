"""Mounts of buckets whose callers leave early, and in a root that nothing runs in yet. A script stands for rclone."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dovecote.errors import StorageFailed
from dovecote.host.instances import mounting
from dovecote.host.storage import mounts
from dovecote.host.storage.volumes import Buckets, buckets, parse_prefixes
from dovecote.host.storage.volumes.opening import clone_mount, open_directory, open_mount
from dovecote.model.volumes import Mount
from tests.system.guest_rig import BOUND, until

pytestmark = [pytest.mark.system, pytest.mark.anyio]

# Called as `mount SOURCE AT ...`. What it serves as `slow` it mounts when it may.
RCLONE = """#!/bin/sh
echo $$ >> $3.starts
while [ ${3##*/} = slow ] && [ ! -e $3.go ]; do sleep 0.01; done
[ ! -e $3.fails ] || exit 1
mount -t tmpfs -o size=1m data $3 && echo here > $3/file
exec sleep 60
"""
SLOW = Mount("@slow", "/data", read_only=True)
QUICK = Mount("@quick", "/data", read_only=True)


@pytest.fixture
def at() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="dovecote-buckets-") as name:
        yield Path(name) / "at"
        assert mounts.mounted_below(Path(name)) == []


@pytest.fixture
async def served(at: Path) -> Any:
    program = at.parent / "rclone"
    program.write_text(RCLONE)
    program.chmod(0o755)
    rooms = Buckets(parse_prefixes("slow=s3://bucket, quick=s3://bucket"), at, program=str(program))
    try:
        yield rooms
    finally:
        (at / "slow.go").touch()
        await rooms.remove()


def starts(at: Path, name: str) -> list[str]:
    path = at / f"{name}.starts"
    return path.read_text().split() if path.exists() else []


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_what_one_caller_began_serves_the_next_when_the_first_has_left(at: Path, served: Buckets) -> None:
    first = asyncio.create_task(served.open(SLOW))
    await until(lambda: len(starts(at, "slow")) == 1)
    await cancelled(first)
    second = asyncio.create_task(served.open(SLOW))
    await asyncio.sleep(0)
    os.close(await served.open(QUICK))  # another one waits for none of it; by then the second has begun
    (at / "slow.go").touch()
    async with asyncio.timeout(BOUND):
        mounted = await second
    try:
        assert Path(f"/proc/self/fd/{mounted}/file").read_text() == "here\n"
    finally:
        os.close(mounted)
    assert len(starts(at, "slow")) == 1


async def test_a_start_that_fails_when_nobody_waits_is_tried_again_by_the_next(at: Path, served: Buckets) -> None:
    first = asyncio.create_task(served.open(SLOW))
    await until(lambda: len(starts(at, "slow")) == 1)
    await cancelled(first)
    (at / "slow.fails").touch()
    (at / "slow.go").touch()
    await until(lambda: not (at / "slow.json").exists())  # its record goes with it
    (at / "slow.fails").unlink()

    async def is_mounted() -> bool:
        with contextlib.suppress(StorageFailed):  # joined while the first was ending
            os.close(await served.open(SLOW))
            return True
        return False

    await until(is_mounted)
    gc.collect()  # a failure that nobody has heard of would be told here


async def test_removing_waits_for_what_is_being_mounted(at: Path, served: Buckets) -> None:
    first = asyncio.create_task(served.open(SLOW))
    await until(lambda: len(starts(at, "slow")) == 1)
    await cancelled(first)
    removing = asyncio.create_task(served.remove())
    os.close(await served.open(QUICK))
    (at / "slow.go").touch()
    async with asyncio.timeout(BOUND):
        await removing
    assert mounts.mounted_below(at) == []
    assert not Path(f"/proc/{starts(at, 'slow')[0]}").exists()


class Late:
    """Opens what it is asked for when it may."""

    def __init__(self, opens: Callable[..., int]) -> None:
        self.opens = opens
        self.begun, self.may_go_on, self.opened = threading.Event(), threading.Event(), 0

    def __call__(self, place: Path | int, mount: Mount, userns: int | None) -> int:
        self.begun.set()
        assert self.may_go_on.wait(BOUND)
        descriptor = self.opens(place, mount, userns)
        self.opened += 1
        return descriptor


def of_bucket(served: Buckets, at: Path, patch: pytest.MonkeyPatch) -> tuple[Any, Mount, Late]:
    late = Late(open_mount)
    patch.setattr(buckets, "open_mount", late)
    return SimpleNamespace(buckets=served), QUICK, late


def of_volume(served: Buckets, at: Path, patch: pytest.MonkeyPatch) -> tuple[Any, Mount, Late]:
    late = Late(clone_mount)
    patch.setattr(mounting, "clone_mount", late)
    volumes = SimpleNamespace(open=lambda mount: open_directory(at / "quick", mount))
    return SimpleNamespace(volumes=volumes), Mount("vol_1", "/data"), late


@pytest.mark.parametrize("of", [of_bucket, of_volume])
async def test_a_mount_that_comes_when_its_caller_has_left_is_closed(
    of: Callable[[Buckets, Path, pytest.MonkeyPatch], tuple[Any, Mount, Late]],
    at: Path,
    served: Buckets,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    os.close(await served.open(QUICK))
    parts, mount, late = of(served, at, monkeypatch)
    instance = SimpleNamespace(id_base=1 << 21, claim=SimpleNamespace(mounts=(mount,)), mounted={})
    before = descriptors()
    task = asyncio.create_task(mounting.mount_all(parts, cast(Any, instance)))
    await asyncio.to_thread(late.begun.wait, BOUND)
    await cancelled(task)
    late.may_go_on.set()
    await until(lambda: late.opened == 1 and descriptors() <= before)


async def test_a_bucket_is_mounted_in_a_root_that_nothing_runs_in_yet(at: Path, served: Buckets) -> None:
    root = at.parent / "root"
    root.mkdir()
    parts = SimpleNamespace(buckets=served)
    instance = SimpleNamespace(id_base=1 << 21, claim=SimpleNamespace(mounts=(QUICK,)))
    try:
        await mounting.place_all(cast(Any, parts), cast(Any, instance), root)
        assert (root / "data/file").read_text() == "here\n"
    finally:
        mounts.unmount(root / "data", detach=True)
