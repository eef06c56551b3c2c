"""A gateway with real Envoy, instances that are small HTTP servers, and a `resolve` that a test writes."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import socket
import ssl
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from ipaddress import IPv4Network
from pathlib import Path

import httpx

from dovecote.api import errors as api_errors
from dovecote.errors import NotFound
from dovecote.gateway import Answer, Ask, Gateway
from dovecote.gateway.certificates import Authority, authority_path
from dovecote.model.serving import Affinity, Mode

SLUG = "abcdefghijkmnpqrstuvwxyz23"
BOUND = 20.0  # seconds that a condition may take


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Waits for the condition, with a bound."""
    async with asyncio.timeout(BOUND):
        while not await condition():  # noqa: ASYNC110 - conditions of another process have no event
            await asyncio.sleep(0.01)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Instance:
    """An HTTP server that says what reached it. `/hang` never answers, `/events` streams one line a `gate`.

    A request may say what is answered: another status in `x-status`, more headers in `x-answer`, with ` + ` between
    them, or in `x-stream` the text of an event stream and in pieces of which size it comes; that stream ends with a
    `gate`.
    """

    def __init__(self, name: str, ip: str = "127.0.0.1") -> None:
        self.name, self.ip, self.port = name, ip, 0
        self.seen: list[str] = []
        self.connections = 0
        self.gate = asyncio.Semaphore(0)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> str:
        return f"{self.ip}:{self.port}"

    async def start(self, port: int = 0) -> Instance:
        self._server = await asyncio.start_server(self._serve, self.ip, port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def die(self) -> None:
        """As after SIGKILL: connections are reset and new ones are refused."""
        if self._server is not None:
            self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        for task in list(self._tasks):
            task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        self.connections += 1
        try:
            while await self._one(reader, writer):
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = head[0].split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:-2])}
        self.seen.append(f"{method} {path}")
        if headers.get("upgrade") == "websocket":
            writer.write(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n")
            while data := await reader.read(4096):
                writer.write(self.name.encode() + b":" + data)
            return False
        size, digest = await _body(reader, headers)
        if path == "/hang":
            await asyncio.get_running_loop().create_future()
        if path == "/events":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
            for n in range(3):
                await self.gate.acquire()
                writer.write(b"9\r\ndata: %d\n\n\r\n" % n)
            writer.write(b"0\r\n\r\n")
            return True
        if "x-stream" in headers:
            await self._stream(writer, *json.loads(headers["x-stream"]))
            return False
        if path == "/gated":
            await self.gate.acquire()
        said = {"name": self.name, "method": method, "path": path, "headers": headers, "size": size, "sha256": digest}
        body = json.dumps(said).encode()
        added = headers.get("x-answer", "").replace(" + ", "\r\n").encode()
        added = added + b"\r\n" if added else b""
        spoof = b"x-gw-wake: guessed route 127.0.0.1:9 - - fooled\r\n" if path == "/spoof" else b""
        status = headers.get("x-status", "200").encode()
        writer.write(b"HTTP/1.1 %s ...\r\ncontent-length: %d\r\n%s\r\n" % (status, len(body), spoof + added) + body)
        return True

    async def _stream(self, writer: asyncio.StreamWriter, text: str, piece: int) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for at in range(0, len(text), piece):
            part = text[at : at + piece].encode()
            writer.write(b"%x\r\n%s\r\n" % (len(part), part))
            await writer.drain()
            await asyncio.sleep(0)
        await self.gate.acquire()
        writer.write(b"0\r\n\r\n")
        await writer.drain()


async def _body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    if headers.get("transfer-encoding") == "chunked":
        while length := int((await reader.readline()).strip(), 16):
            digest.update((await reader.readexactly(length + 2))[:-2])
            size += length
        await reader.readline()
    left = int(headers.get("content-length", 0))
    while left:
        data = await reader.read(min(left, 1 << 20))
        if not data:
            raise asyncio.IncompleteReadError(b"", left)
        digest.update(data)
        size, left = size + len(data), left - len(data)
    return size, digest.hexdigest()


class World:
    """`answers` is what the test's `resolve` does; `asks` is what it was asked."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir, self.port = run_dir, free_port()
        self.asks: list[Ask] = []
        self.answers: Callable[[Ask], Awaitable[Answer]] = self._nobody
        self.start_timeout = 30.0
        self.most_held = 1000
        self.route_ttl = 30
        self.concurrency = 1
        self.report_every = 10.0
        self.tls_port = 0
        self.trusted: list[IPv4Network] = []
        self.touched: list[str] = []
        self.ended: list[tuple[str, str]] = []
        self.gateway: Gateway | None = None
        self.client = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{self.port}", timeout=BOUND, limits=httpx.Limits(max_connections=1000)
        )
        self._instances: list[Instance] = []

    @staticmethod
    async def _nobody(ask: Ask) -> Answer:
        raise NotFound(f"there is no {ask.name}", hint="check the name")

    async def _resolve(self, ask: Ask) -> Answer:
        self.asks.append(ask)
        return await self.answers(ask)

    async def _touch(self, session_id: str) -> None:
        self.touched.append(session_id)

    async def _end(self, session_id: str, reason: str) -> None:
        self.ended.append((session_id, reason))

    def build(self) -> Gateway:
        self.gateway = Gateway(
            run_dir=self.run_dir,
            bind="127.0.0.1",
            port=self.port,
            domain="localhost",
            route_ttl=self.route_ttl,
            start_timeout=self.start_timeout,
            resolve=self._resolve,
            render=api_errors.render,
            touch=self._touch,
            end=self._end,
            report_every=self.report_every,
            concurrency=self.concurrency,
            most_held=self.most_held,
            tls_port=self.tls_port,
            trusted=self.trusted,
            certificates=Authority(self.run_dir, "localhost") if self.tls_port else None,
        )
        return self.gateway

    async def open(self) -> Gateway:
        gateway = self.build()
        await gateway.start()
        return gateway

    async def instance(self, name: str, ip: str = "127.0.0.1") -> Instance:
        instance = await Instance(name, ip).start()
        self._instances.append(instance)
        return instance

    def points_to(self, instance: Instance) -> None:
        async def answer(ask: Ask) -> Answer:
            return Answer(instance.address)

        self.answers = answer

    async def get(self, host: str, path: str = "/", **headers: str) -> httpx.Response:
        return await self.send("GET", host, path, b"", **headers)

    async def send(self, method: str, host: str, path: str = "/", body: bytes = b"", **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = await self.client.request(
            method, path, content=body or None, headers={"host": f"{host}:{self.port}", **named}
        )
        self.client.cookies.clear()  # a test sends those that it names
        return answer

    def secure_client(self) -> httpx.AsyncClient:
        """Of the TLS port; it trusts the gateway's own authority."""
        trusted = ssl.create_default_context(cafile=str(authority_path(self.run_dir, "localhost")))
        return httpx.AsyncClient(base_url=f"https://127.0.0.1:{self.tls_port}", timeout=BOUND, verify=trusted)

    async def dial(self, host: str, path: str = "/") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A WebSocket upgrade by hand; returns once it is answered."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        lines = [
            f"GET {path} HTTP/1.1",
            f"host: {host}:{self.port}",
            "connection: upgrade",
            "upgrade: websocket",
            "",
            "",
        ]
        writer.write("\r\n".join(lines).encode())
        async with asyncio.timeout(BOUND):
            head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101"), head
        return reader, writer

    async def close(self) -> None:
        await self.client.aclose()
        for instance in self._instances:
            await instance.die()
        if self.gateway is not None:
            await self.gateway.stop()


