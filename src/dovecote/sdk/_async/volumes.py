"""Volumes, and the mounts of a session."""

from __future__ import annotations

import builtins
from dataclasses import asdict
from typing import Any

from dovecote.sdk._async.transport import AsyncWire
from dovecote.sdk._reading import read
from dovecote.sdk._shapes import Mount, PathLimit, Volume


class AsyncVolumes:
    def __init__(self, wire: AsyncWire) -> None:
        self._wire = wire

    async def create(self, name: str, *, max_bytes: int, user: str | None = None) -> Volume:
        """Files that outlive instances and may be shared; writes beyond `max_bytes` fail. Raises Conflict (exists)."""
        body = {"name": name, "max_bytes": max_bytes, "user": user}
        return read(Volume, await self._wire.call("POST", "/v1/volumes", json=body))

    async def get(self, name: str) -> Volume:
        return read(Volume, await self._wire.call("GET", f"/v1/volumes/{name}"))

    async def list(self) -> list[Volume]:
        found: list[Volume] = []
        after: str | None = None
        while True:
            page: Any = await self._wire.call("GET", "/v1/volumes", params={"after": after})
            found += [read(Volume, each) for each in page["items"]]
            after = page["next"]
            if after is None:
                return found

    async def resize(self, name: str, *, max_bytes: int) -> Volume:
        """Effective at once, where it is mounted too."""
        return read(Volume, await self._wire.call("PATCH", f"/v1/volumes/{name}", json={"max_bytes": max_bytes}))

    async def delete(self, name: str, *, force: bool = False) -> None:
        """With its files. Raises Conflict (in_use) while a session or a function mounts it, unless forced."""
        await self._wire.call("DELETE", f"/v1/volumes/{name}", params={"force": force})

    async def limit(self, name: str, path: str, *, max_bytes: int) -> PathLimit:
        """What is at and below the path holds at most so much, at once. Raises Conflict (path_in_use)."""
        body = {"max_bytes": max_bytes}
        return read(
            PathLimit, await self._wire.call("PUT", f"/v1/volumes/{name}/limit", params={"path": path}, json=body)
        )

    async def get_limit(self, name: str, path: str) -> PathLimit:
        return read(PathLimit, await self._wire.call("GET", f"/v1/volumes/{name}/limit", params={"path": path}))

    async def limits(self, name: str) -> builtins.list[PathLimit]:
        found: builtins.list[PathLimit] = []
        after: str | None = None
        while True:
            page: Any = await self._wire.call("GET", f"/v1/volumes/{name}/limits", params={"after": after})
            found += [read(PathLimit, each) for each in page["items"]]
            after = page["next"]
            if after is None:
                return found

    async def lift_limit(self, name: str, path: str) -> None:
        """The files stay, and count for the volume."""
        await self._wire.call("DELETE", f"/v1/volumes/{name}/limit", params={"path": path})


class AsyncMounts:
    """What a session itself mounts, besides its function's mounts."""

    def __init__(self, wire: AsyncWire, session_id: str) -> None:
        self._wire = wire
        self._path = f"/v1/sessions/{session_id}/mounts"

    async def add(self, mount: Mount) -> None:
        """At once where the session lives, and again whenever it wakes. Raises Conflict (exists)."""
        await self._wire.call("POST", self._path, json=asdict(mount))

    async def list(self) -> list[Mount]:
        return [read(Mount, each) for each in (await self._wire.call("GET", self._path))["items"]]

    async def remove(self, at: str, *, force: bool = False) -> None:
        """Fails with code `busy` when something inside uses it, unless forced."""
        await self._wire.call("DELETE", self._path, params={"at": at, "force": force})
