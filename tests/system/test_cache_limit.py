"""The size of the host's cache, with real mounts and a disk that is really full."""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dovecote.errors import StorageFailed
from dovecote.host.storage import cache_limit, mounts
from dovecote.host.storage.bucket import open_bucket
from dovecote.host.storage.cache_limit import CacheLimit, read_figures
from dovecote.host.storage.evicting import Evicted, Measured, evict
from dovecote.host.storage.roots import Roots
from dovecote.host.storage.trees import Trees
from dovecote.model.trees import Workspace

pytestmark = [pytest.mark.system, pytest.mark.anyio]

MIB = 1 << 20


@dataclass
class Place:
    directory: Path
    trees: Trees
    limit: CacheLimit
    roots: Roots

    async def needed(self) -> frozenset[str]:
        return self.roots.in_use() & self.trees.image_files.recorded().keys()

    def save(self, name: str, size: int = MIB) -> str:
        source = self.directory / "sources" / name
        source.mkdir(parents=True)
        (source / "file").write_bytes(secrets.token_bytes(size))
        return self.trees.save_directory(source).digest

    def objects(self) -> int:
        return sum(1 for _ in self.trees.objects_dir.glob("*/*"))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """One of 16 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", path], check=True, timeout=10)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True, timeout=10)


def fill(disk: Path) -> None:
    """Up to the last MiB."""
    now = os.statvfs(disk)
    (disk / "ballast").write_bytes(b"x" * (now.f_bavail * now.f_frsize - MIB))


@pytest.fixture
async def place(tmp_path: Path, disk: Path) -> AsyncIterator[Place]:
    trees = Trees(open_bucket(f"file://{tmp_path}/store"), disk / "cache")
    limit = CacheLimit(trees, disk / "cache", limit_bytes=3 * MIB)
    roots = Roots(limit.image, trees.objects_dir, tmp_path / "run", used=trees.image_files.used)
    made = Place(tmp_path, trees, limit, roots)
    limit.begin(roots, made.needed)
    yield made
    await roots.remove()
    trees.close()
    assert mounts.mounted_below(tmp_path / "run") == []


async def test_what_is_mounted_and_used_can_be_read_and_the_rest_comes_again(place: Place) -> None:
    used, *idle = [place.save(name) for name in "abcde"]
    for tree in (used, *idle):
        await place.roots.hold(Workspace(tree))
    for tree in idle:
        await place.roots.release(Workspace(tree))
    upper = place.directory / "upper"
    upper.mkdir()
    async with place.roots.merged(Workspace(used), upper, id_base=0) as merged:
        await place.limit.tick()
        assert (merged / "file").read_bytes() == (place.directory / "sources/a/file").read_bytes()
    assert place.objects() == 2  # nine tenths of three
    assert used in place.roots.mounted()
    for tree, name in zip(idle, "bcde", strict=True):
        async with place.roots.merged(Workspace(tree), upper, id_base=0) as merged:
            assert (merged / "file").read_bytes() == (place.directory / f"sources/{name}/file").read_bytes()
    figures = read_figures(place.directory / "disk/cache")
    assert figures is not None
    assert figures.evicted_bytes >= 3 * MIB
    assert figures.needed_bytes <= figures.bytes <= figures.limit_bytes


async def test_nothing_is_evicted_before_it_is_known_what_runs(place: Place) -> None:
    early = CacheLimit(place.trees, place.directory / "disk/cache", limit_bytes=1)
    place.save("a")
    await early.tick()
    assert place.objects() == 1


async def test_a_full_disk_costs_a_claim_only_what_nobody_uses(
    place: Place, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place.limit, "_limit", 0)
    wanted = place.save("wanted", 4 * MIB)
    held = place.save("held")
    await place.roots.hold(Workspace(held))
    other = place.save("other", 5 * MIB)
    await asyncio.to_thread(place.trees.ensure_image, other)
    for path in place.trees.objects_dir.glob("*/*"):
        if path.stat().st_size == 4 * MIB:
            path.unlink()
    fill(disk)
    with pytest.raises(StorageFailed) as caught:
        await asyncio.to_thread(place.trees.ensure_image, wanted)
    assert caught.value.code == "disk_full"
    await place.roots.hold(Workspace(wanted))
    assert place.roots.in_use() == {held, wanted}
    upper = place.directory / "upper"
    upper.mkdir()
    for tree, name in ((wanted, "wanted"), (held, "held")):
        async with place.roots.merged(Workspace(tree), upper, id_base=0) as merged:
            assert (merged / "file").read_bytes() == (place.directory / f"sources/{name}/file").read_bytes()
    assert other not in place.trees.image_files.recorded()


@pytest.mark.parametrize("size", [3 * MIB, 6 * MIB])
async def test_a_save_needs_no_room_in_the_cache(place: Place, disk: Path, size: int) -> None:
    fill(disk)
    tree = place.save("large", size)
    assert place.trees.usage(tree).total_bytes == size
    (disk / "ballast").unlink()
    await place.roots.hold(Workspace(tree))


async def test_a_run_that_freed_nothing_is_not_repeated_at_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    trees = [place.save(name, 2 * MIB) for name in "ab"]
    for tree in trees:
        await place.roots.hold(Workspace(tree))
    runs = []

    def counted(*args: Any, **kwargs: Any) -> tuple[Measured, Evicted]:
        runs.append(args)
        return evict(*args, **kwargs)

    monkeypatch.setattr(cache_limit, "evict", counted)
    for _ in range(3):
        await place.limit.tick()
    assert len(runs) == 1
    figures = read_figures(place.directory / "disk/cache")
    assert figures is not None
    assert figures.needed_bytes > figures.limit_bytes


async def test_a_caller_who_leaves_stops_his_own_run_only(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abcde":
        place.save(name)
    begun = threading.Event()

    def endless(*_: Any, rest: Callable[[], None], **__: Any) -> tuple[Measured, Evicted]:
        begun.set()
        while True:
            rest()

    with monkeypatch.context() as slow:
        slow.setattr(cache_limit, "evict", endless)
        leaving = asyncio.ensure_future(place.limit.tick())
        await asyncio.to_thread(begun.wait, 10)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
    await place.limit.tick()
    assert place.objects() < 5
