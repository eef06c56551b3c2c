"""Ports of sandboxes that Dovecote answers itself: which sandbox a request is for, and whether it may."""

from __future__ import annotations

import hmac
import logging
import re
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Protocol

from starlette.datastructures import Headers, QueryParams
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dovecote.api import errors, metrics
from dovecote.api.e2b.connect import send_json
from dovecote.api.e2b.errors import body_of, status_of
from dovecote.api.e2b.signing import parse_signed
from dovecote.control.sessions import Sessions
from dovecote.errors import Conflict, DovecoteError, NotFound, Unauthenticated
from dovecote.model.addresses import ENVD
from dovecote.model.records import Session
from dovecote.model.states import AtTimeout

FILES = "/files"
HEALTH = "/health"
AFTER_USE = timedelta(minutes=5)  # to the next pause of one that use has woken
OPEN = re.compile(r"/health|/contexts(/.*)?")  # of every sandbox, for whoever knows its name: clients send no token
NOT_RUNNING = frozenset({"no_such_session", "session_expired", "paused"})
CROSSING = re.compile(
    r"/(files|health|envs|metrics|execute|contexts(/.*)?|(process\.Process|filesystem\.Filesystem)/\w+)"
)

log = logging.getLogger("dovecote.api")


class Served(Protocol):
    """What answers a port. Called with a sandbox that runs and a request that may reach it; may raise our errors."""

    async def serve(self, session: Session, scope: Scope, receive: Receive, send: Send) -> None: ...


class Ports:
    """ASGI layer around everything else on the main address.

    A request says its sandbox by the headers `E2b-Sandbox-Id` and `E2b-Sandbox-Port`, by its host, or not at all:
    then it is a signed URL, and the sandbox is the one whose token signed it. Bodies are as long as what answers takes.
    """

    def __init__(self, app: ASGIApp, sessions: Sessions, domain: str, ports: Mapping[int, Served]) -> None:
        self._app = app
        self._sessions = sessions
        self._ports = ports
        numbers = "|".join(str(port) for port in ports)
        self._host = re.compile(rf"({numbers})-([a-z0-9]{{1,64}})\.box\.{re.escape(domain)}")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, query = Headers(scope=scope), QueryParams(scope["query_string"])
        name, port = self._target(headers)
        if name is not None or (scope["path"] == FILES and "signature" in query):
            await self._answer(name, port, scope, headers, query, receive, send)
        elif is_preflight(scope, headers):
            await _allow(headers, send)
        else:
            await self._app(scope, receive, send)

    def _target(self, headers: Headers) -> tuple[str | None, int]:
        """The sandbox's name, None where the request does not say it, and the port."""
        name, port = headers.get("e2b-sandbox-id"), headers.get("e2b-sandbox-port", str(ENVD))
        if name is not None:
            return name, int(port) if port.isascii() and port.isdigit() and len(port) <= 5 else 0
        match = self._host.fullmatch(headers.get("host", "").rsplit(":", 1)[0].lower())
        return (match[2], int(match[1])) if match else (None, ENVD)

    async def _answer(
        self,
        name: str | None,
        port: int,
        scope: Scope,
        headers: Headers,
        query: QueryParams,
        receive: Receive,
        send: Send,
    ) -> None:
        answer = _Answer(send)
        started = time.perf_counter()
        route = scope["path"] if CROSSING.fullmatch(scope["path"]) else "none"
        try:
            if is_preflight(scope, headers):
                await _allow(headers, answer.send)
                return
            session = await self._timed(await self._admit(name, port, scope, headers, query), scope["path"])
            await self._ports[port].serve(session, scope, receive, answer.send)
        except DovecoteError as error:
            await answer.fail(error, name)
        except ClientDisconnect:
            pass  # nobody is left to answer
        except Exception:
            log.exception("%s %s of a sandbox failed", scope["method"], scope["path"])
            await answer.fail(errors.internal(), name)
        finally:
            metrics.REQUESTS.labels(scope["method"], f"{port}{route}", str(answer.status)).inc()
            metrics.SECONDS.labels(scope["method"], f"{port}{route}").observe(time.perf_counter() - started)

    async def _admit(self, name: str | None, port: int, scope: Scope, headers: Headers, query: QueryParams) -> Session:
        """The sandbox, running or woken by use, when the request has the right to it."""
        if port not in self._ports:
            raise NotFound(f"port {port} is not served here", code="no_such_port", hint="ask the sandbox's own name")
        signed = parse_signed(query, scope["method"]) if scope["path"] == FILES else None
        if name is None:
            assert signed is not None
            signed.check_time()
            found = await self._sessions.tokens.find(signed.is_of)
            if found is None:
                raise Unauthenticated("invalid signature")
            return _running(found)
        session = _running(await self._sessions.by_slug(name))
        if OPEN.fullmatch(scope["path"]) or not session.needs_token:
            return session
        if _holds(session, headers.get("x-access-token", "")):
            return session
        if signed is None:
            raise Unauthenticated("unauthorized access, please provide a valid access token or method signing")
        if not session.token or not signed.is_of(session.token):
            raise Unauthenticated("invalid signature")
        signed.check_time()
        return session

    async def _timed(self, session: Session, path: str) -> Session:
        """Awake and with a timeout again, where its pause took that away and a use like this ends the pause."""
        if not session.is_paused or session.at_timeout is AtTimeout.END or path == HEALTH:
            return session
        return await self._sessions.resume(session.tenant_id, session.id, at_least=AFTER_USE)


def is_preflight(scope: Scope, headers: Headers) -> bool:
    """A browser asks whether a page of another site may send such a request. It does not say for which sandbox."""
    return (
        scope["method"] == "OPTIONS"
        and "access-control-request-method" in headers
        and CROSSING.fullmatch(scope["path"]) is not None
    )


def _running(session: Session) -> Session:
    if session.is_paused and not session.resumes_on_use:
        raise Conflict("the sandbox is paused", code="paused")
    return session


def _holds(session: Session, token: str) -> bool:
    return bool(session.token) and hmac.compare_digest(session.token.encode(), token.encode("utf-8", "replace"))


async def _allow(headers: Headers, send: Send) -> None:
    """Any site: the right to a sandbox is a token or a signature in the request, never what a browser adds itself."""
    names = headers.get("access-control-request-headers", "")
    allowed = [
        (b"access-control-allow-origin", b"*"),
        (b"access-control-allow-methods", b"GET, POST, DELETE, OPTIONS"),
        (b"access-control-allow-headers", names.encode("latin-1", "replace")[:1000]),
        (b"access-control-max-age", b"7200"),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": allowed})
    await send({"type": "http.response.body", "body": b""})


class _Answer:
    """Marks what goes out, and knows whether an error can still be told."""

    def __init__(self, send: Send) -> None:
        self.status = 499  # until an answer has begun: the client left
        self._has_begun = False
        self._send = send

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._has_begun = True
            self.status = message["status"]
            names = {name for name, _ in message["headers"]}
            if b"access-control-allow-origin" not in names:
                message["headers"] = [*message["headers"], (b"access-control-allow-origin", b"*")]
        await self._send(message)

    async def fail(self, error: DovecoteError, name: str | None) -> None:
        """Where an answer has begun already it stays unfinished: the server then cuts it."""
        if self._has_begun:
            return
        metrics.ERRORS.labels(error.code).inc()
        if error.code in NOT_RUNNING:
            body = {"sandboxId": name or "", "message": "The sandbox was not found", "code": 502}
            await send_json(self.send, 502, body)
            return
        await send_json(self.send, status_of(error), body_of(error))
