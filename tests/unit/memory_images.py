"""Images of a host in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping

from dovecote.host.storage.images import Images, Made
from dovecote.host.storage.oci import Progress
from dovecote.model.trees import Inside

ALPINE = Made(
    digest="digest-of-alpine",
    inside=Inside("root", "/root", True, {"A": "1"}, "/app"),
    command=("/app/run", "--now"),
    port=9000,
    source="sha256:0",
    files=3,
    total_bytes=300,
    layers=1,
    cached_layers=0,
    notes=(),
)


class MemoryImages(Images):
    """`refuse` is what making one raises; `gate` holds it until it is set; `made_ready` are digests in order."""

    def __init__(self) -> None:
        self.refuse: Exception | None = None
        self.gate: asyncio.Event | None = None
        self.scopes: list[str] = []
        self.made_ready: list[str] = []
        self.received = b""
        self.made = ALPINE

    async def pull(self, text: str, *, scope: str, progress: Progress) -> Made:
        self.scopes.append(scope)
        progress("fetching", 10, 20)
        if self.gate is not None:
            await self.gate.wait()
        if self.refuse is not None:
            raise self.refuse
        return self.made

    async def unpack(self, archive: AsyncIterator[bytes], *, scope: str, progress: Progress) -> Made:
        self.received = b"".join([chunk async for chunk in archive])
        return await self.pull("", scope=scope, progress=progress)

    async def ready(self, digest: str) -> None:
        if self.refuse is not None:
            raise self.refuse
        self.made_ready.append(digest)

    async def inside(self, digest: str, *, user: str, directory: str, env: Mapping[str, str]) -> Inside:
        return Inside(user, f"/home/{user}", True, {**env}, directory)

    async def usage(self, digest: str) -> tuple[int, int]:
        return 3, 300
