"""What every driver of volumes promises."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from dovecote.host.storage.groups import Usage
from dovecote.model.volumes import Mount


class Volumes(Protocol):
    """Directories that hold at most so many bytes: writes beyond fail at once with EDQUOT or ENOSPC.

    Drivers: btrfs pool, loop images, JuiceFS. Every method may be repeated; an unknown name raises NotFound.
    tests/contract/test_volumes.py and test_path_limits.py say the rest. Names are ids of volumes.
    """

    async def ensure(self) -> None:
        """Before anything else; finds what an earlier process left, however that ended."""

    async def create(self, name: str, *, max_bytes: int) -> None:
        """An empty volume; nothing happens where it exists, but for its limit, which is set."""

    async def limit(self, name: str, *, max_bytes: int) -> None:
        """Takes effect at once, while it is in use."""

    async def usage(self, name: str) -> Usage:
        """What it holds, without walking it: now, or, where several hosts count, a few seconds ago."""

    async def limit_path(self, name: str, path: str, *, max_bytes: int) -> None:
        """What is at and below the path holds at most so much; all of it goes on counting for what is above it too.

        Made where it is missing. Kept with the volume, whatever becomes of the directory. Raises Unsupported
        (no_path_limits), Conflict (path_in_use), StorageFailed (not_a_directory, disk_full); then it has the limit
        that it had.
        """

    async def unlimit_path(self, name: str, path: str) -> None:
        """What is there stays, and counts for what is above it."""

    async def path_usage(self, name: str, path: str) -> Usage:
        """Without walking it. Raises NotFound (no_such_limit), or (no_such_path) where somebody removed it."""

    async def delete(self, name: str) -> None:
        """Its files too. Raises StorageFailed (busy) where the driver cannot while it is mounted."""

    async def list(self) -> list[str]: ...

    def directory(self, name: str) -> Path:
        """Where its files are on the host, stored under container ids. Only root gets there."""

    def open(self, mount: Mount) -> int:
        """A descriptor of the directory that is to be mounted, for its owner. The caller closes it; this may block.

        No link is followed on the way. What is missing is made unless the mount is read-only, and whatever has a limit
        has it before a mount that may write is handed out. Raises NotFound (no_such_volume, no_such_path),
        StorageFailed (not_a_directory), Conflict (path_in_use).
        """

    async def remove(self) -> None:
        """Leaves no mount and no device; the bytes stay for the next `ensure`."""
