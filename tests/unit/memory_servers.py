"""What listens inside instances of a host in memory: a server that tells who it is, and an MCP server of each kind."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import count

from dovecote.model.states import InstanceState
from tests.unit.memory_host import MemoryHost
from tests.unit.memory_instance import MemoryInstance

Fields = list[tuple[str, str]]


class Reset(Exception):
    """The connection ended before an answer came."""


@dataclass
class Request:
    """`hold` keeps it inside until it is set."""

    method: str
    host: str
    path: str
    headers: dict[str, str]
    hold: asyncio.Event | None = None


@dataclass(eq=False)
class Stream:
    """An answer that goes on: until its client leaves, or its instance dies."""

    instance: MemoryInstance
    close: Callable[[], None]
    on_end: Callable[[], Awaitable[None]] | None = None


@dataclass
class Response:
    status: int
    fields: Fields
    chunks: list[str] = field(default_factory=list)
    stream: Stream | None = None
    instance: MemoryInstance | None = None  # that answered

    @classmethod
    def error(cls, status: int, code: str) -> Response:
        body = json.dumps({"error": {"code": code, "message": code}})
        return cls(status, [("content-type", "application/json")], [body])

    @classmethod
    def parse(cls, text: bytes) -> Response:
        head, _, body = text.decode("latin-1").partition("\r\n\r\n")
        first, *lines = head.split("\r\n")
        fields = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        return cls(int(first.split(" ")[1]), fields, [body] if body else [])

    @property
    def code(self) -> str:
        """Of an error of ours."""
        if self.instance is not None:
            return ""
        return str(json.loads("".join(self.chunks))["error"]["code"])

    def header(self, name: str) -> str | None:
        return next((value for each, value in self.fields if each == name), None)


class Servers:
    """`executed` counts by their id the requests that came to an instance, `seen` is everything that did."""

    def __init__(self, host: MemoryHost) -> None:
        self._host = host
        self._ids = count(1)
        self._begun: dict[str, set[str]] = {}  # ids that a server gave out, by instance
        self.executed: Counter[str] = Counter()
        self.seen: list[tuple[MemoryInstance, Request]] = []

    async def serve(self, address: str, request: Request) -> Response | None:
        """None where the connection is refused. Raises Reset where its instance dies over it."""
        ip, _, port = address.partition(":")
        instance = next((each for each in self._host.instances.values() if each.address == ip), None)
        if instance is None or instance.state is not InstanceState.READY or int(port) not in instance.open_ports:
            return None
        flows = self._host.flows
        if instance.claim.connections and flows[instance.id] >= instance.claim.connections:
            return None
        flows[instance.id] += 1
        self.seen.append((instance, request))
        if "x-work" in request.headers:
            self.executed[request.headers["x-work"]] += 1
        response: Response | None = None
        try:
            await asyncio.sleep(0)
            if request.hold is not None:
                await request.hold.wait()
            if instance.id not in self._host.instances:
                raise Reset
            response = self._answer(instance, request)
            return response
        finally:
            instance.quiet_since = self._host.clock.now
            if response is None or response.stream is None:
                self._left(instance)

    def _left(self, instance: MemoryInstance) -> None:
        if self._host.flows[instance.id]:
            self._host.flows[instance.id] -= 1

    def _answer(self, instance: MemoryInstance, request: Request) -> Response:
        path, _, query = request.path.partition("?")
        if path == "/mcp":
            return self._streamable(instance, request)
        if path == "/sse" and request.method == "GET":
            return self._events(instance)
        if path == "/messages":
            known = query.removeprefix("session_id=") in self._begun.get(instance.id, ())
            return Response(202 if known else 404, [], instance=instance)
        return Response(200, [], instance=instance)

    def _streamable(self, instance: MemoryInstance, request: Request) -> Response:
        given, begun = request.headers.get("mcp-session-id"), self._begun.setdefault(instance.id, set())
        if given is None:
            begun.add(given := f"theirs-{next(self._ids)}")
            return Response(200, [("mcp-session-id", given)], instance=instance)
        status = 200 if given in begun else 404
        if request.method == "DELETE":
            begun.discard(given)
        return Response(status, [("mcp-session-id", given)], instance=instance)

    def _events(self, instance: MemoryInstance) -> Response:
        self._begun.setdefault(instance.id, set()).add(theirs := f"{next(self._ids):08x}")
        event = f"event: endpoint\r\ndata: /messages?session_id={theirs}\r\n\r\n"
        stream = Stream(instance, lambda: self._left(instance))
        return Response(200, [("content-type", "text/event-stream")], [event[:9], event[9:]], stream, instance)
