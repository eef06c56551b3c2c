"""Lets a session rest that nobody uses: frozen in its memory, or parked, with only files in the store."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from dovecote.control.fleet import SERVER_TAG, Fleet
from dovecote.control.functions import Functions
from dovecote.control.sessions.hibernating import Hibernating
from dovecote.control.sessions.hook_runs import HookRuns
from dovecote.control.sessions.hooks import PRE_FREEZE, PRE_STOP
from dovecote.control.sessions.ledger import Ledger
from dovecote.control.sessions.live import Live
from dovecote.control.sessions.placing import Placing
from dovecote.control.sessions.saved import SavedFiles
from dovecote.errors import Conflict, DovecoteError, NotFound
from dovecote.model.past import HookRun
from dovecote.model.records import Session
from dovecote.model.states import Desired, Park, SessionState
from dovecote.model.trees import Workspace

log = logging.getLogger(__name__)

HOOK_TRIES, HOOK_PAUSE = 10, 0.05  # of freezing after a hook was called, and seconds between


class Parking:
    def __init__(
        self,
        ledger: Ledger,
        fleet: Fleet,
        functions: Functions,
        files: SavedFiles,
        hibernating: Hibernating,
        placing: Placing,
    ) -> None:
        self._ledger = ledger
        self._fleet = fleet
        self._functions = functions
        self._files = files
        self._hibernating = hibernating
        self._placing = placing

    async def freeze(self, tenant_id: str, session_id: str) -> Session:
        """Raises Conflict (busy) when a request or a call is on its way."""
        await self._ledger.stored(tenant_id, session_id)
        if not await self.rest(session_id):
            raise Conflict("the session is in use", code="busy", hint="wait until its requests are answered")
        return await self._ledger.get(tenant_id, session_id)

    async def rest(self, session_id: str, *, unless_used_since: float | None = None) -> bool:
        """Freezes it unless somebody is inside; True when it is frozen or has no instance.

        `unless_used_since` is a `time.monotonic()`: whoever decides from afar says what the decision rests on.
        """
        async with self._ledger.live.lock(session_id):
            live = self._ledger.live.get(session_id)
            if live is None or live.session.state is SessionState.FROZEN:
                return True
            if live.busy or await _used(live, unless_used_since):
                return False
            if live.is_initialized:
                await self._ledger.note_hook(live, await self._ledger.hooks.run(live.inside, PRE_FREEZE))
            if live.busy or not await _frozen(live):
                return False
            if live.busy:
                # A call of the API came in while it froze: that goes over no connection that the host could see.
                await live.host.thaw(live.instance_id)
                return False
            live.become(SessionState.FROZEN, "quiet")
        await self._ledger.note(live)
        return True

    async def park(
        self, tenant_id: str, session_id: str, *, reason: str | None = None, unless_used_since: float | None = None
    ) -> Session:
        """Files to the store, the instance ended, its memory free. Raises StorageFailed; then nothing is lost.

        A session whose instance died is parked from what that left on its host.
        """
        async with self._ledger.live.lock(session_id):
            session = await self._ledger.living(tenant_id, session_id)
            live = self._ledger.live.get(session_id)
            seat = self._ledger.seated.get(session_id)
            if seat is not None and unless_used_since is not None and seat.touched > unless_used_since:
                return session
            is_asked = live is not None and unless_used_since is not None
            if live is not None and is_asked and (live.busy or await _used(live, unless_used_since)):
                return session
            keeps_memory = is_asked and session.park is Park.MEMORY
            session = await self.put_away(session, reason or "asked to", keeps_memory=keeps_memory)
            return session if reason else await self._ledger.change(session, desired=Desired.PARKED)

    async def put_away(self, session: Session, reason: str, *, keeps_memory: bool = False) -> Session:
        """Ends its instance and saves what that leaves; frees its seat, where it has that. Called under its lock."""
        if (await self._functions.revision(session.tenant_id, session.revision_id)).sharing.has_seats:
            return await self._placing.leave(session, reason)
        live = self._ledger.live.get(session.id)
        if live is not None:
            if keeps_memory:
                try:
                    return await self._hibernating.hibernate(live, reason)
                except DovecoteError as error:
                    log.info("session %s is parked without its processes: %s", session.id, error)
                    session = live.session
            session = await self._ledger.change(session, state=SessionState.PARKING, reason=reason)
            self._ledger.live.drop(session.id)
            if (run := await before_stop(live, self._ledger.hooks)) is not None:
                session = await self._ledger.swap(session, past=session.past.ran(run))
            with contextlib.suppress(NotFound):
                await live.host.stop(live.instance_id)
            return await self._files.store_leftover(session, live.host, reason)
        if session.state in (SessionState.READY, SessionState.FROZEN):
            # Its instance died a moment ago; whoever notes that waits for the lock.
            session = await self._ledger.swap(session, state=SessionState.LOST)
        if session.state in (SessionState.LOST, SessionState.PARKING) and session.host_id is not None:
            if session.instance_id is not None:
                with contextlib.suppress(NotFound):
                    await self._fleet.host(session.host_id).stop(session.instance_id)
            return await self._files.store_leftover(session, self._fleet.host(session.host_id), reason)
        return session

    async def rewind(
        self, tenant_id: str, session_id: str, files: Workspace, *, before: Callable[[Session], Awaitable[None]]
    ) -> Session:
        """Parks it, and makes `files`, saved earlier, what its next waking finds. What runs in it ends.

        `before` is told of the session as it was, saved, ahead of the change. Until the record is written the old
        files count, from then on the new ones, whatever the host's log says: all else of the old ones is older by its
        generation.
        """
        assert files.tree is not None
        async with self._ledger.live.lock(session_id):
            session = await self._ledger.living(tenant_id, session_id)
            revision = await self._functions.revision(tenant_id, session.revision_id)
            if revision.template != files.template:
                raise Conflict("the snapshot is over another template", code="wrong_template", hint="fork it instead")
            session = await self.put_away(session, "being rewound")
            await before(session)
            host = self._fleet.host(self._fleet.place(prefer=session.host_id))
            await host.verify(files.template, files.tree)
            session = await self._ledger.swap(
                session,
                epoch=session.epoch + 1,
                state=SessionState.PARKED if session.state is SessionState.DAMAGED else session.state,
                tree=files.tree,
                memory=None,
                saved_generation=session.saved_generation + 1,
                saved_at=datetime.now(UTC),
                reason="rewound",
            )
            session = await self._files.log_rewind(host, session, files)
            for each in self._fleet.hosts_of(session.host_id):
                await each.discard(session.id)
            return session


async def before_stop(live: Live, hooks: HookRuns) -> HookRun | None:
    """What its function wants done before the end of an instance; one that is frozen is thawed for that."""
    if live.revision.hooks.pre_stop is None or not live.is_initialized:
        return None
    with contextlib.suppress(DovecoteError):  # the hook itself finds out
        await live.host.thaw(live.instance_id)
    return await hooks.run(live.inside, PRE_STOP)


async def _frozen(live: Live) -> bool:
    """The connection over which a hook was called may need a moment to be gone."""
    tries = HOOK_TRIES if live.revision.hooks.pre_freeze is not None else 1
    for left in reversed(range(tries)):
        if await live.host.freeze(live.instance_id):
            return True
        if left and not live.busy:
            await asyncio.sleep(HOOK_PAUSE)
    return False


async def _used(live: Live, since: float | None) -> bool:
    """Whether it was used after `since`, or works at something now that nobody waits for."""
    if since is None:
        return False
    if live.touched > since:
        return True
    if not live.is_ready:
        return False
    try:
        commands = await live.guest.list_commands()
    except DovecoteError:
        return False  # nobody may stay awake by never answering
    return any(command.is_running and command.tag != SERVER_TAG for command in commands)
