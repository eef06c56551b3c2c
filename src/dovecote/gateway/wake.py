"""Answers Envoy's question where a held request goes: an HTTP server on a Unix socket, one answer a request."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import httptools

from dovecote.errors import DeadlineExceeded, DovecoteError, Failed, NoCapacity
from dovecote.gateway.affinity import render_spec
from dovecote.gateway.clusters import (
    ADDRESS_HEADER,
    FAILED_HEADER,
    LIMITED_HEADER,
    NOTE_HEADER,
    SESSION_HEADER,
    SPEC_HEADER,
    USER_HEADER,
)
from dovecote.gateway.question import Answer, Ask, Headers, Resolve, needs_taking, parse_ask, render_note
from dovecote.model.ids import new_id

log = logging.getLogger("dovecote.gateway")

MOST_HELD = 10_000
MOST_ANSWERS = 3  # for one request, unless its instance has a limit that others may have reached first
MOST_REMEMBERED = 20_000  # requests whose answer is kept, to know what failed when they ask again

REMOVE_HEADER = "x-envoy-auth-headers-to-remove"  # from the request that goes on

_ADDRESS = re.compile(r"\d{1,3}(\.\d{1,3}){3}:\d{1,5}")


@dataclass(frozen=True)
class _Given:
    """What a request was answered. It asks again when nothing of it could be sent to that address."""

    address: str
    key: str | None  # of its session
    asked: int  # how often until then


Render = Callable[[DovecoteError, str], tuple[int, Mapping[str, str], bytes]]
"""Status, headers and body of an error; the second argument is the request's id."""


class Wake:
    """Asks `resolve`, at most `start_timeout` seconds a request. Requests for one instance share its start in there."""

    def __init__(
        self,
        socket: Path,
        *,
        domain: str,
        secret: str,
        start_timeout: float,
        resolve: Resolve,
        render: Render,
        most_held: int = MOST_HELD,
    ) -> None:
        self._socket = socket
        self._domain = domain
        self._secret = secret
        self._start_timeout = start_timeout
        self._resolve = resolve
        self._render = render
        self._most_held = most_held
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()
        self._given: OrderedDict[str, _Given] = OrderedDict()  # by the request's id, which Envoy makes
        self.waiting: Counter[str] = Counter()  # by name of app
        self.passed: Counter[str] = Counter()  # by name of app, requests that went on from here
        self.held = 0

    async def start(self) -> None:
        self._socket.unlink(missing_ok=True)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: _Connection(self), str(self._socket), backlog=4096)
        self._socket.chmod(0o600)

    async def stop(self) -> None:
        """Ends the questions that are open: Envoy answers them 503."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in list(self._connections):
            connection.abort()

    @property
    def is_open(self) -> bool:
        return self._server is not None

    async def answer(self, method: str, path: str, headers: Headers) -> bytes:
        """The HTTP response to one question. Does not raise but for cancellation: the client has left."""
        request_id = headers.get("x-request-id") or new_id("req")
        try:
            if self.held >= self._most_held:
                raise NoCapacity(
                    "too many requests are waiting for their instance",
                    code="too_many",
                    hint="try again in a few seconds",
                    retry_after=2.0,
                )
            given = self._given.get(request_id)
            failed = _failed(given.address if given else headers.get(FAILED_HEADER))
            key = given.key if given else None
            ask = parse_ask(method, path, headers, self._domain, failed=failed, given=key)
            answer = await self._held(ask)
            if not _ADDRESS.fullmatch(answer.address):
                raise Failed(f"not an address: {answer.address!r}", code="internal")
            return self._allow(request_id, ask, answer)
        except DovecoteError as error:
            return self._deny(request_id, error)
        except Exception:
            log.exception("a request could not be placed, %s", request_id)
            hint = "the log has it under request_id"
            return self._deny(request_id, Failed("something went wrong on our side", code="internal", hint=hint))

    async def _held(self, ask: Ask) -> Answer:
        self.held += 1
        if ask.kind == "app":
            self.waiting[ask.name] += 1
        try:
            async with asyncio.timeout(self._start_timeout):
                return await self._resolve(ask)
        except TimeoutError:
            raise DeadlineExceeded(
                f"it did not start within {self._start_timeout:g} s",
                code="start_timeout",
                hint="look at the output of its start command",
            ) from None
        finally:
            self.held -= 1
            if ask.kind == "app":
                self.waiting[ask.name] -= 1
                if not self.waiting[ask.name]:
                    del self.waiting[ask.name]

    def _allow(self, request_id: str, ask: Ask, answer: Answer) -> bytes:
        before = self._given.get(request_id)
        asked = before.asked + 1 if before else 1
        if asked > MOST_ANSWERS and not answer.is_limited:
            raise Failed("nothing answers at this address", code="unreachable", hint="try again in a few seconds")
        self._given[request_id] = _Given(answer.address, answer.key, asked)
        if len(self._given) > MOST_REMEMBERED:
            self._given.popitem(last=False)
        if ask.kind == "app":
            self.passed[ask.name] += 1
        head = f"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n{ADDRESS_HEADER}: {answer.address}\r\n"
        note = render_note(ask, answer)
        if note:
            head += f"{NOTE_HEADER}: {self._secret} route {note}\r\n"
        if answer.affinity is not None and needs_taking(ask, answer.affinity):
            head += f"{SPEC_HEADER}: {render_spec(answer.affinity, 0)}\r\n"
        if answer.session_id is not None:
            head += f"{SESSION_HEADER}: {answer.session_id}\r\n"
        if answer.is_limited:
            head += f"{LIMITED_HEADER}: 1\r\n"
        if answer.is_stranger:
            head += f"{REMOVE_HEADER}: {USER_HEADER}\r\n"
        return (head + "\r\n").encode("latin-1")

    def _deny(self, request_id: str, error: DovecoteError) -> bytes:
        # Envoy takes a 5xx from here for a fault of ours and drops its body, so the status travels in the note.
        status, headers, body = self._render(error, request_id)
        fields = dict(headers) | {"content-length": str(len(body)), NOTE_HEADER: f"{self._secret} deny {status}"}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return f"HTTP/1.1 403 Forbidden\r\n{head}\r\n".encode("latin-1") + body

    def joined(self, connection: _Connection) -> None:
        self._connections.add(connection)

    def left(self, connection: _Connection) -> None:
        self._connections.discard(connection)


def _failed(address: str | None) -> str | None:
    return address if address and _ADDRESS.fullmatch(address) else None


class _Connection(asyncio.Protocol):
    """One connection of Envoy's. It sends the next question only when the last is answered."""

    def __init__(self, wake: Wake) -> None:
        self._wake = wake
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._headers = Headers()
        self._path = b""
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one without saying so
        self._wake.joined(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._wake.left(self)
        self._transport = None
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            log.warning("a question of the gateway could not be read")
            self.abort()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # -- called by the parser

    def on_message_begin(self) -> None:
        self._headers = Headers()
        self._path = b""

    def on_url(self, url: bytes) -> None:
        self._path += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.add(name.decode("latin-1"), value.decode("latin-1"))

    def on_message_complete(self) -> None:
        if self._task is not None:
            self.abort()
            return
        method = self._parser.get_method().decode("latin-1")
        self._task = asyncio.ensure_future(self._answer(method, self._path.decode("latin-1"), self._headers))

    async def _answer(self, method: str, path: str, headers: Headers) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            response = await self._wake.answer(method, path, headers)
            if self._transport is not None:
                self._transport.write(response)
        self._task = None
