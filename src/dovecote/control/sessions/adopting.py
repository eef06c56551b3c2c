"""Shared instances after a restart: those that run go on, with the seats that the records name."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping

from dovecote.control.fleet import Host, Observed
from dovecote.control.functions import Functions
from dovecote.control.sessions.pools import OWNER
from dovecote.control.sessions.sessions import Sessions
from dovecote.errors import NotFound
from dovecote.model.records import Session
from dovecote.model.states import LIVE_SESSION, InstanceState, SessionState
from dovecote.store import Store

log = logging.getLogger(__name__)


class AdoptingShared:
    def __init__(self, store: Store, functions: Functions, sessions: Sessions) -> None:
        self._store = store
        self._functions = functions
        self._sessions = sessions

    async def instances(self, host: Host, observed: Mapping[str, Observed]) -> None:
        """Takes over those of functions that are still there, and ends the others."""
        for owner, seen in observed.items():
            if not owner.startswith(OWNER):
                continue
            try:
                if not await self._take_over(host, seen):
                    with contextlib.suppress(NotFound):
                        await host.stop(seen.instance_id, grace=0)
            except Exception:
                log.exception("%s of %s could not be taken over; the others go on", seen.instance_id, owner)

    async def _take_over(self, host: Host, seen: Observed) -> bool:
        function_id, revision_id, _ = seen.owner.split(":")
        function = await self._store.everyone().functions.find(id=function_id)
        if function is None:
            return False
        try:
            revision = await self._functions.revision(function.tenant_id, revision_id)
        except NotFound:
            return False
        if not function.is_shared(revision) or revision.start is None:
            return False
        if revision.hooks.initialize is not None and not await self._has_seats(function.tenant_id, seen.instance_id):
            return False  # nobody knows whether the hook came to its end
        is_frozen = seen.state is InstanceState.FROZEN
        self._sessions.placing.take_over(function, revision, host, seen, is_frozen=is_frozen)
        return True

    async def _has_seats(self, tenant_id: str, instance_id: str) -> bool:
        sessions = self._store.tenant(tenant_id).sessions
        return await sessions.find(instance_id=instance_id, state=SessionState.READY) is not None

    async def session(self, session: Session) -> None:
        """One whose revision has seats. Called under its lock, after the instances."""
        if session.state not in LIVE_SESSION or self._sessions.seated(session.id) is not None:
            return
        if session.state is SessionState.READY and self._sessions.placing.sit_again(session):
            return
        if session.state is SessionState.READY:
            await self._sessions.settle(session, SessionState.LOST, None)
        else:
            await self._sessions.placing.leave(session, "its start was cut short")