class Serving:
    """What Python answers, over a set of sessions: the n-th session is `s{n}`, at the n-th instance, round about."""

    def __init__(self, w: World, affinity: Affinity, *instances: Instance) -> None:
        self.affinity, self.instances = affinity, instances
        self.sessions: dict[str, Instance] = {}
        w.answers = self.answer

    async def answer(self, ask: Ask) -> Answer:
        found = ask.session(self.affinity)
        if self.affinity.has(Mode.NONE):
            return Answer(self.instances[0].address, affinity=self.affinity)
        key = found.key if found else None
        if found and found.is_made_here and key not in self.sessions:
            if found.mode is not Mode.COOKIE:
                raise NotFound("no session has this id", code="not_found")
            key = None
        key = key or f"s{len(self.sessions) + 1}"
        at = self.sessions.setdefault(key, self.instances[len(self.sessions) % len(self.instances)])
        return Answer(
            at.address, affinity=self.affinity, key=key, cookie=key, session_id=f"ses_{key}", cookie_seconds=60
        )


@contextlib.asynccontextmanager
async def world() -> AsyncIterator[World]:
    with tempfile.TemporaryDirectory(prefix="dc-gw-", dir="/tmp") as directory:
        there = World(Path(directory))
        try:
            yield there
        finally:
            await there.close()
