"""Answers Envoy's question where a held request goes: an HTTP server on a Unix socket, one answer a request."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import httptools

from dovecote.errors import DeadlineExceeded, DovecoteError, Failed, NoCapacity, NotFound
from dovecote.gateway.clusters import (
    ADDRESS_HEADER,
    ASK_HEADER,
    FAILED_HEADER,
    INTERNAL_HEADERS,
    NOTE_HEADER,
)
from dovecote.model.ids import new_id, parse_header_name

log = logging.getLogger("dovecote.gateway")

MOST_HELD = 10_000
MOST_KEY = 1024  # characters of a cache key; a longer one is asked each time
MOST_REMEMBERED = 20_000  # requests whose answer is kept, to know what failed when they ask again

_BOX = re.compile(r"(\d{1,5})-([a-z0-9]+)")
_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
_ADDRESS = re.compile(r"\d{1,3}(\.\d{1,3}){3}:\d{1,5}")

Kind = Literal["box", "function", "app"]
Render = Callable[[DovecoteError, str], tuple[int, Mapping[str, str], bytes]]
"""Status, headers and body of an error; the second argument is the request's id."""


class Headers(Mapping[str, str]):
    """Headers of a request. Names in any case; a header that came twice is joined with a comma."""

    def __init__(self) -> None:
        self._values: dict[str, str] = {}

    def add(self, name: str, value: str) -> None:
        name = name.lower()
        there = self._values.get(name)
        self._values[name] = value if there is None else f"{there},{value}"

    def __getitem__(self, name: str) -> str:
        return self._values[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


@dataclass(frozen=True)
class Ask:
    """What a request wants. `name` is the slug of a sandbox, the name of a function, or of an app.

    `session` is the value of the affinity header as the gateway knows its name; where a function has another
    header, read `headers`. `failed` is an address that this request could not reach just now.
    """

    kind: Kind
    host: str
    name: str
    port: int | None
    credential: str
    user: str
    session: str | None
    headers: Mapping[str, str]
    failed: str | None = None


@dataclass(frozen=True)
class Answer:
    """`address` is `ip:port`. With `learn` the gateway uses it for this caller until the route's TTL has passed.

    An app's address is never learned.
    `session` is the id of the session that the address belongs to, and `affinity_header` names its header:
    both for functions. A client that sent none gets the id back in that header.
    """

    address: str
    learn: bool = True
    affinity_header: str | None = None
    session: str | None = None


Resolve = Callable[[Ask], Awaitable[Answer]]


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
        self._answered: OrderedDict[str, str] = OrderedDict()  # request id -> address
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

    async def answer(self, headers: Headers) -> bytes:
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
            ask = parse_ask(headers, self._domain, failed=self._failed(request_id, headers))
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

    def _failed(self, request_id: str, headers: Headers) -> str | None:
        """Only a request that could not reach the address it was given asks a second time."""
        failed = self._answered.get(request_id) or headers.get(FAILED_HEADER)
        return failed if failed and _ADDRESS.fullmatch(failed) else None

    def _allow(self, request_id: str, ask: Ask, answer: Answer) -> bytes:
        self._answered[request_id] = answer.address
        if len(self._answered) > MOST_REMEMBERED:
            self._answered.popitem(last=False)
        if ask.kind == "app":
            self.passed[ask.name] += 1
        head = f"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n{ADDRESS_HEADER}: {answer.address}\r\n"
        note = render_note(ask, answer)
        if note:
            head += f"{NOTE_HEADER}: {self._secret} route {note}\r\n"
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


def parse_ask(headers: Headers, domain: str, *, failed: str | None = None) -> Ask:
    """What the request wants, from its host. Raises NotFound (no_such_address)."""
    authority = headers.get("host", "")
    host = authority.rsplit(":", 1)[0].lower()
    _, credential, session, user = _fields(headers.get(ASK_HEADER, ""), authority)
    kind, name, port = _parse_host(host, domain)
    visible = Headers()
    for header, value in headers.items():
        if header not in INTERNAL_HEADERS:
            visible.add(header, value)
    return Ask(kind, host, name, port, credential, user, session or None, visible, failed)


def _parse_host(host: str, domain: str) -> tuple[Kind, str, int | None]:
    label, _, rest = host.partition(".")
    if rest == f"box.{domain}":
        match = _BOX.fullmatch(label)
        if match and 0 < int(match[1]) < 65536:
            return "box", match[2], int(match[1])
    elif rest == f"fn.{domain}" and _NAME.fullmatch(label):
        return "function", label, None
    elif rest == f"app.{domain}" and _NAME.fullmatch(label):
        return "app", label, None
    raise NotFound(
        "nothing is at this address",
        code="no_such_address",
        hint="sandboxes are at {port}-{slug}.box, functions at {name}.fn, apps at {name}.app",
    )


def _fields(ask: str, authority: str) -> tuple[str, str, str, str]:
    """Host, credential, session and user, as the Lua cache joins them into its key."""
    if not ask or ask == "-":
        return authority, "", "", ""
    fields = ask.split(" ", 3)
    if len(fields) != 4 or fields[0] != authority:
        raise Failed("a question that is not about its own host", code="internal")
    return authority, fields[1], fields[2], "" if fields[3] == "-" else fields[3]


def render_note(ask: Ask, answer: Answer) -> str:
    """What the Lua cache is told: `<address|-> <affinity header|-> <new session|-> <key>`, or nothing."""
    authority = ask.headers.get("host", "")
    header = answer.affinity_header if ask.kind == "function" else None
    sent = ask.session
    if header is not None:
        parse_header_name(header)
        sent = ask.headers.get(header)
    session = (answer.session or sent) if header is not None else ask.session
    is_new = header is not None and answer.session is not None and answer.session != sent
    key = authority
    if ask.credential or ask.user or session:
        key = f"{authority} {ask.credential} {session or ''} {ask.user or '-'}"
    # A function's session is what makes its route; without one there is nothing to remember.
    # An app's instances change and are many: Envoy knows them from a file, the cache must not pin a visitor to one.
    is_learned = answer.learn and ask.kind != "app" and len(key) <= MOST_KEY and " " not in (session or "")
    if ask.kind == "function":
        is_learned = is_learned and bool(header and session)
    if not is_learned and not is_new:
        return ""
    address = answer.address if is_learned else "-"
    return f"{address} {header.lower() if header else '-'} {session if is_new else '-'} {key}"


class _Connection(asyncio.Protocol):
    """One connection of Envoy's. It sends the next question only when the last is answered."""

    def __init__(self, wake: Wake) -> None:
        self._wake = wake
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._headers = Headers()
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

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.add(name.decode("latin-1"), value.decode("latin-1"))

    def on_message_complete(self) -> None:
        if self._task is not None:
            self.abort()
            return
        self._task = asyncio.ensure_future(self._answer(self._headers))

    async def _answer(self, headers: Headers) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            response = await self._wake.answer(headers)
            if self._transport is not None:
                self._transport.write(response)
        self._task = None
