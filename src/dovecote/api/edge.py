"""The outermost layer of the API: request ids, keys, bounded bodies, and no error that leaves without a shape."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import MutableMapping, Sequence
from typing import Any, Protocol

from starlette.datastructures import Headers, QueryParams
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dovecote.api import errors, metrics
from dovecote.api.tickets import Tickets, check_origin
from dovecote.api.uploads import Upload
from dovecote.errors import DovecoteError, Invalid, NotFound, Unauthenticated
from dovecote.model.ids import new_id

_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{8,64}")

MAX_JSON_BYTES = 1 << 20
FILES = "PUT /v1/sessions/{session_id}/files"
PUBLIC = frozenset({"/v1/openapi.json"})
TOOLS = "/mcp"  # it acts with its caller's key

log = logging.getLogger("dovecote.api")


class Authenticate(Protocol):
    """Says whose key this is. Called once a request; raises Unauthenticated."""

    async def __call__(self, secret: str) -> Any: ...


def secret_of(headers: Headers) -> str:
    """The API key of a request: `Authorization: Bearer <key>` or `x-dovecote-key`. Raises Unauthenticated."""
    scheme, _, secret = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not secret:
        secret = headers.get("x-dovecote-key", "")
    if not secret:
        raise Unauthenticated("no API key", hint="send `Authorization: Bearer <key>` or `x-dovecote-key: <key>`")
    return secret.strip()


class Edge:
    """ASGI layer around the routes. All of /v1 needs a key unless it is in PUBLIC, and /mcp: no route can forget it."""

    def __init__(
        self, app: ASGIApp, authenticate: Authenticate, tickets: Tickets, uploads: Sequence[Upload] = ()
    ) -> None:
        self._app = app
        self._uploads = uploads
        self._authenticate = authenticate
        self._tickets = tickets

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._open(scope, receive, _Opening(scope, send))
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)

    async def _open(self, scope: Scope, receive: Receive, opening: _Opening) -> None:
        """A WebSocket. A refusal before it is open is an answer like any other; afterwards its route says it."""
        try:
            headers = Headers(scope=scope)
            admitted = ""
            if scope["path"].startswith("/v1/"):
                ticket = QueryParams(scope["query_string"]).get("ticket")
                if ticket is None:
                    scope["dovecote.principal"] = await self._authenticate(secret_of(headers))
                else:
                    scope["dovecote.principal"] = guest = self._tickets.redeem(ticket, scope["path"])
                    admitted = guest.origin
            check_origin(headers.get("origin", ""), headers.get("host", ""), admitted)
            await self._app(scope, receive, opening.send)
        except DovecoteError as error:
            await opening.fail(error)
        except Exception:
            log.exception("WebSocket %s failed, %s", scope["path"], opening.request_id)
            await opening.fail(errors.internal())
        finally:
            route = getattr(scope.get("route"), "path", "none")
            metrics.REQUESTS.labels("WEBSOCKET", route, str(opening.status)).inc()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = _Exchange(scope, receive, send)
        started = time.perf_counter()
        try:
            await self._serve(scope, exchange)
        except DovecoteError as error:
            await exchange.fail(error)
        except ClientDisconnect:
            pass  # nobody is left to answer
        except Exception:
            log.exception("%s %s failed, %s", scope["method"], scope["path"], exchange.request_id)
            await exchange.fail(errors.internal())
        finally:
            route = getattr(scope.get("route"), "path", "none")
            metrics.REQUESTS.labels(scope["method"], route, str(exchange.status)).inc()
            metrics.SECONDS.labels(scope["method"], route).observe(time.perf_counter() - started)

    async def _serve(self, scope: Scope, exchange: _Exchange) -> None:
        headers = Headers(scope=scope)
        path = scope["path"]
        if path == TOOLS or (path.startswith("/v1/") and path not in PUBLIC):
            scope["dovecote.key"] = secret_of(headers)
            scope["dovecote.principal"] = await self._authenticate(scope["dovecote.key"])
        upload = next((each for each in self._uploads if each.is_for(scope["method"], scope["path"])), None)
        most = MAX_JSON_BYTES if upload is None else upload.most_bytes
        if most is not None:
            length = headers.get("content-length", "")
            exchange.limit(most, int(length) if length.isdigit() else 0, hint=_smaller(path, upload))
        await self._app(scope, exchange.receive, exchange.send)


def _smaller(path: str, upload: Upload | None) -> str:
    """What whoever sent too much to this route can do."""
    if upload is not None:
        return upload.hint
    if path.startswith("/v1/sessions/"):
        return f"files of any size go through {FILES}; commands can read them there"
    return "send less in one request"


def _request_id(scope: MutableMapping[str, Any]) -> str:
    """The gateway gives each request an id, and takes away what a client sent as one."""
    given = Headers(scope=scope).get("x-request-id", "")
    scope["dovecote.request_id"] = known = given if _REQUEST_ID.fullmatch(given) else new_id("req")
    return known


class _Opening:
    """A WebSocket as it is opened. Until then it can be refused with a status and an error."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.request_id = _request_id(scope)
        self.status = 499  # until it was accepted or refused: the client left
        self._path = scope["path"]
        self._send = send
        self._is_open = False

    async def send(self, message: Message) -> None:
        if message["type"] == "websocket.accept":
            self._is_open, self.status = True, 101
        elif message["type"] == "websocket.http.response.start":
            self.status = message["status"]
        elif message["type"] == "websocket.close" and not self._is_open:
            raise NotFound(f"no WebSocket at {self._path}", code="no_such_route", hint="/v1/openapi.json lists routes")
        await self._send(message)

    async def fail(self, error: DovecoteError) -> None:
        if self._is_open:
            await self._send({"type": "websocket.close", "code": 1011, "reason": error.code})
            return
        self.status, headers, body = errors.render(error, self.request_id)
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self._send({"type": "websocket.http.response.start", "status": self.status, "headers": raw})
        await self._send({"type": "websocket.http.response.body", "body": body})


class _Exchange:
    """One request and its answer. Counts what comes in, marks what goes out."""

    def __init__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        self.request_id = _request_id(scope)
        self.status = 499  # until an answer has begun: the client left
        self._receive = receive
        self._send = send
        self._most: int | None = None  # bytes of its body
        self._hint = ""
        self._received = 0
        self._has_begun = False

    def limit(self, most_bytes: int, announced_bytes: int, *, hint: str) -> None:
        self._most, self._hint = most_bytes, hint
        self._check(announced_bytes)

    def _check(self, size: int) -> None:
        if self._most is not None and size > self._most:
            raise Invalid(f"the body is over {self._most} bytes", code="too_large", hint=self._hint)

    async def receive(self) -> Message:
        message = await self._receive()
        if self._most is not None and message["type"] == "http.request":
            self._received += len(message.get("body", b""))
            self._check(self._received)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._has_begun = True
            self.status = message["status"]
            names = {name for name, _ in message["headers"]}
            if b"x-request-id" not in names:
                message["headers"] = [*message["headers"], (b"x-request-id", self.request_id.encode())]
        await self._send(message)

    async def fail(self, error: DovecoteError) -> None:
        """Answers with an error. Where an answer has begun already, it stays unfinished: the server then cuts it."""
        if self._has_begun:
            return
        status, headers, body = errors.render(error, self.request_id)
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        raw.append((b"content-length", str(len(body)).encode()))
        await self.send({"type": "http.response.start", "status": status, "headers": raw})
        await self.send({"type": "http.response.body", "body": body})
