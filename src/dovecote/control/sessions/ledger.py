"""What is recorded of sessions and what is true of those that live: read together, changed together."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from dovecote.control.fleet import Death
from dovecote.control.sessions.hook_runs import HookRuns
from dovecote.control.sessions.live import Live, LiveSessions
from dovecote.control.sessions.metrics import BREACHES
from dovecote.control.sessions.rules import alive
from dovecote.control.sessions.seats import Seats
from dovecote.errors import Conflict, NotFound
from dovecote.model.past import HookRun, Past
from dovecote.model.records import Session
from dovecote.model.sizes import TIERS
from dovecote.model.states import SessionState, check_session_move
from dovecote.store import Store


class Ledger:
    def __init__(self, store: Store) -> None:
        self._store = store
        self.live = LiveSessions()
        self.hooks = HookRuns()
        self.seated = Seats()

    async def stored(self, tenant_id: str, session_id: str) -> Session:
        """The record, whatever is true of it by now. Raises NotFound."""
        return await self._store.tenant(tenant_id).sessions.get(session_id)

    async def by_slug(self, slug: str, *, is_ended: bool = False) -> Session:
        """Whoever's it is: the slug is the right to ask. Raises NotFound, also for one that has ended, unless asked."""
        live = self.live.by_slug(slug)
        session = live.session if live else await self._store.everyone().sessions.find(slug=slug)
        if session is None or (session.state is SessionState.ENDED and not is_ended):
            raise NotFound("no sandbox has this address", code="no_such_session", hint="it may have been deleted")
        return session

    def placed(self, function_id: str, user_id: str, key: str) -> Session | None:
        """The session that a caller names so, if it has an instance here or a seat in one: no record knows more."""
        name = (function_id, user_id, key)
        place = self.live.named(name) or self.seated.named(name)
        return place.session if place else None

    async def get(self, tenant_id: str, session_id: str) -> Session:
        live = self.live.get(session_id)
        if live is not None and live.session.tenant_id == tenant_id:
            return live.session
        return await self.stored(tenant_id, session_id)

    async def living(self, tenant_id: str, session_id: str) -> Session:
        live = self.live.get(session_id)
        if live is not None and live.session.tenant_id == tenant_id:
            return live.session
        return alive(await self.stored(tenant_id, session_id))

    async def change(self, session: Session, **changes: object) -> Session:
        """Changes a session that may be live; called under its lock."""
        live = self.live.get(session.id)
        changed = await self.swap(session, **changes)
        if live is not None:
            live.session = changed
        seat = self.seated.get(session.id)
        if seat is not None:
            seat.session = changed
        return changed

    async def swap(self, session: Session, **changes: object) -> Session:
        return await self._store.tenant(session.tenant_id).sessions.swap(_changed(session, changes))

    async def insert(self, session: Session, **changes: object) -> Session:
        """Of one that is not recorded yet. Raises Conflict (exists)."""
        return await self._store.tenant(session.tenant_id).sessions.insert(_changed(session, changes))

    async def refuse_taken(self, session: Session) -> None:
        """Ahead of the room that is made for it. Between two at once `insert` decides. Raises Conflict (exists)."""
        sessions = self._store.tenant(session.tenant_id).sessions
        if await sessions.find(
            user_id=session.user_id, function_id=session.function_id, key=session.key, live_marker="live"
        ):
            raise Conflict("such a session exists already", code="exists")

    async def lose(self, session: Session, death: Death, *, past: Past, **changes: object) -> Session:
        """Notes that its instance ended by itself, and whether a promise was broken by that. Called under its lock."""
        if TIERS[session.tier].is_promised and not death.is_own_doing:
            BREACHES.labels("killed").inc()
            past = past.breached(datetime.now(UTC), death.reason)
        return await self.swap(
            session, state=SessionState.LOST, instance_id=None, reason=death.reason[:500], past=past, **changes
        )

    async def note_hook(self, live: Live, run: HookRun | None) -> None:
        """Called under its lock."""
        if run is not None:
            await self.change(live.session, past=live.session.past.ran(run))

    async def note(self, live: Live) -> None:
        """Brings the record of a live session up to what is true of it."""
        async with self.live.lock(live.session.id):
            if self.live.get(live.session.id) is not live:
                return
            seconds = time.monotonic() - live.touched
            live.session = await self.swap(live.session, last_active_at=datetime.now(UTC) - timedelta(seconds=seconds))


def _changed(session: Session, changes: dict[str, object]) -> Session:
    wanted = replace(session, **changes)  # type: ignore[arg-type]
    if wanted.tree != session.tree and "memory" not in changes:
        wanted = replace(wanted, memory=None)  # it goes with the files that it was saved with
    check_session_move(session.state, wanted.state)
    if wanted.state is not session.state:
        wanted = replace(wanted, past=wanted.past.moved(datetime.now(UTC), wanted.state, wanted.reason))
    return wanted
