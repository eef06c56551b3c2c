"""The tools over streamable HTTP at /mcp, for clients of the revisions with `initialize` and of those without."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from dovecote.errors import Failed, Forbidden, Invalid
from dovecote.mcp.calls import CallName, Calls
from dovecote.mcp.origins import is_own

if TYPE_CHECKING:
    from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

    from dovecote.mcp.arguments import Call
    from dovecote.sdk import AsyncDovecote

PATH = "/mcp"
KEY = "dovecote.key"  # where the edge put the caller's key, which it has checked
SESSION_HEADER = "mcp-session-id"
ENDED: Message = {"type": "http.response.body", "body": b""}


class Endpoint:
    """An ASGI application. Its tools call our own API with the caller's key, so they can do what the key can."""

    def __init__(
        self, *, domain: str, transport: Callable[[], httpx.AsyncBaseTransport], new_id: Callable[[], str]
    ) -> None:
        self._domain = domain
        self._make_transport = transport
        self._new_id = new_id
        self._calls = Calls()
        self._begun = asyncio.Lock()
        self._manager: StreamableHTTPSessionManager | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._is_stopping = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        if (origin := headers.get("origin")) and not is_own(origin, headers.get("host", ""), self._domain):
            raise Forbidden(f"not for pages of {origin[:200]}", code="foreign_origin", hint="use an MCP client")
        if scope["method"] != "POST":
            raise Invalid(f"{PATH} takes POST only: it opens no streams by itself", code="method_not_allowed")
        body = await Request(scope, receive).body()
        manager = await self._ready()
        message = _Envelope.read(body, headers, scope[KEY])
        with self._calls.counted(scope[KEY]):
            await self._handle(manager, message, scope, _again(body, receive), send)

    async def _handle(
        self, manager: StreamableHTTPSessionManager, message: _Envelope, scope: Scope, receive: Receive, send: Send
    ) -> None:
        if message.cancels is not None:
            self._calls.cancel(message.cancels)
        answer = _Answer(send, self._new_id() if message.method == "initialize" else None)
        with self._calls.cancellable(message.call) as cancelled:
            await manager.handle_request(scope, receive, answer)
        if cancelled.cancelled_caught:
            await answer.end()

    async def _ready(self) -> StreamableHTTPSessionManager:
        """The library is loaded by whoever calls first, in a thread: it takes a second."""
        async with self._begun:
            if self._is_stopping:
                raise Failed("the server is stopping", code="stopping", hint="try again in a moment")
            if self._manager is None or self._keeping is None or self._keeping.done():
                is_open = asyncio.Event()
                self._manager = manager = await asyncio.to_thread(self._build)
                self._keeping = asyncio.create_task(_keep(manager, is_open))
                await is_open.wait()
            return self._manager

    def _build(self) -> StreamableHTTPSessionManager:
        from mcp.server.transport_security import TransportSecuritySettings

        from dovecote.mcp.server import build_server
        from dovecote.sdk import AsyncDovecote

        transport = _Shared(self._make_transport())

        def client_of(call: Call) -> AsyncDovecote:
            request: Request = call.request_context.request  # type: ignore[assignment]
            return AsyncDovecote(request.scope[KEY], "http://localhost", transport=transport)

        server = build_server(client_of)
        server.streamable_http_app(
            streamable_http_path=PATH,
            stateless_http=True,
            transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),  # see `is_own`
        )
        return server.session_manager

    async def stop(self) -> None:
        """Calls that go on are cut off."""
        self._is_stopping = True
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)


async def _keep(manager: StreamableHTTPSessionManager, is_open: asyncio.Event) -> None:
    async with manager.run():
        is_open.set()
        await asyncio.Event().wait()


class _Shared(httpx.AsyncBaseTransport):
    """One pool of connections for the clients of all calls: closing a client does not close it."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self._inner.handle_async_request(request)


@dataclass(frozen=True)
class _Envelope:
    """What a message says about itself, as far as it has to be known before the library reads it."""

    method: str
    call: CallName | None  # of a request that can be taken back
    cancels: CallName | None

    @classmethod
    def read(cls, body: bytes, headers: Headers, key: str) -> _Envelope:
        try:
            message: Any = json.loads(body)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            return cls("", None, None)  # the library says what is wrong with it
        method, session = str(message.get("method", "")), headers.get(SESSION_HEADER)
        if not session:
            return cls(method, None, None)
        call = cancels = None
        if "id" in message:
            call = CallName(key, session, json.dumps(message["id"]))
        elif method == "notifications/cancelled" and isinstance(params := message.get("params"), dict):
            cancels = CallName(key, session, json.dumps(params.get("requestId")))
        return cls(method, call, cancels)


class _Answer:
    """Counts on how far an answer has got, so that a cancelled one is ended properly."""

    def __init__(self, send: Send, session: str | None) -> None:
        self._send = send
        self._session = session
        self._has_begun = self._has_ended = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._has_begun = True
            if self._session is not None and message["status"] == 200:
                named = (SESSION_HEADER.encode(), self._session.encode())
                message = {**message, "headers": [*message.get("headers", []), named]}
        elif message["type"] == "http.response.body":
            self._has_ended = not message.get("more_body", False)
        await self._send(message)

    async def end(self) -> None:
        """Nothing more is said of a call that was taken back."""
        if not self._has_begun:
            await self({"type": "http.response.start", "status": 202, "headers": [(b"content-length", b"0")]})
        if not self._has_ended:
            await self(ENDED)


def _again(body: bytes, receive: Receive) -> Receive:
    """The body that was read already, then what else comes: that the client has left."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def messages() -> Message:
        return first.pop() if first else await receive()

    return messages
