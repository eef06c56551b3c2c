"""Saves what runs in a session beside its files, of one moment, and ends it or lets it go on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from datetime import UTC, datetime

from dovecote.control.sessions.ledger import Ledger
from dovecote.control.sessions.live import Live
from dovecote.errors import DovecoteError, NotFound
from dovecote.model.records import Session
from dovecote.model.states import SessionState

log = logging.getLogger(__name__)


class Hibernating:
    """Called under the session's lock."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def hibernate(self, live: Live, reason: str) -> Session:
        """Its processes and files to the store, its instance ended. What fails leaves it as it was."""
        before = live.session
        await self._ledger.change(before, state=SessionState.PARKING, reason=reason)
        try:
            hibernated = await live.host.hibernate(live.instance_id)
            session = await self._ledger.swap(
                live.session,
                state=SessionState.PARKED,
                tree=hibernated.files.tree,
                memory=hibernated.memory,
                saved_generation=hibernated.files.generation,
                saved_at=datetime.now(UTC),
                instance_id=None,
                reason=reason,
            )
        except BaseException:
            await asyncio.shield(self.take_back(live, before))
            raise
        self._ledger.live.drop(session.id)
        with contextlib.suppress(NotFound):
            await live.host.stop(live.instance_id, grace=0)
        await live.host.discard(session.id)
        return session

    async def take_back(self, live: Live, before: Session) -> None:
        """It goes on as it was before, unless it has died meanwhile or cannot: then its files are left on the host."""
        try:
            await live.host.awaken(live.instance_id)
            if before.state is SessionState.FROZEN:
                await live.host.freeze(live.instance_id, force=True)
        except NotFound:
            return  # whoever is told of its death waits for the lock
        except DovecoteError as error:
            log.error("session %s does not go on after its memory was saved: %s", before.id, error)
            self._ledger.live.drop(before.id)
            with contextlib.suppress(NotFound):
                await live.host.stop(live.instance_id, grace=0)
            await self._ledger.swap(live.session, state=SessionState.LOST, instance_id=None, reason=error.message[:500])
            return
        if self._ledger.live.get(before.id) is live:
            live.session = await self._ledger.swap(live.session, state=before.state, reason=before.reason)
