"""Pauses a session because somebody said so, until somebody says or does otherwise."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from dovecote.control.sessions.hibernating import Hibernating
from dovecote.control.sessions.hooks import PRE_FREEZE
from dovecote.control.sessions.ledger import Ledger
from dovecote.control.sessions.parking import Parking
from dovecote.control.sessions.rules import from_now, pauses_at
from dovecote.control.sessions.waking import Waking
from dovecote.errors import Conflict, DovecoteError
from dovecote.model.records import Session
from dovecote.model.states import AtTimeout, Desired, SessionState

log = logging.getLogger(__name__)


class Pausing:
    def __init__(self, ledger: Ledger, waking: Waking, parking: Parking, hibernating: Hibernating) -> None:
        self._ledger = ledger
        self._waking = waking
        self._parking = parking
        self._hibernating = hibernating

    async def pause(self, tenant_id: str, session_id: str, *, hibernate: bool | None = None) -> Session:
        """Its processes stop where they are, whatever they do. Takes its timeout away.

        Hibernated where its isolation level can: memory and files are in the store for as long as it exists, and open
        connections end. Else, or with `hibernate` False, frozen: connections stand still, and its memory is kept until
        its idle time is over. Raises Conflict (paused); with `hibernate` True also Unsupported (cannot_hibernate).
        """
        async with self._ledger.live.lock(session_id):
            session = await self._ledger.living(tenant_id, session_id)
            if session.is_paused:
                raise Conflict("the session is paused already", code="paused", hint="resume it")
            return await self._pause(session, "paused", hibernate)

    async def pause_if_due(self, tenant_id: str, session_id: str) -> None:
        """Its timeout may have been moved since somebody looked. May be repeated."""
        async with self._ledger.live.lock(session_id):
            session = await self._ledger.living(tenant_id, session_id)
            due = pauses_at(session)
            if due is None or due > datetime.now(UTC):
                return
            reason = "paused, its timeout has passed"
            if session.at_timeout is AtTimeout.PARK:
                session = await self._parking.put_away(session, reason)
                await self._ledger.change(session, desired=Desired.PARKED, timeout_at=None, memory=None)
            else:
                await self._pause(session, reason)

    async def _pause(self, session: Session, reason: str, hibernate: bool | None = None) -> Session:
        """Called under its lock."""
        live = self._ledger.live.get(session.id)
        if self._ledger.seated.get(session.id) is not None:
            session = await self._parking.put_away(session, reason)
            return await self._ledger.change(session, desired=Desired.PARKED, timeout_at=None)
        if live is not None and live.is_ready and live.is_initialized:
            await self._ledger.note_hook(live, await self._ledger.hooks.run(live.inside, PRE_FREEZE))
            session = live.session
        if live is not None and hibernate is not False:
            try:
                session = await self._hibernating.hibernate(live, reason)
            except DovecoteError as error:
                if hibernate:
                    raise
                if error.code != "cannot_hibernate":
                    log.warning("session %s is frozen, hibernating it failed: %s", session.id, error)
                session = live.session
            else:
                return await self._ledger.change(session, desired=Desired.PARKED, timeout_at=None)
        elif hibernate and not session.is_hibernated:
            raise Conflict("the session has no processes now", code="no_instance", hint="wake it first")
        if live is not None and live.is_ready:
            await live.host.freeze(live.instance_id, force=True)
            live.become(SessionState.FROZEN)
            session = live.session
        return await self._ledger.change(session, desired=Desired.PARKED, timeout_at=None, reason=reason)

    async def remembered(self, tenant_id: str, session_id: str) -> Session:
        """With its processes as they are now saved beside its files, of one moment; it goes on.

        Its `memory` is for the caller: the record of one that goes on has none. One that is hibernated is not woken.
        Raises Unsupported (cannot_hibernate), Failed, StorageFailed.
        """
        session = await self._ledger.get(tenant_id, session_id)
        if session.is_hibernated and session.state is SessionState.PARKED:
            return session
        async with self._waking.use(tenant_id, session_id) as live, self._ledger.live.lock(session_id):
            before = live.session
            await self._ledger.change(before, state=SessionState.PARKING)
            try:
                hibernated = await live.host.hibernate(live.instance_id)
            finally:
                await asyncio.shield(self._hibernating.take_back(live, before))
            files = hibernated.files
            session = await self._ledger.change(
                live.session, tree=files.tree, saved_generation=files.generation, saved_at=datetime.now(UTC)
            )
            return replace(session, memory=hibernated.memory)

    async def resume(
        self, tenant_id: str, session_id: str, *, at_least: timedelta | None = None, restart: bool = False
    ) -> Session:
        """Ready, paused or not. With `at_least` its timeout is not sooner than that from now; it may be later.

        With `restart` one that is paused goes on from its files alone: its processes are left behind.
        """
        if restart:
            async with self._ledger.live.lock(session_id):
                session = await self._ledger.living(tenant_id, session_id)
                if session.is_paused:
                    session = await self._parking.put_away(session, "restarted")
                    await self._ledger.change(session, memory=None)
        session = await self._ledger.get(tenant_id, session_id)
        if await self._waking.has_seat(session):
            async with self._ledger.live.lock(session_id):
                session = await self._ledger.living(tenant_id, session_id)
                session = await self._ledger.change(session, desired=Desired.LIVE)
        else:
            session = (await self._waking.awake(session, is_asked=True)).session
        if at_least is None:
            return session
        async with self._ledger.live.lock(session_id):
            session = await self._ledger.living(tenant_id, session_id)
            timeout_at = max(filter(None, (session.timeout_at, from_now(at_least))))
            return await self._ledger.change(session, timeout_at=timeout_at)
