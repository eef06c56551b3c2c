"""Functions: servers of a user's own, their revisions, and calls of them."""

# Generated from _async/functions.py by `python -m dovecote.sdk.generate`; change that and run it.

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import httpx

from dovecote.sdk._activity import HookRun
from dovecote.sdk._functions import (
    KEPT,
    Affinity,
    DeployEvent,
    Function,
    Hooks,
    Invoking,
    Kept,
    Revision,
    Rules,
    Sharing,
)
from dovecote.sdk._ignoring import pack
from dovecote.sdk._reading import read
from dovecote.sdk._shapes import Mount, Network, Printed, Start, Step
from dovecote.sdk._sync.resources import given, pages, start_body
from dovecote.sdk._sync.transport import Wire, json_lines

PIECE = 1 << 18  # bytes that are sent at once


class Functions:
    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def create(
        self,
        name: str,
        *,
        template: str = "base",
        spec: str = "small",
        level: str | None = None,
        network: Network | None = None,
        affinity: Affinity | None = None,
        affinity_header: str | None = None,
        sharing: Sharing | None = None,
        hooks: Hooks | None = None,
        invoking: Invoking | None = None,
        public: bool = False,
        env: Mapping[str, str] | None = None,
        start: Start | None = None,
        mounts: Sequence[Mount] = (),
        rules: Rules | None = None,
    ) -> Function:
        """`affinity_header` is short for an `affinity` with this header."""
        body = {
            "name": name,
            "template": template,
            "spec": spec,
            "level": level,
            "network": asdict(network or Network()),
            "public": public,
            "env": dict(env or {}),
            "start": start_body(start),
            "mounts": [asdict(mount) for mount in mounts],
            "rules": asdict(rules or Rules()),
        }
        body |= _serving(affinity, affinity_header, sharing, hooks, invoking)
        return read(Function, self._wire.call("POST", "/v1/functions", json=body))

    def update(
        self,
        name: str,
        *,
        template: str | None = None,
        files: int | None = None,
        spec: str | None = None,
        level: str | None = None,
        network: Network | None = None,
        affinity: Affinity | Mapping[str, Any] | None = None,
        affinity_header: str | None = None,
        sharing: Sharing | Mapping[str, Any] | None = None,
        hooks: Hooks | Mapping[str, Any] | None = None,
        invoking: Invoking | Mapping[str, Any] | None = None,
        public: bool | None = None,
        env: Mapping[str, str] | None = None,
        start: Start | Kept | None = KEPT,
        mounts: Sequence[Mount] | None = None,
        rules: Rules | None = None,
    ) -> Function:
        """What is left out stays; `{"ttl": 60}` for `affinity` changes only that. With `start` None it has none.

        `affinity`, `invoking` and `public` take effect at once, the rest as a new revision that new sessions get.
        `files` is the number of a revision of it, whose files it shall have.
        """
        body = given(
            template=template,
            files=files,
            spec=spec,
            level=level,
            network=asdict(network) if network else None,
            public=public,
            env=dict(env) if env is not None else None,
            mounts=[asdict(mount) for mount in mounts] if mounts is not None else None,
            rules=asdict(rules) if rules else None,
        )
        if start is not KEPT:
            body["start"] = start_body(start)
        body |= _serving(affinity, affinity_header, sharing, hooks, invoking)
        return read(Function, self._wire.call("PATCH", f"/v1/functions/{name}", json=body))

    def get(self, name: str) -> Function:
        return read(Function, self._wire.call("GET", f"/v1/functions/{name}"))

    def revisions(self, name: str) -> list[Revision]:
        """What it runs and ran, the newest first."""
        return [read(Revision, each) for each in pages(self._wire, f"/v1/functions/{name}/revisions", {})]

    def hooks(self, name: str) -> list[HookRun]:
        """Of each of its hooks the last success and the last failure, since the server began; oldest first."""
        page = self._wire.call("GET", f"/v1/functions/{name}/hooks")
        return [read(HookRun, each) for each in page["items"]]

    def rollback(self, name: str, revision: int) -> Function:
        """New sessions run that one of its revisions, an earlier or a later one."""
        body = {"revision": revision}
        return read(Function, self._wire.call("POST", f"/v1/functions/{name}/rollback", json=body))

    def put_files(
        self,
        name: str,
        directory: str | Path,
        *,
        template: str | None = None,
        build: str = "",
        current: bool = True,
        on_sent: Callable[[int, int], None] | None = None,
    ) -> Generator[DeployEvent, None, None]:
        """A directory, over the function's template; what was put before goes. The last event is a Revision.

        What `.dovecoteignore` in it names is left out, and `.git`. `build` is a command that runs once in the files.
        With `current` false no session gets the revision until `update(files=number)`. `on_sent` is told, as the
        files leave, how many bytes of how many.
        """
        params = {"template": template, "build": build or None, "current": "true" if current else "false"}
        with tempfile.TemporaryFile() as file:
            size = pack(Path(directory), file)
            content = _sent(file, size, on_sent)
            headers = {"content-type": "application/x-tar", "content-length": str(size)}
            path = f"/v1/functions/{name}/files"
            with self._wire.stream("PUT", path, params=params, content=content, headers=headers) as response:
                for fields in json_lines(response):
                    if fields["type"] == "ready":
                        yield read(Revision, fields["revision"])
                    elif fields["type"] == "output":
                        yield read(Printed, fields)
                    else:
                        yield read(Step, fields)

    def delete(self, name: str) -> None:
        """Ends its sessions and instances too."""
        self._wire.call("DELETE", f"/v1/functions/{name}")

    def templates(self) -> list[str]:
        """Names of those that functions can start from."""
        return [each["name"] for each in pages(self._wire, "/v1/templates", {}) if each["usable"]]

    def call(
        self,
        name: str,
        path: str = "/",
        *,
        method: str = "GET",
        session: str | None = None,
        user: str | None = None,
        content: bytes | str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """One request to its server and the whole answer, whatever its status.

        `session` is sent in the header that names the function's sessions. Raises Unreachable, TimedOut.
        """
        function = self.get(name)
        sent = {"x-dovecote-key": self._wire.access.api_key, **(headers or {})}
        if session is not None:
            sent[function.affinity.header] = session
        if user is not None:
            sent["x-dovecote-user"] = user
        url = function.address.rstrip("/") + "/" + path.lstrip("/")
        return self._wire.plain(method, url, headers=sent, content=content)

    def list(self) -> list[Function]:
        return [read(Function, each) for each in pages(self._wire, "/v1/functions", {})]


def _sent(file: IO[bytes], size: int, told: Callable[[int, int], None] | None) -> Generator[bytes, None, None]:
    while piece := file.read(PIECE):
        yield piece
        if told is not None:
            told(file.tell(), size)


def _serving(affinity: Any, affinity_header: str | None, sharing: Any, hooks: Any, invoking: Any) -> dict[str, Any]:
    """Shapes whole, mappings as they are: what they leave out stays."""
    parts = given(affinity=affinity, sharing=sharing, hooks=hooks, invoking=invoking)
    body = {name: dict(part) if isinstance(part, Mapping) else asdict(part) for name, part in parts.items()}
    return body | given(affinity_header=affinity_header)
