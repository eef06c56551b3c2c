"""What a volume with its limit costs, and a limited path in one, and whether that grows.

`python -m bench.volumes --paths 100000`
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from bench.figures import Row, row
from dovecote.host.storage.volumes import PoolVolumes
from dovecote.model.volumes import Mount

if TYPE_CHECKING:
    from bench.measures import Bench

SAMPLES = 200
MIB = 1 << 20


@contextmanager
def pool(max_bytes: int) -> Iterator[tuple[PoolVolumes, Path]]:
    with tempfile.TemporaryDirectory(prefix="dovecote-bench-") as directory:
        place = Path(directory)
        volumes = PoolVolumes(place / "pool", place / "at", max_bytes=max_bytes)
        asyncio.run(volumes.ensure())
        try:
            yield volumes, place / "at"
        finally:
            asyncio.run(volumes.remove())


def quota_set(_: Bench) -> list[Row]:
    with pool(2 << 30) as (volumes, at):
        ours = asyncio.run(_create(volumes, 0, SAMPLES))
        rival = [_timed(["btrfs", "subvolume", "create", f"{at}/rival{n}"]) for n in range(20)]
    return [row("quota_set", "ms", ours, "btrfs subvolume create, no limit", rival)]


async def _create(volumes: PoolVolumes, first: int, count: int) -> list[float]:
    """Milliseconds of each."""
    taken = []
    for number in range(first, first + count):
        start = time.perf_counter()
        await volumes.create(f"vol_{number}", max_bytes=16 * MIB)
        taken.append((time.perf_counter() - start) * 1000)
    return taken


def _timed(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, capture_output=True, timeout=30, check=True)
    return (time.perf_counter() - start) * 1000


async def _exercise(volumes: PoolVolumes, paths: int) -> None:
    made = 0
    for goal in (1_000, 10_000, 100_000, paths):
        if not made < goal <= paths:
            continue
        taken = await _create(volumes, made, goal - made)
        last = taken[-1000:]
        start = time.perf_counter()
        for number in range(made, made + 500):
            await volumes.usage(f"vol_{number}")
        usage = (time.perf_counter() - start) * 2
        start = time.perf_counter()
        listed = len(await volumes.list())
        listing = (time.perf_counter() - start) * 1000
        mean = sum(taken) / len(taken)
        print(
            f"{goal:>7} volumes: create+limit mean {mean:.3f} ms, last 1000 p50 {median(last):.3f} ms,"
            f" worst {max(last):.1f} ms; usage {usage:.3f} ms; listing {listed}: {listing:.0f} ms",
            flush=True,
        )
        made = goal
    print(f"over the limit: {_refusal(volumes.directory('vol_0') / 'f')}")


def _path(number: int) -> str:
    return f"user{number // 100}/chat{number}"


async def _limit(volumes: PoolVolumes, first: int, count: int) -> list[float]:
    """Milliseconds of each path in one volume that gets a limit."""
    taken = []
    for number in range(first, first + count):
        start = time.perf_counter()
        await volumes.limit_path("vol_one", _path(number), max_bytes=16 * MIB)
        taken.append((time.perf_counter() - start) * 1000)
    return taken


async def _exercise_paths(volumes: PoolVolumes, paths: int) -> None:
    await volumes.create("vol_one", max_bytes=8 << 30)
    made = 0
    for goal in (1_000, 10_000, 100_000, paths):
        if not made < goal <= paths:
            continue
        taken = await _limit(volumes, made, goal - made)
        last = taken[-1000:]
        start = time.perf_counter()
        for number in range(made, made + 500):
            await volumes.path_usage("vol_one", _path(number))
        usage = (time.perf_counter() - start) * 2
        start = time.perf_counter()
        for number in range(made, made + 500):
            os.close(volumes.open(Mount("vol_one", "/data", _path(number))))
        opening = (time.perf_counter() - start) * 2
        mean = sum(taken) / len(taken)
        print(
            f"{goal:>7} paths of one volume: limit mean {mean:.3f} ms, last 1000 p50 {median(last):.3f} ms,"
            f" worst {max(last):.1f} ms; usage {usage:.3f} ms; opening to mount {opening:.3f} ms",
            flush=True,
        )
        made = goal
    print(f"over the limit of a path: {_refusal(volumes.directory('vol_one') / _path(0) / 'f')}")
    start = time.perf_counter()
    await volumes.delete("vol_one")
    print(f"deleting the volume: {time.perf_counter() - start:.1f} s", flush=True)


def _refusal(path: Path) -> str:
    try:
        with path.open("wb", buffering=0) as file:
            for _ in range(160):
                file.write(bytes(MIB))
    except OSError as error:
        return f"{error.strerror} after {path.stat().st_size} bytes"
    return "not refused"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--paths", type=int, default=10_000)
    paths = parser.parse_args().paths
    with pool(16 << 30) as (volumes, _):
        asyncio.run(_exercise_paths(volumes, paths))
        asyncio.run(_exercise(volumes, paths))
        start = time.perf_counter()
    print(f"unmounting: {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
