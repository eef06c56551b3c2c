"""`Volumes` in memory: limits are kept, nothing enforces them."""

from __future__ import annotations

from pathlib import Path

from dovecote.errors import DovecoteError, NotFound
from dovecote.host.storage.groups import Usage
from dovecote.model.volumes import Mount


class MemoryVolumes:
    """`refuses` is raised by the next limit of a path."""

    def __init__(self) -> None:
        self.limits: dict[str, int] = {}
        self.used: dict[str, int] = {}
        self.paths: dict[tuple[str, str], int] = {}
        self.refuses: DovecoteError | None = None

    async def ensure(self) -> None: ...

    async def create(self, name: str, *, max_bytes: int) -> None:
        self.limits[name] = max_bytes

    async def limit(self, name: str, *, max_bytes: int) -> None:
        await self.usage(name)
        self.limits[name] = max_bytes

    async def usage(self, name: str) -> Usage:
        if name not in self.limits:
            raise NotFound(f"no volume {name}")
        return Usage(self.used.get(name, 0), self.limits[name])

    async def limit_path(self, name: str, path: str, *, max_bytes: int) -> None:
        await self.usage(name)
        if self.refuses is not None:
            refusal, self.refuses = self.refuses, None
            raise refusal
        self.paths[name, path] = max_bytes

    async def unlimit_path(self, name: str, path: str) -> None:
        self.paths.pop((name, path), None)

    async def path_usage(self, name: str, path: str) -> Usage:
        if (name, path) not in self.paths:
            raise NotFound(f"no limit of {path}", code="no_such_limit")
        return Usage(0, self.paths[name, path])

    async def delete(self, name: str) -> None:
        self.limits.pop(name, None)
        self.paths = {key: most for key, most in self.paths.items() if key[0] != name}

    async def list(self) -> list[str]:
        return sorted(self.limits)

    def directory(self, name: str) -> Path:
        return Path("/nowhere") / name

    def open(self, mount: Mount) -> int:
        raise NotFound(f"no files of {mount.volume}", code="no_such_volume")

    async def remove(self) -> None: ...
