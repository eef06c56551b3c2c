"""Limits of paths in volumes: wished for in records, kept by the host that has the volume."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from weakref import WeakValueDictionary

from dovecote.control.fleet import Fleet
from dovecote.errors import DeadlineExceeded, DovecoteError, Invalid, NotFound
from dovecote.model.ids import new_id
from dovecote.model.records import PathLimit, Volume
from dovecote.model.volumes import MIN_VOLUME_BYTES, MOST_VOLUME_BYTES, parse_path
from dovecote.store import Store

log = logging.getLogger(__name__)

LONGEST_PATH = 1024  # of one that has a limit; databases index it
SETTLE_EVERY = 5.0  # seconds
SETTLED_AFTER = 15.0  # seconds in which a crash of the machine may take back what a host did
_TOGETHER = 500  # records in one transaction


@dataclass(frozen=True)
class PathLimitView:
    """`used_bytes` is what its host counts now; None where nothing is there, which the next mount changes."""

    limit: PathLimit
    used_bytes: int | None


class PathLimits:
    """A record is written before its host acts, and counts as settled a while after: what was cut off in between, or
    lost with the machine, is done again. What has begun goes on when nobody waits for it any more, as its host does:
    it is not begun a second time meanwhile."""

    def __init__(self, store: Store, fleet: Fleet) -> None:
        self._store = store
        self._fleet = fleet
        self._acted: dict[str, tuple[int, float]] = {}  # generation that the host has, and since when, by record
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def lock(self, volume_id: str) -> asyncio.Lock:
        """Held while a limit in the volume, or the volume itself, comes or goes."""
        return self._locks.setdefault(volume_id, asyncio.Lock())

    async def set(self, volume: Volume, path: str, max_bytes: int) -> PathLimit:
        """Effective at once. Raises Invalid, Unsupported (no_path_limits), Conflict (path_in_use), StorageFailed, and
        DeadlineExceeded where its host may do it yet: then it stays wished for."""
        path = _parse(path)
        check_size(max_bytes)
        return await asyncio.shield(self._set(volume, path, max_bytes))

    async def _set(self, volume: Volume, path: str, max_bytes: int) -> PathLimit:
        records = self._store.tenant(volume.tenant_id).path_limits
        async with self.lock(volume.id):
            before = await records.find(volume_id=volume.id, path=path)
            if before is None:
                wished = await records.insert(_new(volume, path, max_bytes))
            else:
                wished = await records.swap(replace(before, max_bytes=max_bytes, is_settled=False, is_lifted=False))
            try:
                await self._act(volume, wished)
            except DeadlineExceeded:
                raise  # it may take effect yet, so it stays wished for, and is done again
            except DovecoteError:
                # It is as it was there, so it is as it was here.
                if before is None:
                    await records.delete(wished.id)
                else:
                    await records.swap(replace(before, generation=wished.generation))
                raise
            return wished

    async def get(self, volume: Volume, path: str) -> PathLimit:
        """Raises NotFound (no_such_limit)."""
        found = await self._store.tenant(volume.tenant_id).path_limits.find(volume_id=volume.id, path=path)
        if found is None or found.is_lifted:
            raise NotFound(
                f"{path[:80]!r} of volume {volume.name} has no limit",
                code="no_such_limit",
                hint=f"`dovecote volume limits {volume.name}` lists them",
            )
        return found

    async def list(self, volume: Volume, *, after: str | None = None, limit: int = 100) -> Sequence[PathLimit]:
        records = self._store.tenant(volume.tenant_id).path_limits
        return await records.list(after=after, limit=limit, volume_id=volume.id, is_lifted=False)

    async def view(self, volume: Volume, limit: PathLimit) -> PathLimitView:
        try:
            usage = await self._fleet.host(volume.host_id).volumes.path_usage(volume.id, limit.path)
        except NotFound:
            return PathLimitView(limit, None)
        return PathLimitView(limit, usage.bytes)

    async def lift(self, volume: Volume, path: str) -> None:
        """What is there stays. Raises NotFound (no_such_limit)."""
        await asyncio.shield(self._lift(volume, path))

    async def _lift(self, volume: Volume, path: str) -> None:
        records = self._store.tenant(volume.tenant_id).path_limits
        async with self.lock(volume.id):
            limit = await self.get(volume, path)
            wished = await records.swap(replace(limit, is_lifted=True, is_settled=False))
            await self._act(volume, wished)
            await records.delete(wished.id)

    async def forget(self, volume: Volume) -> None:
        """After the end of a volume's files. Called under its lock; may be repeated."""
        scope = self._store.tenant(volume.tenant_id)
        while page := await scope.path_limits.list(volume_id=volume.id, limit=_TOGETHER):
            async with scope.together() as together:
                for each in page:
                    await together.path_limits.delete(each.id)

    async def tick(self) -> None:
        """Does again what may not have been done, and settles the rest."""
        async for limit in self._store.everyone().path_limits.each(is_settled=False):
            try:
                await asyncio.shield(self._settle(limit))
            except DovecoteError as error:
                log.warning("the limit of %s in volume %s: %s", limit.path, limit.volume_id, error)

    async def _settle(self, limit: PathLimit) -> None:
        scope = self._store.tenant(limit.tenant_id)
        async with self.lock(limit.volume_id):
            now = await scope.path_limits.find(id=limit.id)
            if now is None or now.is_settled:
                self._acted.pop(limit.id, None)
                return
            generation, since = self._acted.get(now.id, (-1, 0.0))
            if generation != now.generation:
                await self._act(await scope.volumes.get(now.volume_id), now)
                if now.is_lifted:
                    await scope.path_limits.delete(now.id)
            elif time.monotonic() - since > SETTLED_AFTER:
                await scope.path_limits.swap(replace(now, is_settled=True))
                del self._acted[now.id]

    async def _act(self, volume: Volume, wished: PathLimit) -> None:
        volumes = self._fleet.host(volume.host_id).volumes
        if wished.is_lifted:
            await volumes.unlimit_path(volume.id, wished.path)
            return
        await volumes.limit_path(volume.id, wished.path, max_bytes=wished.max_bytes)
        self._acted[wished.id] = wished.generation, time.monotonic()


def check_size(max_bytes: int) -> None:
    """Of a volume or a path in one. Raises Invalid."""
    if not MIN_VOLUME_BYTES <= max_bytes <= MOST_VOLUME_BYTES:
        raise Invalid(f"not a limit: {max_bytes} bytes", hint=f"{MIN_VOLUME_BYTES} to {MOST_VOLUME_BYTES}")


def _parse(path: str) -> str:
    if not path:
        raise Invalid("a limit is of a path in a volume", hint="the volume's own is changed by resizing it")
    if len(path) > LONGEST_PATH:
        raise Invalid(f"a path with a limit has at most {LONGEST_PATH} characters", code="malformed_path")
    return parse_path(path)


def _new(volume: Volume, path: str, max_bytes: int) -> PathLimit:
    return PathLimit(
        id=new_id("lim"),
        tenant_id=volume.tenant_id,
        volume_id=volume.id,
        path=path,
        max_bytes=max_bytes,
        created_at=datetime.now(UTC),
    )
