"""`Volumes` in memory: limits are kept, nothing enforces them."""

from __future__ import annotations

from pathlib import Path

from dovecote.errors import NotFound
from dovecote.host.storage.pool import Usage


class MemoryVolumes:
    def __init__(self) -> None:
        self.limits: dict[str, int] = {}
        self.used: dict[str, int] = {}

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

    async def delete(self, name: str) -> None:
        self.limits.pop(name, None)

    async def list(self) -> list[str]:
        return sorted(self.limits)

    def directory(self, name: str) -> Path:
        return Path("/nowhere") / name

    async def remove(self) -> None: ...
