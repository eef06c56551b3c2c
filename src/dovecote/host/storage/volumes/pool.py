"""Volumes as subvolumes of a btrfs of their own, in one sparse file."""

from __future__ import annotations

from pathlib import Path

from dovecote.errors import Conflict
from dovecote.host.storage.pool import BtrfsDisks, Usage

_FILES = "files"


class PoolVolumes:
    """`Volumes` on btrfs with simple quotas. What a volume holds counts with its metadata."""

    def __init__(self, file: Path, at: Path, *, max_bytes: int) -> None:
        # Volumes are kept nowhere else, so their metadata is kept twice.
        self._disks = BtrfsDisks(file, at, max_bytes=max_bytes, parts=(_FILES,), metadata="dup")

    async def ensure(self) -> None:
        await self._disks.ensure()

    async def create(self, name: str, *, max_bytes: int) -> None:
        try:
            await self._disks.create(name, max_bytes=max_bytes, owner=0)
        except Conflict:
            await self._disks.limit(name, max_bytes=max_bytes)

    async def limit(self, name: str, *, max_bytes: int) -> None:
        await self._disks.limit(name, max_bytes=max_bytes)

    async def usage(self, name: str) -> Usage:
        return await self._disks.usage(name)

    async def delete(self, name: str) -> None:
        await self._disks.delete(name)

    async def list(self) -> list[str]:
        return await self._disks.list()

    def directory(self, name: str) -> Path:
        return self._disks.path(name) / _FILES

    async def remove(self) -> None:
        await self._disks.remove()
