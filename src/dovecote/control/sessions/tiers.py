"""How long sessions are kept and how well they are saved: changed while they live, effective at once."""

from __future__ import annotations

import contextlib
from datetime import timedelta

from dovecote.control.sessions.ledger import Ledger
from dovecote.control.sessions.rules import parse_tier, parse_time, recovery_point
from dovecote.control.tenancy import Tenancy
from dovecote.errors import Gone, NotFound
from dovecote.model.records import Session, User
from dovecote.store import Store


class Tiers:
    def __init__(self, store: Store, ledger: Ledger, tenancy: Tenancy) -> None:
        self._store = store
        self._ledger = ledger
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
        """Changes times of one session. `ttl` counts from creation. Raises Invalid, NotFound (no_such_tier), Gone."""
        async with self._ledger.live.lock(session_id):
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

    async def pace(self, session: Session) -> None:
        """Lets its instance, if it has one, be saved as often as its tier says. May be repeated."""
        live = self._ledger.live.get(session.id)
        if live is not None:
            with contextlib.suppress(NotFound):
                await live.host.set_recovery_point(live.instance_id, recovery_point(session))

    async def set_user_tier(self, tenant_id: str, name: str, tier: str) -> User:
        """Of a user, seen before or not, and of his sessions that have his tier; those with another one keep it.

        May be repeated: then what a try that was cut short left undone is done. Raises Invalid, NotFound.
        """
        parse_tier(tier)
        user = await self._tenancy.user(tenant_id, name, tier)
        before = user.tier
        await self._follow(user, before, tier)
        user = await self._tenancy.set_tier(tenant_id, name, tier)
        await self._follow(user, before, tier)  # one may have been opened meanwhile
        return user

    async def _follow(self, user: User, before: str, tier: str) -> None:
        if before == tier:
            return
        sessions = self._store.tenant(user.tenant_id).sessions
        async for session in sessions.each(user_id=user.id, tier=before, live_marker="live"):
            with contextlib.suppress(NotFound, Gone):  # it ended meanwhile
                await self.update(user.tenant_id, session.id, tier=tier)
