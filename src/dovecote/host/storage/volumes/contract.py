"""What every driver of volumes promises."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from dovecote.host.storage.pool import Usage


class Volumes(Protocol):
    """Directories that hold at most so many bytes: writes beyond fail at once with EDQUOT or ENOSPC.

    Drivers: btrfs pool, loop images, JuiceFS. Every method may be repeated; an unknown name raises NotFound.
    tests/contract/test_volumes.py says the rest. Names are ids of volumes.
    """

    async def ensure(self) -> None:
        """Before anything else; finds what an earlier process left, however that ended."""

    async def create(self, name: str, *, max_bytes: int) -> None:
        """An empty volume; nothing happens where it exists, but for its limit, which is set."""

    async def limit(self, name: str, *, max_bytes: int) -> None:
        """Takes effect at once, while it is in use."""

    async def usage(self, name: str) -> Usage:
        """What it holds, without walking it: now, or, where several hosts count, a few seconds ago."""

    async def delete(self, name: str) -> None:
        """Its files too. Raises StorageFailed (busy) where the driver cannot while it is mounted."""

    async def list(self) -> list[str]: ...

    def directory(self, name: str) -> Path:
        """Where its files are on the host, stored under container ids. Only root gets there."""

    async def remove(self) -> None:
        """Leaves no mount and no device; the bytes stay for the next `ensure`."""
