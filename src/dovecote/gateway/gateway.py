"""The gateway as one thing: Envoy, the question it asks, and the files it watches."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from ipaddress import IPv4Network
from pathlib import Path
from typing import Protocol

from dovecote.errors import Invalid
from dovecote.gateway.apps import AppFile
from dovecote.gateway.bootstrap import Front, Sockets, bootstrap, render_certificate
from dovecote.gateway.envoy import Envoy, write_private
from dovecote.gateway.question import Resolve
from dovecote.gateway.stats import Admin, Load, app_loads
from dovecote.gateway.streams import End, Streams, Touch
from dovecote.gateway.wake import MOST_HELD, Render, Wake

LONGEST_SOCKET_PATH = 107  # bytes, a limit of the kernel
_SECRET = re.compile(r"[0-9a-f]{32}")


class Certificates(Protocol):
    """Where the TLS port's certificate comes from: `certificates.py` has two ways."""

    def current(self, now: datetime) -> tuple[str, str]:
        """Chain and key, PEM. Blocks. Raises Invalid (bad_certificate)."""


class Gateway:
    """One port for everything. `run_dir/api.sock` is where console and API listen.

    `touch` and `end` are told of a function's sessions: the first every `report_every` seconds while a request lasts,
    the second when a session's only stream, or its client, has ended it. Both may come more than once.

    A cached route ends with its TTL (at most twice as long): nothing revokes it earlier, and a dead address is
    asked for again by the request that meets it. So an address must rest for three times the TTL.
    """

    def __init__(
        self,
        *,
        run_dir: Path,
        bind: str,
        port: int,
        domain: str,
        route_ttl: int,
        start_timeout: float,
        resolve: Resolve,
        render: Render,
        touch: Touch,
        end: End,
        certificates: Certificates | None = None,
        tls_port: int = 0,
        trusted: Sequence[IPv4Network] = (),
        concurrency: int | None = None,
        most_held: int = MOST_HELD,
        report_every: float = 10.0,
    ) -> None:
        self._directory = run_dir / "gateway"
        self._apps = AppFile(self._directory / "apps" / "clusters.json")
        self._sockets = Sockets(
            api=run_dir / "api.sock",
            python=self._directory / "python.sock",
            wake=self._directory / "wake.sock",
            admin=self._directory / "admin.sock",
            certificate=self._directory / "tls" / "certificate.json",
            clusters=self._apps.path,
            streams=self._directory / "streams",
        )
        for path in (self._sockets.api, self._sockets.python):
            if len(os.fsencode(path)) > LONGEST_SOCKET_PATH:
                raise Invalid(f"too long for a Unix socket: {path}", hint="set DOVECOTE_RUN_DIR to a shorter path")
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        secret = _secret(self._directory / "secret")
        front = Front(
            bind=bind,
            port=port,
            domain=domain.lower(),
            route_ttl=max(1, route_ttl),
            start_timeout=start_timeout,
            secret=secret,
            tls_port=tls_port,
            report_every=report_every,
            trusted=tuple(trusted),
        )
        self._certificates = certificates
        self._wake = Wake(
            self._sockets.python,
            domain=front.domain,
            secret=secret,
            start_timeout=start_timeout,
            resolve=resolve,
            render=render,
            most_held=most_held,
        )
        self._streams = Streams(self._sockets.streams, touch=touch, end=end)
        self._admin = Admin(self._sockets.admin)
        self._envoy = Envoy(
            self._directory,
            config=bootstrap(front, self._sockets),
            bind=bind,
            ports=(port, tls_port) if tls_port else (port,),
            concurrency=concurrency or os.cpu_count() or 1,
            admin=self._admin,
        )
        # What an Envoy of before was told holds for that one only: to a new one its addresses may be somebody else's.
        self._apps.open(is_kept=self._envoy.is_running)
        self._telling = asyncio.Lock()

    async def start(self) -> None:
        """Adopts an Envoy that runs with this configuration, else starts one. Raises Conflict, Failed, Unsupported."""
        await self.renew()
        await self._wake.start()
        try:
            self._streams.open()
            await self._envoy.start()
        except BaseException:
            await self._wake.stop()
            await self._streams.close()
            raise

    async def stop(self, *, keep_envoy: bool = False) -> None:
        """With `keep_envoy` open connections and warm routes go on; what is cold is held back with 503 meanwhile."""
        await self._envoy.stop(keep=keep_envoy)
        await self._wake.stop()
        await self._streams.close()
        await self._admin.close()

    async def renew(self) -> None:
        """Gives Envoy the certificate that is good now. Called at times; open connections go on. Raises Invalid."""
        if self._certificates is not None:
            await asyncio.to_thread(self._renew, self._certificates)

    def _renew(self, certificates: Certificates) -> None:
        path = self._sockets.certificate
        text = json.dumps(render_certificate(*certificates.current(datetime.now(UTC))))
        path.parent.mkdir(mode=0o700, exist_ok=True)
        if not path.exists() or path.read_text() != text:
            write_private(path, text)

    async def set_apps(self, apps: Mapping[str, Sequence[str]]) -> None:
        """Who serves what: `{name: ["ip:port", ...]}` of all apps. Takes effect in milliseconds; may be repeated."""
        async with self._telling:
            await asyncio.to_thread(self._apps.set, dict(apps))

    async def loads(self) -> dict[str, Load]:
        """Load by app. Raises Failed while Envoy does not answer: counting nothing would look like new visits later."""
        counters = await self._admin.counters(r"^cluster\.app/.*/instances\.upstream_rq_(active|total)$")
        return app_loads(counters, self._wake.waiting, self._wake.passed)

    async def is_ready(self) -> bool:
        return self._wake.is_open and await self._admin.is_live()

    @property
    def held(self) -> int:
        """Requests that wait for an answer of `resolve`."""
        return self._wake.held

    @property
    def envoy_pid(self) -> int | None:
        return self._envoy.pid


def _secret(path: Path) -> str:
    """Known to Envoy and us alone: what else claims to be a note of ours is ignored. Survives a restart of either."""
    with contextlib.suppress(FileNotFoundError):
        secret = path.read_text()
        if _SECRET.fullmatch(secret):
            return secret
    secret = secrets.token_hex(16)
    write_private(path, secret)
    return secret
