"""Volumes, and the mounts of a session."""

# Generated from _async/volumes.py by `python -m dovecote.sdk.generate`; change that and run it.

from __future__ import annotations

import builtins
from dataclasses import asdict
from typing import Any

from dovecote.sdk._reading import read
from dovecote.sdk._shapes import Mount, PathLimit, Volume
from dovecote.sdk._sync.transport import Wire


class Volumes:
    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def create(self, name: str, *, max_bytes: int, user: str | None = None) -> Volume:
        """Files that outlive instances and may be shared; writes beyond `max_bytes` fail. Raises Conflict (exists)."""
        body = {"name": name, "max_bytes": max_bytes, "user": user}
        return read(Volume, self._wire.call("POST", "/v1/volumes", json=body))

    def get(self, name: str) -> Volume:
        return read(Volume, self._wire.call("GET", f"/v1/volumes/{name}"))

    def list(self) -> list[Volume]:
        found: list[Volume] = []
        after: str | None = None
        while True:
            page: Any = self._wire.call("GET", "/v1/volumes", params={"after": after})
            found += [read(Volume, each) for each in page["items"]]
            after = page["next"]
            if after is None:
                return found

    def resize(self, name: str, *, max_bytes: int) -> Volume:
        """Effective at once, where it is mounted too."""
        return read(Volume, self._wire.call("PATCH", f"/v1/volumes/{name}", json={"max_bytes": max_bytes}))

    def delete(self, name: str, *, force: bool = False) -> None:
        """With its files. Raises Conflict (in_use) while a session or a function mounts it, unless forced."""
        self._wire.call("DELETE", f"/v1/volumes/{name}", params={"force": force})

    def limit(self, name: str, path: str, *, max_bytes: int) -> PathLimit:
        """What is at and below the path holds at most so much, at once. Raises Conflict (path_in_use)."""
        body = {"max_bytes": max_bytes}
        return read(PathLimit, self._wire.call("PUT", f"/v1/volumes/{name}/limit", params={"path": path}, json=body))

    def get_limit(self, name: str, path: str) -> PathLimit:
        return read(PathLimit, self._wire.call("GET", f"/v1/volumes/{name}/limit", params={"path": path}))

    def limits(self, name: str) -> builtins.list[PathLimit]:
        found: builtins.list[PathLimit] = []
        after: str | None = None
        while True:
            page: Any = self._wire.call("GET", f"/v1/volumes/{name}/limits", params={"after": after})
            found += [read(PathLimit, each) for each in page["items"]]
            after = page["next"]
            if after is None:
                return found

    def lift_limit(self, name: str, path: str) -> None:
        """The files stay, and count for the volume."""
        self._wire.call("DELETE", f"/v1/volumes/{name}/limit", params={"path": path})


class Mounts:
    """What a session itself mounts, besides its function's mounts."""

    def __init__(self, wire: Wire, session_id: str) -> None:
        self._wire = wire
        self._path = f"/v1/sessions/{session_id}/mounts"

    def add(self, mount: Mount) -> None:
        """At once where the session lives, and again whenever it wakes. Raises Conflict (exists)."""
        self._wire.call("POST", self._path, json=asdict(mount))

    def list(self) -> list[Mount]:
        return [read(Mount, each) for each in (self._wire.call("GET", self._path))["items"]]

    def remove(self, at: str, *, force: bool = False) -> None:
        """Fails with code `busy` when something inside uses it, unless forced."""
        self._wire.call("DELETE", self._path, params={"at": at, "force": force})
