"""How long sessions are kept and how well they are saved: changed while they live, effective at once."""

from __future__ import annotations

import contextlib
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import timedelta

from dovecote.control.sessions.admitting import Admitting
from dovecote.control.sessions.ledger import Ledger
from dovecote.control.sessions.live import Live
from dovecote.control.sessions.rules import parse_tier, parse_time, recovery_point
from dovecote.control.tenancy import Tenancy
from dovecote.errors import Conflict, DovecoteError, Gone, NoCapacity, NotFound
from dovecote.model.records import Session, User
from dovecote.model.sizes import TIERS
from dovecote.store import Store

TRIES = 8


class Tiers:
    def __init__(self, store: Store, ledger: Ledger, admitting: Admitting, tenancy: Tenancy) -> None:
        self._store = store
        self._ledger = ledger
        self._admitting = admitting
        self._tenancy = tenancy

    async def update(
        self,
        tenant_id: str,
        session_id: str,
        *,
        tier: str | None = None,
        idle_after: timedelta | None = None,
        quiet_after: timedelta | None = None,
        ttl: timedelta | None = None,
    ) -> Session:
        """Changes times of one session. `ttl` counts from creation. Raises Invalid, NotFound (no_such_tier), Gone.

        A tier that promises its window is given to a live session only where there is memory for that: else raises
        NoCapacity (no_memory).
        """
        for _ in range(TRIES):
            live = self._ledger.live.get(session_id)
            # Ahead of its lock: others make room for it, and may wait for it to make room for them.
            async with self._promised(live, tier), self._ledger.live.lock(session_id):
                if self._ledger.live.get(session_id) is not live:
                    continue  # it woke or went meanwhile
                session = await self._ledger.living(tenant_id, session_id)
                session = await self._ledger.change(
                    session,
                    tier=parse_tier(tier) if tier else session.tier,
                    idle_after=parse_time(idle_after, "idle_after") or session.idle_after,
                    quiet_after=parse_time(quiet_after, "quiet_after") or session.quiet_after,
                    expires_at=session.created_at + ttl if (ttl := parse_time(ttl, "ttl")) else session.expires_at,
                )
                await self.pace(session)
                return session
        raise Conflict(f"session {session_id} comes and goes", code="busy", hint="try again")

    def _promised(self, live: Live | None, tier: str | None) -> AbstractAsyncContextManager[None]:
        """Around a change of tier: memory for what it begins to promise."""
        is_more = tier is not None and TIERS[parse_tier(tier)].is_promised
        if live is None or not is_more or TIERS[live.session.tier].is_promised:
            return contextlib.nullcontext()
        return self._admitting.promised(live)

    async def pace(self, session: Session) -> None:
        """Lets its instance, if it has one, be saved as often as its tier says. May be repeated."""
        live = self._ledger.live.get(session.id)
        if live is not None:
            with contextlib.suppress(NotFound):
                await live.host.set_recovery_point(live.instance_id, recovery_point(session))

    async def set_user_tier(self, tenant_id: str, name: str, tier: str) -> User:
        """Of a user, seen before or not, and of his sessions that have his tier; those with another one keep it.

        May be repeated: then what a try that was cut short left undone is done. Raises Invalid, NotFound, and after all
        others have followed NoCapacity (no_memory) where one that lives does not fit, Conflict (busy) where one comes
        and goes: he and that one keep the tier that they had.
        """
        parse_tier(tier)
        before = await self._tenancy.user(tenant_id, name, tier)
        await self._follow(before, tier)
        user = await self._tenancy.set_tier(tenant_id, name, tier)
        try:
            await self._follow(before, tier)  # one may have been opened meanwhile
        except DovecoteError:
            # Else a repeat would not know which of his sessions had his tier.
            with contextlib.suppress(Conflict):  # somebody has given him another one since
                await self._store.tenant(tenant_id).users.swap(replace(user, tier=before.tier))
            raise
        return user

    async def _follow(self, user: User, tier: str) -> None:
        if user.tier == tier:
            return
        refused: DovecoteError | None = None
        sessions = self._store.tenant(user.tenant_id).sessions
        async for session in sessions.each(user_id=user.id, tier=user.tier, live_marker="live"):
            try:
                await self.update(user.tenant_id, session.id, tier=tier)
            except (NotFound, Gone):
                pass  # it ended meanwhile
            except (NoCapacity, Conflict) as error:
                refused = refused or error
        if refused is not None:
            raise refused
