"""The asynchronous calls of a tenant: asked for, looked at, cancelled, asked for again."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Protocol

from dovecote.control.functions import Functions
from dovecote.control.invocations.deciding import cancelled
from dovecote.control.sessions import key_in
from dovecote.errors import Conflict, Invalid, NoCapacity, NotFound
from dovecote.model.ids import is_session_key, new_id, parse_session_key, parse_strict_key, random_text
from dovecote.model.invocations import (
    DEFAULT_TIMEOUT,
    MOST_HOPS,
    Invocation,
    InvocationState,
    joined,
    parse_body,
    parse_delay,
    parse_headers,
    parse_idempotency_key,
    parse_method,
    parse_path,
    parse_timeout,
)
from dovecote.model.naming import find, taken
from dovecote.model.records import Function, Session
from dovecote.model.serving import Mode
from dovecote.store import Store

LONGEST_NAME = 200  # of a user
MOST_WAITING = 20_000  # of a tenant, that are not final
TRIES = 8


@dataclass(frozen=True)
class Wanted:
    """A call that is asked for. Raises Invalid when it is made of what cannot be kept."""

    method: str = "POST"
    path: str = "/"
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    user: str = "default"
    key: str | None = None  # of the session; without one the request itself may name it, as its function has it
    is_key_ours: bool = False  # only we give it out, so that its session must be there
    is_stranger: bool = False  # shares its user with others, so a key in its header must be one that we gave out
    delay: timedelta = timedelta(0)
    timeout: timedelta = DEFAULT_TIMEOUT
    idempotency_key: str | None = None

    def __post_init__(self) -> None:
        parse_path(self.path)
        if not 0 < len(self.user) <= LONGEST_NAME or not self.user.isprintable():
            raise Invalid(f"not a name for a user: {self.user[:60]!r}", code="malformed_name")
        parse_body(self.body)
        parse_delay(self.delay)
        parse_timeout(self.timeout)
        if self.key is not None:
            parse_session_key(self.key)
        if self.idempotency_key is not None:
            parse_idempotency_key(self.idempotency_key)


class Begun(Protocol):
    """The sessions of callers; see `Routing`."""

    async def holds(self, function: Function, user: str, key: str, cookie: str | None = None) -> bool: ...

    async def session(self, function: Function, user: str, key: str) -> Session: ...


class Invocations:
    """`queued` is called when something is to be looked at sooner than it was; `stop` ends an attempt under way."""

    def __init__(
        self,
        store: Store,
        functions: Functions,
        *,
        begun: Begun,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._functions = functions
        self._begun = begun
        self._now = now
        self.queued: Callable[[], None] = lambda: None
        self.stop: Callable[[str], None] = lambda _: None

    async def create(self, function: Function, wanted: Wanted) -> Invocation:
        """Written down, to be made from now on. The same user's idempotency key again gives the call that has it.

        Where the function has sessions and nothing names one, it gets one of its own, and all of its attempts are that
        session's. Raises Invalid, NotFound (no_such_session), NoCapacity (too_many).
        """
        made = self._made(function, await self._named(function, wanted))
        return await self._same(made) or await self._keep(made)

    async def _named(self, function: Function, wanted: Wanted) -> Wanted:
        """With the key that its request names, and without what in the request only the gateway understands."""
        if wanted.key is not None:
            return wanted
        headers = joined(wanted.headers)
        found = find(function.affinity, wanted.method, wanted.path, headers)
        if found is None or (found.mode is Mode.NONE and not found.key):
            return wanted
        if found.mode is Mode.HEADER:
            return replace(wanted, key=found.key, is_key_ours=wanted.is_stranger)
        if not found.is_made_here:
            return replace(wanted, key=found.key)
        cookie = found.key if found.mode is Mode.COOKIE else None
        key = found.key if cookie is None else key_in(cookie)
        is_there = is_session_key(key) and await self._begun.holds(function, wanted.user, key, cookie)
        if cookie is not None:
            # A browser cannot know that its session has ended: it is given another one.
            return replace(wanted, key=key) if is_there else wanted
        if not is_there:
            raise NotFound("no session has this id", code="no_such_session", hint="begin a new one")
        path, headers = taken(found, wanted.path, headers)
        return replace(wanted, key=key, is_key_ours=True, path=path, headers=tuple(headers.items()))

    async def session(self, function: Function, made: Invocation) -> Session:
        """Of a call that was just kept, begun unless it is there. Raises what beginning one does."""
        assert made.key is not None
        return await self._begun.session(function, made.user, made.key)

    async def _same(self, made: Invocation) -> Invocation | None:
        if made.idempotency_key is None:
            return None
        same = {"function_id": made.function_id, "user": made.user, "idempotency_key": made.idempotency_key}
        return await self._store.tenant(made.tenant_id).invocations.find(**same)

    async def _keep(self, made: Invocation) -> Invocation:
        scope = self._store.tenant(made.tenant_id)
        if await scope.invocations.count(finished_at=None) >= MOST_WAITING:
            raise NoCapacity(
                f"{MOST_WAITING} asynchronous calls are waiting already",
                code="too_many",
                hint="wait until some are done, or cancel some",
                retry_after=10.0,
            )
        try:
            kept = await scope.invocations.insert(made)
        except Conflict:
            found = await self._same(made)
            if found is None:
                raise
            return found  # another request with the same key was first
        self.queued()
        return kept

    def _made(self, function: Function, wanted: Wanted) -> Invocation:
        now = self._now()
        invoking = function.invoking
        if wanted.key is not None and function.affinity.strict_ids:
            parse_strict_key(wanted.key)
        return Invocation(
            id=new_id("inv"),
            tenant_id=function.tenant_id,
            function_id=function.id,
            function=function.name,
            user=wanted.user,
            key=(wanted.key or random_text()) if function.has_sessions else None,
            is_key_ours=wanted.is_key_ours,
            method=parse_method(wanted.method),
            path=wanted.path,
            headers=_without(parse_headers(wanted.headers), function.affinity.header),
            body=base64.b64encode(wanted.body).decode(),
            state=InvocationState.QUEUED,
            created_at=now,
            deadline=now + wanted.delay + invoking.max_age,
            due_at=now + wanted.delay,
            timeout=wanted.timeout,
            retries=invoking.retries,
            on_success=invoking.on_success,
            on_failure=invoking.on_failure,
            idempotency_key=wanted.idempotency_key,
        )

    async def follow(self, before: Invocation, name: str, body: bytes) -> Invocation:
        """The call of a destination. Done twice it is the same call. Raises Conflict (too_many_hops), NotFound."""
        if before.hops >= MOST_HOPS:
            raise Conflict(
                f"the call came through {MOST_HOPS} destinations already",
                code="too_many_hops",
                hint="destinations of functions go round in a circle",
            )
        function = await self._functions.get(before.tenant_id, name)
        headers = (("content-type", "application/json"),)
        wanted = Wanted(headers=headers, body=body, user=before.user, key=before.key, idempotency_key=f"of-{before.id}")
        made = replace(self._made(function, wanted), hops=before.hops + 1)
        return await self._keep(made)

    async def get(self, tenant_id: str, invocation_id: str) -> Invocation:
        """Raises NotFound (no_such_invocation)."""
        return await self._store.tenant(tenant_id).invocations.get(invocation_id)

    async def list(
        self,
        tenant_id: str,
        *,
        function: str | None = None,
        user: str | None = None,
        key: str | None = None,
        states: Iterable[InvocationState] = (),
        newest_first: bool = False,
        after: str | None = None,
        limit: int = 50,
    ) -> list[Invocation]:
        """Raises NotFound (no_such_function), Invalid (bad_cursor)."""
        equals: dict[str, object] = {}
        if function is not None:
            equals["function_id"] = (await self._functions.get(tenant_id, function)).id
        if user is not None:
            equals["user"] = user
        if key is not None:
            equals["key"] = key
        if chosen := frozenset(states):
            equals["state"] = chosen
        return await self._store.tenant(tenant_id).invocations.list(
            after=after, limit=limit, newest_first=newest_first, **equals
        )

    async def cancel(self, tenant_id: str, invocation_id: str) -> Invocation:
        """It is not made any more; an attempt under way is cut off, whatever its function does then.

        May be repeated. Raises NotFound, Conflict (has_ended).
        """
        kept = self._store.tenant(tenant_id).invocations
        for _ in range(TRIES):
            found = await kept.get(invocation_id)
            if found.state is InvocationState.CANCELLED:
                return found
            if found.is_final:
                raise Conflict(f"it has {found.state} already", code="has_ended", hint="`replay` makes it once more")
            try:
                ended = await kept.swap(cancelled(found, self._now()))
            except Conflict:
                continue
            self.stop(invocation_id)
            return ended
        raise Conflict("it changes all the time", code="busy", hint="try again")

    async def replay(self, tenant_id: str, invocation_id: str) -> Invocation:
        """A new call, just like one that has ended, for the same session. Raises NotFound, Conflict (not_ended)."""
        found = await self.get(tenant_id, invocation_id)
        if not found.is_final:
            raise Conflict(f"it is {found.state}", code="not_ended", hint="wait, or cancel it first")
        function = await self._functions.get(tenant_id, found.function)
        wanted = Wanted(
            method=found.method,
            path=found.path,
            headers=tuple(found.headers.items()),
            body=base64.b64decode(found.body),
            user=found.user,
            key=found.key,
            is_key_ours=found.is_key_ours,
            timeout=found.timeout,
        )
        return await self._keep(replace(self._made(function, wanted), replay_of=found.id))


def _without(headers: dict[str, str], name: str) -> dict[str, str]:
    """The session is in its own field: nobody names another by a header besides."""
    return {each: value for each, value in headers.items() if each != name}
