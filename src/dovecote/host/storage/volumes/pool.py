"""Volumes as subvolumes of a btrfs of their own, in one sparse file."""

from __future__ import annotations

import asyncio
from pathlib import Path

from dovecote.errors import Conflict
from dovecote.host.storage.groups import Usage
from dovecote.host.storage.pool import BtrfsDisks
from dovecote.host.storage.volumes.nesting import Mounted, Nesting
from dovecote.model.volumes import Mount

_FILES = "files"


class PoolVolumes:
    """`Volumes` on btrfs with simple quotas. What a volume holds counts with its metadata.

    `mounted` tells which paths of a volume instances have, or are about to have.
    """

    def __init__(self, file: Path, at: Path, *, max_bytes: int, mounted: Mounted = lambda _: ()) -> None:
        # Volumes are kept nowhere else, so their metadata is kept twice.
        self._disks = BtrfsDisks(file, at, max_bytes=max_bytes, parts=(_FILES,), metadata="dup")
        self._nesting = Nesting(at, self.directory, mounted)

    async def ensure(self) -> None:
        await self._disks.ensure()
        await asyncio.to_thread(self._nesting.ensure)

    async def create(self, name: str, *, max_bytes: int) -> None:
        try:
            await self._disks.create(name, max_bytes=max_bytes, owner=0)
        except Conflict:
            await self.limit(name, max_bytes=max_bytes)

    async def limit(self, name: str, *, max_bytes: int) -> None:
        await asyncio.to_thread(self._nesting.limit_volume, name, max_bytes)

    async def usage(self, name: str) -> Usage:
        return await asyncio.to_thread(self._nesting.volume_usage, name)

    async def limit_path(self, name: str, path: str, *, max_bytes: int) -> None:
        await asyncio.to_thread(self._nesting.limit, name, path, max_bytes)

    async def unlimit_path(self, name: str, path: str) -> None:
        await asyncio.to_thread(self._nesting.lift, name, path)

    async def path_usage(self, name: str, path: str) -> Usage:
        return await asyncio.to_thread(self._nesting.usage, name, path)

    async def delete(self, name: str) -> None:
        await asyncio.to_thread(self._nesting.clear, name)
        await self._disks.delete(name)

    async def list(self) -> list[str]:
        return await self._disks.list()

    def directory(self, name: str) -> Path:
        return self._disks.path(name) / _FILES

    def open(self, mount: Mount) -> int:
        return self._nesting.open(mount)

    async def remove(self) -> None:
        await self._disks.remove()
