"""The host's cache has a size: looks now and then whether it is passed, or its disk nearly full, and evicts."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Coroutine
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from dovecote.errors import StorageFailed
from dovecote.host.storage.evicting import LOWER, Evicted, Measured, evict
from dovecote.host.storage.metrics import CACHE_BYTES, CACHE_EVICTED, CACHE_LIMIT, CACHE_NEEDED
from dovecote.host.storage.trees import Trees

log = logging.getLogger(__name__)

LOOK_EVERY = 10.0  # seconds
SHARE = 4  # of the disk's size, a quarter, where the operator says nothing
RESERVE_BYTES = 1 << 30  # left free on the disk by evicting,
RESERVE_SHARE = 50  # or a fiftieth of a small one
REST_SECONDS = 0.002  # between two of 256 folders
ANSWERS_WITHIN = 120.0  # seconds that the loop may take to say what is needed
AGAIN_AFTER = 300.0  # seconds, when all that is there is needed
RECORD = "cache.json"


Needed = Callable[[], Coroutine[Any, Any, Collection[str]]]


async def _unknown() -> Collection[str]:
    raise AssertionError("not begun")


class Mounted(Protocol):
    """Which trees are lower layers now."""

    async def let_go(self, digests: Collection[str]) -> None:
        """Those of them that nobody uses need not stay mounted."""

    def mounted(self) -> Collection[str]: ...


@dataclass(frozen=True)
class CacheFigures:
    """What a host last measured. `limit_bytes` 0: none. `evicted_bytes` since the cache was made."""

    limit_bytes: int = 0
    bytes: int = 0
    needed_bytes: int = 0
    evicted_bytes: int = 0


def read_figures(cache_dir: Path) -> CacheFigures | None:
    """None before the first look."""
    try:
        return CacheFigures(**json.loads((cache_dir / RECORD).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def limit_of(setting: int, directory: Path) -> int:
    """Bytes; 0 is no limit."""
    if setting >= 0:
        return setting
    disk = os.statvfs(directory)
    return disk.f_blocks * disk.f_frsize // SHARE


class CacheLimit:
    """Does nothing before `begin`: what runs must have been adopted, or nobody knows what it needs."""

    def __init__(self, trees: Trees, cache_dir: Path, *, limit_bytes: int) -> None:
        self._trees = trees
        self._directory = cache_dir
        self._limit = limit_bytes
        self._mounted: Mounted | None = None
        self._needed: Needed = _unknown
        self._figures = read_figures(cache_dir) or CacheFigures()
        self._is_measured = False
        self._idle_until = 0.0
        self._running = asyncio.Lock()
        CACHE_LIMIT.set(limit_bytes)

    def begin(self, mounted: Mounted, needed: Needed) -> None:
        """`needed` answers trees that something uses or that must stay, mounted or not, whenever it is asked."""
        self._mounted, self._needed = mounted, needed

    async def tick(self) -> None:
        """Costs one look at the disk unless there is something to do. Raises StorageFailed."""
        is_over = 0 < self._limit < self._figures.bytes + self._trees.cache.grown
        is_due = is_over or self._short_by() > 0
        if not self._is_measured or (is_due and time.monotonic() >= self._idle_until):
            await self._run()

    async def image(self, digest: str) -> Path:
        """`Trees.ensure_image`, on a full disk once more after something else has gone."""
        try:
            return await asyncio.to_thread(self._trees.ensure_image, digest)
        except StorageFailed as error:
            # Not waited for where a run is under way: it may be waiting for this very caller.
            if error.code != "disk_full" or self._running.locked():
                raise
            usage = await asyncio.to_thread(self._trees.usage, digest)
            if not (await self._run(wanted=usage.total_bytes)).bytes:
                raise
            return await asyncio.to_thread(self._trees.ensure_image, digest)

    def _short_by(self) -> int:
        disk = os.statvfs(self._directory)
        reserve = min(RESERVE_BYTES, disk.f_blocks * disk.f_frsize // RESERVE_SHARE)
        free = disk.f_bavail * disk.f_frsize
        return 2 * reserve - free if free < reserve else 0

    async def _run(self, *, wanted: int = 0) -> Evicted:
        """To its end also when the caller is cancelled: a thread that deletes must be known of."""
        stop = threading.Event()
        task = asyncio.ensure_future(self._run_alone(wanted, stop))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            stop.set()
            await asyncio.wait([task])
            if not task.cancelled() and (error := task.exception()) and not isinstance(error, _Stopped):
                log.warning("evicting was cut off: %s", error)
            raise

    async def _run_alone(self, wanted: int, stop: threading.Event) -> Evicted:
        if self._mounted is None:
            return Evicted()
        loop, mounted = asyncio.get_running_loop(), self._mounted

        def needed() -> Collection[str]:
            return asyncio.run_coroutine_threadsafe(self._needed(), loop).result(ANSWERS_WITHIN)

        async def ask() -> Collection[str]:
            return mounted.mounted()

        def there() -> Collection[str]:
            return asyncio.run_coroutine_threadsafe(ask(), loop).result(ANSWERS_WITHIN)

        def let_go(trees: Collection[str]) -> None:
            asyncio.run_coroutine_threadsafe(mounted.let_go(trees), loop).result(ANSWERS_WITHIN)

        async with self._running:
            measured, done = await asyncio.to_thread(
                evict,
                self._trees,
                goal=partial(self._goal, wanted),
                needed=needed,
                mounted=there,
                let_go=let_go,
                rest=partial(_rest, stop),
            )
            self._is_measured = True
            self._note(measured, done)
            return done

    def _goal(self, wanted: int, measured: Measured) -> int:
        goals = [measured.total_bytes - max(self._short_by(), wanted)]
        if 0 < self._limit < measured.total_bytes:
            goals.append(int(self._limit * LOWER))
        return max(0, min(goals))

    def _note(self, measured: Measured, done: Evicted) -> None:
        self._idle_until = 0.0 if done.files else time.monotonic() + AGAIN_AFTER
        self._figures = CacheFigures(
            self._limit,
            measured.total_bytes - done.bytes,
            measured.needed_bytes,
            self._figures.evicted_bytes + done.bytes,
        )
        CACHE_BYTES.set(self._figures.bytes)
        CACHE_NEEDED.set(measured.needed_bytes)
        CACHE_EVICTED.inc(done.bytes)
        if done.files:
            log.info("the cache gave back %d bytes of %d files", done.bytes, done.files)
        if 0 < self._limit < measured.needed_bytes:
            log.warning("what runs needs %d bytes of the cache, its limit is %d", measured.needed_bytes, self._limit)
        temporary = self._directory / f".{RECORD}"
        try:
            temporary.write_text(json.dumps(asdict(self._figures)))
            os.replace(temporary, self._directory / RECORD)
        except OSError as error:
            log.warning("the figures of the cache cannot be written: %s", error)


class _Stopped(Exception):
    """Whoever wanted the run has left."""


def _rest(stop: threading.Event) -> None:
    if stop.is_set():
        raise _Stopped
    time.sleep(REST_SECONDS)
