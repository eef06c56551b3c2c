"""Answers the gateway's question where a request belongs: a sandbox's port, a function's session, or an app."""

from __future__ import annotations

from datetime import UTC, datetime

from dovecote.control.apps import Apps
from dovecote.control.functions import Functions
from dovecote.control.sessions import Caller, Routed, Routing, cookie_of, cookie_seconds, find_caller, key_in
from dovecote.control.tenancy import Tenancy
from dovecote.errors import Gone, Invalid, NotFound
from dovecote.gateway.question import Answer, Ask
from dovecote.model.ids import parse_strict_key
from dovecote.model.naming import Found
from dovecote.model.serving import Affinity, Mode


class Directory:
    def __init__(self, tenancy: Tenancy, routing: Routing, functions: Functions, apps: Apps) -> None:
        self._tenancy = tenancy
        self._routing = routing
        self._functions = functions
        self._apps = apps

    async def resolve(self, ask: Ask) -> Answer:
        """Raises what waking raises; the caller holds the request meanwhile."""
        if ask.kind == "box":
            assert ask.port is not None
            return Answer(await self._routing.box(ask.name, ask.port, ask.failed))
        if ask.kind == "app":
            return Answer(await self._apps.route(ask.name), learn=False)
        caller = await find_caller(self._tenancy, self._functions, ask.name, ask.credential)
        function, routed = caller.function, await self._routed(ask, caller)
        session = routed.session
        return Answer(
            routed.address,
            affinity=function.affinity,
            key=session.key if session else None,
            session_id=session.id if session else None,
            is_limited=routed.is_limited,
            is_stranger=not caller.is_known,
            cookie=cookie_of(session) if session and function.affinity.has(Mode.COOKIE) else None,
            cookie_seconds=cookie_seconds(function.affinity, session, datetime.now(UTC)) if session else 0,
        )

    async def _routed(self, ask: Ask, caller: Caller) -> Routed:
        """A request that begins a session begins one, however often it has to ask before it is let in."""
        function, user = caller.function, caller.user(ask.user)
        found = parse_found(ask.session(function.affinity), function.affinity)
        if found is None or (found.mode is Mode.NONE and not found.key):
            return await self._routing.function(function, user=user, key=ask.given, failed=ask.failed)
        # Strangers share a user, so what one of them made up must not be what another one guesses.
        is_made_here = found.is_made_here or (not caller.is_known and found.mode is Mode.HEADER)
        cookie = found.key if found.mode is Mode.COOKIE else None
        key = found.key if cookie is None else key_in(cookie)
        try:
            return await self._routing.function(
                function, user=user, key=key, is_made_here=is_made_here, cookie=cookie, failed=ask.failed
            )
        except Gone as error:
            if found.mode in (Mode.MCP_HTTP, Mode.MCP_SSE):
                # What MCP's clients begin anew on.
                raise NotFound(error.message, code="no_such_session", hint="begin a new one") from error
            if found.mode is not Mode.COOKIE or function.affinity.refuses_reuse:
                raise
        except (NotFound, Invalid) as error:
            if found.mode is not Mode.COOKIE or error.code not in ("no_such_session", "malformed_id"):
                raise
        # A browser cannot know that its session has ended: it is given another one.
        return await self._routing.function(function, user=user, key=ask.given, failed=ask.failed)


def parse_found(found: Found | None, affinity: Affinity) -> Found | None:
    """Itself. Raises NotFound (no_such_session), Invalid (malformed_id)."""
    if found is None or found.mode is Mode.NONE:
        return found
    if not found.key:
        raise NotFound("no session has this id", code="no_such_session", hint="begin a new one")
    if affinity.strict_ids and found.mode is Mode.HEADER:
        parse_strict_key(found.key)
    return found
