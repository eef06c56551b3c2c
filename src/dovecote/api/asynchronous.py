"""Requests to a function's own address that ask to be done later: `x-dovecote-invoke: async`."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import orjson
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from dovecote.api import errors, metrics
from dovecote.api.cookies import render_cookie
from dovecote.control.functions import Functions
from dovecote.control.invocations import Invocations, Wanted
from dovecote.control.sessions import cookie_of, cookie_seconds, find_caller, key_in
from dovecote.control.tenancy import Tenancy
from dovecote.errors import DovecoteError, Invalid
from dovecote.model.ids import new_id
from dovecote.model.invocations import (
    DEFAULT_TIMEOUT,
    MOST_BODY,
    Invocation,
    joined,
    parse_idempotency_key,
    too_large,
)
from dovecote.model.naming import PREFIX_HEADER, Found, find, is_secure
from dovecote.model.records import Function
from dovecote.model.serving import PUBLIC_USER, Affinity, Mode

log = logging.getLogger("dovecote.api")

INVOKE_HEADER = "x-dovecote-invoke"
DELAY_HEADER = "x-dovecote-invoke-delay"
TIMEOUT_HEADER = "x-dovecote-invoke-timeout"
ID_HEADER = "x-dovecote-invocation-id"
NAME = r"[a-z0-9][a-z0-9-]{0,62}"
_BY_PATH = re.compile(rf"/fn/({NAME})(/.*)?")
_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{8,64}")


class Asynchronous:
    """ASGI layer in front of all others: takes those requests, and passes on what is none."""

    def __init__(
        self, app: ASGIApp, tenancy: Tenancy, functions: Functions, invocations: Invocations, *, domain: str
    ) -> None:
        self._app = app
        self._tenancy = tenancy
        self._functions = functions
        self._invocations = invocations
        self._by_host = re.compile(rf"({NAME})\.fn\.{re.escape(domain)}(?::\d+)?")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            if INVOKE_HEADER in headers and (found := self._addressed(scope, headers)):
                await self._answer(found, headers, scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _addressed(self, scope: Scope, headers: Headers) -> tuple[str, str, str] | None:
        """The label of a function, the path that its server is to see, and what stood before that, empty where the
        function is called by its name; None for any other address."""
        path = scope.get("raw_path") or scope["path"].encode("utf-8")
        text = path.partition(b"?")[0].decode("latin-1")
        query = scope["query_string"].decode("latin-1")
        prefix = ""
        if match := self._by_host.fullmatch(headers.get("host", "").lower()):
            label = match[1]
        elif match := _BY_PATH.fullmatch(text):
            label, text, prefix = match[1], match[2] or "/", f"/fn/{match[1]}"
        else:
            return None
        return label, f"{text}?{query}" if query else text, prefix

    async def _answer(
        self, found: tuple[str, str, str], headers: Headers, scope: Scope, receive: Receive, send: Send
    ) -> None:
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else new_id("req")
        try:
            status, told, body = await self._take(found, headers, scope["method"], receive)
        except DovecoteError as error:
            status, told, body = errors.render(error, request_id)
        except ClientDisconnect:
            return  # nobody is left to answer
        except Exception:
            log.exception("an asynchronous call could not be taken, %s", request_id)
            status, told, body = errors.render(errors.internal(), request_id)
        metrics.REQUESTS.labels(scope["method"], "asynchronous", str(status)).inc()
        told = {**told, "x-request-id": request_id, "content-length": str(len(body))}
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in told.items()]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": body})

    async def _take(
        self, found: tuple[str, str, str], headers: Headers, method: str, receive: Receive
    ) -> tuple[int, dict[str, str], bytes]:
        label, path, prefix = found
        if headers[INVOKE_HEADER].strip().lower() != "async":
            raise Invalid(f"not a way to invoke: {headers[INVOKE_HEADER][:60]!r}", hint="`async`, or leave it out")
        caller = await find_caller(self._tenancy, self._functions, label, headers.get("x-dovecote-key", ""))
        function, affinity = caller.function, caller.function.affinity
        sent = [*headers.items(), *([(PREFIX_HEADER, prefix)] if prefix else [])]
        named = find(affinity, method, path, joined(sent))
        # Who has a key of the tenant's may name any session here, as by the API.
        key = headers.get(affinity.header) if caller.is_known and not affinity.has(Mode.HEADER) else None
        again, said = headers.get("idempotency-key"), named.key if named else ""
        wanted = Wanted(
            method=method,
            path=path,
            headers=tuple(sent),
            body=await _body(headers, receive),
            user=caller.user(headers.get("x-dovecote-user", "")),
            key=key or None,
            is_stranger=not caller.is_known,
            delay=_seconds(headers, DELAY_HEADER, timedelta(0)),
            timeout=_seconds(headers, TIMEOUT_HEADER, DEFAULT_TIMEOUT),
            idempotency_key=again if again is None or caller.is_known else _strangers(said, again),
        )
        made = await self._invocations.create(function, wanted)
        own = key_in(said) if named is not None and named.mode is Mode.COOKIE else said
        if not caller.is_known and again is not None and made.key != own:
            made = replace(made, key=None)  # the call may have been there: its session is another one's
        told = _told(function, made)
        if _wants_cookie(affinity, named, made):
            with contextlib.suppress(DovecoteError):  # the call is kept, whatever becomes of its session
                session = await self._invocations.session(function, made)
                seconds = cookie_seconds(affinity, session, datetime.now(UTC))
                told["set-cookie"] = render_cookie(
                    cookie_of(session), seconds, is_secure=is_secure(headers), prefix=prefix
                )
        return 202, told, _render(made)


def _wants_cookie(affinity: Affinity, named: Found | None, made: Invocation) -> bool:
    """As for other requests: where it does not have it yet, or has it for as long as its session may be idle.

    A call that was made already begins no session again.
    """
    if made.key is None or made.is_final or not affinity.has(Mode.COOKIE):
        return False
    if named is None:
        return True
    return named.mode is Mode.COOKIE and (affinity.ttl is None or key_in(named.key) != made.key)


def _strangers(key: str, idempotency_key: str) -> str:
    """Strangers may guess, so theirs meet neither those of the tenant nor those of another session."""
    told = f"{key} {parse_idempotency_key(idempotency_key)}"
    return f"{PUBLIC_USER}{hashlib.sha256(told.encode()).hexdigest()}"


async def _body(headers: Headers, receive: Receive) -> bytes:
    length = headers.get("content-length", "")
    if length.isdigit() and int(length[:20]) > MOST_BODY:
        raise too_large()
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        if len(body) > MOST_BODY:
            raise too_large()
        if not message.get("more_body"):
            return bytes(body)


def _seconds(headers: Headers, name: str, otherwise: timedelta) -> timedelta:
    """What a header says, in seconds; its bounds are checked with the rest."""
    text = headers.get(name)
    if text is None:
        return otherwise
    try:
        return timedelta(seconds=float(text))
    except (ValueError, OverflowError) as error:
        raise Invalid(f"{name} is not a number of seconds: {text[:40]!r}") from error


def _told(function: Function, made: Invocation) -> dict[str, str]:
    told = {"content-type": "application/json", ID_HEADER: made.id, "cache-control": "no-store"}
    if made.key is not None:
        told[function.affinity.header] = made.key
    return told


def _render(made: Invocation) -> bytes:
    return orjson.dumps(
        {
            "id": made.id,
            "function": made.function,
            "session": made.key,
            "state": made.state,
            "due_at": made.due_at,
            "deadline": made.deadline,
        }
    )
