"""Leases, and the one call that says why a session is awake or rests."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from dovecote.control.fleet import SERVER_TAG, Guest
from dovecote.control.functions import Functions
from dovecote.control.sessions.activity import Activity, Running, of_live, of_resting, of_seated
from dovecote.control.sessions.ledger import Ledger
from dovecote.control.sessions.live import Live
from dovecote.control.sessions.waking import Waking
from dovecote.errors import DovecoteError, Invalid, NotFound
from dovecote.model.records import Session
from dovecote.model.sizes import TIERS

MOST_NAMED = 10  # commands that are told by their words
MOST_WORDS = 200  # bytes of those


class Watching:
    def __init__(self, ledger: Ledger, functions: Functions, waking: Waking, *, quiet_after: float) -> None:
        self._ledger = ledger
        self._functions = functions
        self._waking = waking
        self._quiet_after = quiet_after

    async def lease(self, tenant_id: str, session_id: str, span: timedelta) -> Session:
        """Awake now, and neither frozen nor parked for want of use until the span is over, counted from now.

        May be repeated; the last one counts. Raises Invalid (lease_too_long) above what the tier allows, and what
        waking raises.
        """
        session = await self._ledger.living(tenant_id, session_id)
        longest = TIERS[session.tier].lease
        if not timedelta(0) < span <= longest:
            raise Invalid(
                f"a lease of a session of tier {session.tier} is at most {longest.total_seconds():.0f} s",
                code="lease_too_long",
                hint="ask for less, and again before that is over",
            )
        async with self._waking.use(tenant_id, session_id) as live, self._ledger.live.lock(session_id):
            return await self._ledger.change(live.session, awake_until=datetime.now(UTC) + span)

    async def release(self, tenant_id: str, session_id: str) -> Session:
        """Ends its lease, if it has one: from now on its use alone counts. May be repeated."""
        async with self._ledger.live.lock(session_id):
            session = await self._ledger.living(tenant_id, session_id)
            now = datetime.now(UTC)
            if session.awake_until is None or session.awake_until <= now:
                return session
            return await self._ledger.change(session, awake_until=now)

    async def activity(self, tenant_id: str, session_id: str) -> Activity:
        """It is not woken for that. Raises NotFound."""
        session = await self._ledger.get(tenant_id, session_id)
        live = self._ledger.live.get(session_id)
        if live is not None:
            with contextlib.suppress(NotFound):  # it died a moment ago
                seen = await live.host.look(live.instance_id)
                commands = await _running(live) if live.is_ready and seen.commands else []
                quiet_after = session.quiet_after.total_seconds() if session.quiet_after else self._quiet_after
                return of_live(live, seen, commands, quiet_after=quiet_after, now=datetime.now(UTC))
        session = await self._ledger.stored(tenant_id, session_id)
        if (seat := self._ledger.seated.get(session_id)) is not None:
            return of_seated(seat, datetime.now(UTC))
        revision = await self._functions.revision(tenant_id, session.revision_id)
        return of_resting(session, revision, datetime.now(UTC))


async def _running(live: Live) -> Sequence[Running]:
    try:
        commands = [each for each in await live.guest.list_commands() if each.is_running and each.tag != SERVER_TAG]
        return [
            Running(each.number, await _words(live.guest, each.pid, each.tag), each.started_at)
            for each in commands[:MOST_NAMED]
        ]
    except DovecoteError:
        return []  # how many there are is known all the same


async def _words(guest: Guest, pid: int, tag: str) -> str:
    """What it says that it is: a process may write there what it likes."""
    found = b""
    try:
        async with contextlib.aclosing(guest.read_file(f"/proc/{pid}/cmdline", user="root", length=MOST_WORDS)) as text:
            async for chunk in text:
                found = (found + chunk)[:MOST_WORDS]
    except DovecoteError:
        pass  # it has ended, or shows nothing
    words = found.replace(b"\0", b" ").decode(errors="replace").strip()
    return "".join(each if each.isprintable() else " " for each in words) or tag or f"process {pid}"
