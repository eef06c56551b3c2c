"""Where a request for a sandbox's port or a function's session goes: the session woken, its port open."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial

from dovecote.control.fleet import Death
from dovecote.control.functions import Functions
from dovecote.control.sessions.cookies import proves
from dovecote.control.sessions.live import Live
from dovecote.control.sessions.rules import alive, is_over
from dovecote.control.sessions.sessions import Sessions
from dovecote.control.sessions.starting import INSTANCE_IS_GONE, instance_dies
from dovecote.control.tenancy import Tenancy
from dovecote.errors import Conflict, DovecoteError, Failed, NotFound
from dovecote.model.ids import parse_session_key
from dovecote.model.records import Function, Revision, Session, Start
from dovecote.store import Store

DEATHS_IN_A_ROUTE = 3
TRIES = 8


@dataclass(frozen=True)
class Routed:
    """`address` is `ip:port`. `session` is None where the function has none.

    `is_limited`: the instance takes so many requests at once and refuses more, so each needs a connection of its own.
    """

    address: str
    session: Session | None
    is_limited: bool = False


class Routing:
    def __init__(self, store: Store, sessions: Sessions, functions: Functions, tenancy: Tenancy) -> None:
        self._store = store
        self._sessions = sessions
        self._functions = functions
        self._tenancy = tenancy
        self._beginning: dict[tuple[str, str, str], asyncio.Task[Session]] = {}

    async def box(self, slug: str, port: int, failed: str | None = None) -> str:
        """Where the port of the sandbox with that slug is, `ip:port`, open. The slug is the right to ask."""
        return await self._route(await self._sessions.by_slug(slug), port, is_doubted=failed is not None)

    async def function(
        self,
        function: Function,
        *,
        user: str,
        key: str | None,
        is_made_here: bool = False,
        cookie: str | None = None,
        failed: str | None = None,
    ) -> Routed:
        """Where the caller's session is served. Without a key the server makes one.

        An unknown key creates its session, unless `is_made_here`: keys that only we give out, and that must be known.
        `cookie` is what named the key, and must be that session's own.
        `failed` is an address that could not be reached a moment ago. Raises Invalid (malformed_id), NotFound
        (no_such_session), Gone (session_expired), NoCapacity, and what waking raises.
        """
        current = await self._functions.revision(function.tenant_id, function.revision_id)
        if not function.has_sessions:
            if not _port(current.start):
                raise _no_server()
            instance = await self._sessions.placing.anyone(function, is_doubted=failed is not None)
            return Routed(instance.route, None, bool(current.sharing.requests))
        if key is not None:
            parse_session_key(key, is_strict=function.affinity.strict_ids)
        if key is None and not _port(current.start):
            raise _no_server()  # before a session is made that nobody could use
        session = await self._by_key(function, user, key, is_made_here, cookie)
        revision = await self._functions.revision(function.tenant_id, session.revision_id)
        if revision.sharing.has_seats:
            return await self._seat(function, session, failed)
        return await self._own(session, revision, failed)

    async def _own(self, session: Session, revision: Revision, failed: str | None) -> Routed:
        """To the instance that the session has for itself."""
        port, limit = _port(session.start or revision.start), revision.sharing.requests
        if not port:
            raise _no_server()
        for _ in range(DEATHS_IN_A_ROUTE):
            address = await self._route(session, port, is_doubted=failed is not None)
            live = self._sessions.live.get(session.id)
            if not limit or address != failed or live is None:
                return Routed(address, session, bool(limit))
            # It lives and has refused the request: there were as many inside as may be.
            if await self._sessions.lines.wait(live.host, live.instance_id, limit):
                live.touch()
                return Routed(address, session, True)
        raise instance_dies()

    async def _seat(self, function: Function, session: Session, failed: str | None) -> Routed:
        """To the instance that the session has a seat in."""
        for _ in range(DEATHS_IN_A_ROUTE):
            seat = await self._sessions.placing.seat(function, session, is_doubted=failed is not None)
            instance = seat.instance
            if not instance.port:
                raise _no_server()
            limit = instance.revision.sharing.requests
            if not limit or instance.route != failed:
                return Routed(instance.route, seat.session, bool(limit))
            if await self._sessions.lines.wait(instance.host, instance.instance_id, limit):
                seat.touch()
                return Routed(instance.route, seat.session, True)
        raise instance_dies()

    async def holds(self, function: Function, user: str, key: str, cookie: str | None = None) -> bool:
        """Whether the caller has a session of that key, awake or not, and the cookie is its own, if it came in one.

        Raises Invalid (malformed_name).
        """
        owner = await self._tenancy.find_user(function.tenant_id, user)
        found = await self._named(function, owner.id, key) if owner else None
        return found is not None and not is_over(found) and (cookie is None or proves(cookie, found))

    async def session(self, function: Function, user: str, key: str) -> Session:
        """The caller's session of that key, begun if need be, not woken. Raises what `function` raises."""
        return await self._by_key(function, user, key, False, None)

    async def touch(self, session_id: str) -> None:
        """The gateway saw that a stream of it is still open."""
        for held in (self._sessions.live.get(session_id), self._sessions.seated(session_id)):
            if held is not None:
                held.touch()

    async def end(self, session_id: str, reason: str) -> None:
        """Its client is done with it, or its only stream has ended. May be repeated."""
        session = await self._store.everyone().sessions.find(id=session_id)
        if session is not None:
            await self._sessions.end(session.tenant_id, session.id, reason)

    async def _by_key(
        self, function: Function, user: str, key: str | None, is_made_here: bool, cookie: str | None
    ) -> Session:
        owner_id = await self._tenancy.user_id(function.tenant_id, user)
        for _ in range(TRIES):
            if key is not None:
                found = await self._named(function, owner_id, key)
                if found is not None and cookie is not None and not proves(cookie, found):
                    raise _no_such_session()
                if found is not None and not is_over(found):
                    return found
                if found is not None:
                    await self._sessions.expire(found.tenant_id, found.id)
                if is_made_here or function.affinity.refuses_reuse:
                    await self._refuse_ended(function, owner_id, key)
                if is_made_here:
                    raise _no_such_session()
            try:
                return await self._begin(function, user, owner_id, key)
            except Conflict:
                continue  # another request of the same session was first
        raise Conflict(f"session {key} comes and goes", code="busy", hint="try again")

    async def _begin(self, function: Function, user: str, user_id: str, key: str | None) -> Session:
        """One beginning for all who wait for a session of that key."""
        begin = partial(self._sessions.create, function.tenant_id, function=function.name, user=user, wake=False)
        if key is None:
            return await begin(key=None)
        name = (function.id, user_id, key)
        task = self._beginning.get(name)
        if task is None:
            task = self._beginning[name] = asyncio.ensure_future(begin(key=key))
            task.add_done_callback(lambda _: self._beginning.pop(name, None))
        return await asyncio.shield(task)

    async def _named(self, function: Function, user_id: str, key: str) -> Session | None:
        sessions = self._store.tenant(function.tenant_id).sessions
        return self._sessions.placed(function.id, user_id, key) or await sessions.find(
            user_id=user_id, function_id=function.id, key=key, live_marker="live"
        )

    async def _refuse_ended(self, function: Function, user_id: str, key: str) -> None:
        """Raises Gone (session_expired) where the last session of the key has ended."""
        sessions = self._store.tenant(function.tenant_id).sessions
        last = await sessions.newest(user_id=user_id, function_id=function.id, key=key)
        if last is not None:
            alive(last)

    async def _route(self, session: Session, port: int, *, is_doubted: bool) -> str:
        """A port that was seen open is, until a request finds that it is not."""
        for _ in range(DEATHS_IN_A_ROUTE):
            live = await self._sessions.awake(session)
            if port in live.open_ports and not is_doubted:
                return f"{live.address}:{port}"
            try:
                await self._open(live, port)
            except DovecoteError as error:
                if error.code not in INSTANCE_IS_GONE:
                    raise
                await self._let_go(live)
                continue
            return f"{live.address}:{port}"
        raise instance_dies()

    async def _open(self, live: Live, port: int) -> None:
        """Returns when the port takes connections, started if it is the one of the recorded start."""
        live.open_ports.discard(port)
        live.enter()
        try:
            await self._sessions.ensure_open(live, port)
            live.open_ports.add(port)
        finally:
            live.leave()

    async def _let_go(self, live: Live) -> None:
        """Its guest did not answer: waits a moment for the host to say that it died, or finds out that it is gone."""
        for _ in range(20):
            if self._sessions.live.get(live.session.id) is not live:
                return
            try:
                await live.host.usage(live.instance_id)
            except NotFound:
                self._sessions.died(Death(live.instance_id, live.session.id, "its host does not know of it"))
                return
            await asyncio.sleep(0.05)


def _port(start: Start | None) -> int:
    return start.port if start else 0


def _no_such_session() -> NotFound:
    return NotFound("no session has this id", code="no_such_session", hint="begin a new one")


def _no_server() -> Failed:
    return Failed(
        "this session has no server",
        code="port_closed",
        hint="record a start (command and port): `PUT /v1/sessions/{id}/start`",
    )
