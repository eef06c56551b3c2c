"""Brings a session to ready, whatever it takes: thawed, restored, its server started."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from dovecote.control.fleet import Claim, Command, Fleet, Host, Placed
from dovecote.control.functions import Functions
from dovecote.control.sessions.admitting import Admitting
from dovecote.control.sessions.hooks import INITIALIZE, failed_start
from dovecote.control.sessions.ledger import Ledger
from dovecote.control.sessions.lines import no_instances
from dovecote.control.sessions.live import Live
from dovecote.control.sessions.placing import Placing
from dovecote.control.sessions.reinstalling import Reinstalling
from dovecote.control.sessions.rules import recovery_point, shared_instance, wakeable
from dovecote.control.sessions.saved import last_good
from dovecote.control.sessions.starting import ensure_started, wait_for_port, wait_until_ready
from dovecote.errors import Conflict, DovecoteError, StorageFailed
from dovecote.model.past import HookRun, Past
from dovecote.model.records import Revision, Session, Start
from dovecote.model.sizes import SPECS, TIERS
from dovecote.model.states import LIVE_SESSION, Desired, SessionState
from dovecote.model.trees import Workspace

log = logging.getLogger(__name__)


class Waking:
    def __init__(
        self,
        ledger: Ledger,
        fleet: Fleet,
        functions: Functions,
        reinstalling: Reinstalling,
        admitting: Admitting,
        placing: Placing,
        *,
        start_timeout: float,
    ) -> None:
        self._ledger = ledger
        self._fleet = fleet
        self._functions = functions
        self._reinstalling = reinstalling
        self._admitting = admitting
        self._placing = placing
        self._start_timeout = start_timeout
        self._waking: dict[str, asyncio.Task[Live]] = {}
        self._claiming: Counter[str] = Counter()  # by function

    async def wake(self, tenant_id: str, session_id: str) -> Session:
        """Ready whatever it takes; with a recorded start, its port is open. Raises what claims and starts raise."""
        session = await self._ledger.get(tenant_id, session_id)
        if await self.has_seat(session):
            return await self.warm(session)
        live = await self.awake(session)
        start = live.session.start or live.revision.start
        if start is not None:
            await self.serve(live, start)
        else:
            await self._initialize(live)
        return live.session

    async def begin(self, session: Session) -> Session:
        """A session that is not recorded yet: it is when there is room for it, and then gets its instance or its seat.

        Raises Conflict (exists), and what `warm` does.
        """
        if await self.has_seat(session):
            return await self.warm(await self._ledger.insert(session))
        return (await self._one(session, self._bring_new)).session

    async def warm(self, session: Session) -> Session:
        """It has its instance, or its seat in one; without waiting for a server of its own. Raises what waking does."""
        if not await self.has_seat(session):
            return (await self.awake(session)).session
        function = await self._functions.by_id(session.tenant_id, session.function_id)
        return (await self._placing.seat(function, session)).session

    async def owning(self, session: Session) -> Revision:
        """Its revision, which gives it an instance of its own. Raises Unsupported (shared_instance)."""
        revision = await self._functions.revision(session.tenant_id, session.revision_id)
        if revision.sharing.has_seats:
            raise shared_instance()
        return revision

    async def has_seat(self, session: Session) -> bool:
        """Whether its place is a seat in an instance that others are in too."""
        return (await self._functions.revision(session.tenant_id, session.revision_id)).sharing.has_seats

    @asynccontextmanager
    async def use(self, tenant_id: str, session_id: str) -> AsyncIterator[Live]:
        """The awake session, kept awake while the caller is inside."""
        live = self._ledger.live.get(session_id)
        if live is None or not live.is_ready or live.session.tenant_id != tenant_id:
            live = await self.awake(await self._ledger.get(tenant_id, session_id))
        live.enter()
        try:
            yield live
        finally:
            live.leave()

    async def serve(self, live: Live, start: Start) -> None:
        """Returns when its server takes requests, started unless it runs, and initialized once. Raises Failed."""
        await self._serve(live, start)
        await self._initialize(live)

    async def ensure_open(self, live: Live, port: int) -> None:
        """Returns when a port takes connections; its server is started if it is the recorded one. Raises Failed."""
        start = live.session.start or live.revision.start
        if start is not None and start.port == port:
            await self.serve(live, start)
        else:
            await wait_for_port(live.guest, port, server=None, timeout=0)

    async def _initialize(self, live: Live) -> None:
        """Once for an instance, for all who wait for it; whoever comes after a failure tries again.

        Raises Failed (hook_failed).
        """
        if live.is_initialized:
            return
        if live.initializing is None:
            live.initializing = asyncio.ensure_future(self._run_initialize(live))
            live.initializing.add_done_callback(lambda _: setattr(live, "initializing", None))
        run = await asyncio.shield(live.initializing)
        if not run.is_ok:
            raise failed_start(run)

    async def _run_initialize(self, live: Live) -> HookRun:
        live.enter()
        try:
            run = await self._ledger.hooks.run(live.inside, INITIALIZE)
        finally:
            live.leave()
        assert run is not None
        async with self._ledger.live.lock(live.session.id):
            if self._ledger.live.get(live.session.id) is live:
                await self._ledger.note_hook(live, run)
        return run

    async def _serve(self, live: Live, start: Start) -> None:
        """Returns when the port of the start takes connections, or its check is met; starts it unless it runs."""
        if not start.port:
            await self._ensure_started(live, start)
            if start.ready:
                inside = live.revision.inside
                check = ("/bin/sh", "-c", start.ready)
                command = Command(argv=check, env=live.environment, cwd=inside.cwd, user=inside.user)
                await wait_until_ready(live.guest, command, timeout=self._start_timeout)
            return
        answer = await live.guest.wait_port(start.port, 0)
        if not answer.is_open:
            number = await self._ensure_started(live, start)
            await wait_for_port(live.guest, start.port, server=number, timeout=self._start_timeout)

    async def _ensure_started(self, live: Live, start: Start) -> int:
        async with live.starting:
            inside = live.revision.inside
            return await ensure_started(live.guest, start, user=inside.user, env=live.environment, cwd=inside.cwd)

    async def awake(self, session: Session, *, is_asked: bool = False) -> Live:
        """The session with its instance ready, without waiting for its server. One waking for all who wait for it.

        `is_asked` says that its owner wants it awake, and not only something that is inside. Raises Conflict (paused).
        """
        live = self._ledger.live.get(session.id)
        if live is not None and live.is_ready:
            live.touch()
            return live
        return await self._one(session, partial(self._bring, is_asked=is_asked))

    async def _one(self, session: Session, bring: Callable[[Session], Coroutine[Any, Any, Live]]) -> Live:
        task = self._waking.get(session.id)
        if task is None:
            task = self._waking[session.id] = asyncio.ensure_future(bring(session))
            task.add_done_callback(lambda _: self._waking.pop(session.id, None))
        return await asyncio.shield(task)

    async def _bring_new(self, session: Session) -> Live:
        async with self._ledger.live.lock(session.id):
            return await self._claim(session, is_new=True)

    async def _bring(self, session: Session, is_asked: bool) -> Live:
        async with self._ledger.live.lock(session.id):
            live = self._ledger.live.get(session.id)
            if live is not None:
                wakeable(live.session, is_asked)
                if live.session.state is SessionState.FROZEN:
                    await live.host.thaw(live.instance_id)
                    live.become(SessionState.READY)
                if live.session.is_paused:
                    await self._ledger.change(live.session, desired=Desired.LIVE)
                live.touch()
                return live
            try:
                return await self._claim(wakeable(session, is_asked))
            except Conflict as error:
                if error.code != "stale":
                    raise
            # The caller's copy was read before somebody else changed it.
            return await self._claim(wakeable(await self._ledger.living(session.tenant_id, session.id), is_asked))

    async def _claim(self, session: Session, *, is_new: bool = False) -> Live:
        revision = await self.owning(session)
        with self._bounded(session, revision.sharing.instances):
            host_id = self._fleet.place(prefer=session.host_id)
            limit = SPECS[revision.spec].limits.memory_bytes if TIERS[session.tier].is_promised else None
            async with self._admitting.admitted(self._fleet.host(host_id), session.id, promised_limit=limit):
                return await self._claim_on(host_id, session, revision, is_new=is_new)

    @contextmanager
    def _bounded(self, session: Session, most: int) -> Iterator[None]:
        """Raises NoCapacity (no_instances) where as many sessions of its function live as may."""
        function_id = session.function_id
        if most:
            lives = sum(1 for live in self._ledger.live.all() if live.session.function_id == function_id)
            if lives + self._claiming[function_id] >= most:
                raise no_instances(most)
        self._claiming[function_id] += 1
        try:
            yield
        finally:
            self._claiming[function_id] -= 1
            if not self._claiming[function_id]:
                del self._claiming[function_id]

    async def _claim_on(self, host_id: str, session: Session, revision: Revision, *, is_new: bool) -> Live:
        if session.state in LIVE_SESSION:
            # The record says that it lives, and it does not: its death has not been noted yet.
            session = await self._ledger.swap(session, state=SessionState.LOST, instance_id=None)
        before = session
        write = self._ledger.insert if is_new else self._ledger.swap
        session = await write(
            session, state=SessionState.STARTING, desired=Desired.LIVE, epoch=session.epoch + 1, reason=""
        )
        host = self._fleet.host(host_id)
        try:
            placed = await host.claim(
                Claim(
                    owner=session.id,
                    workspace=Workspace(revision.template, session.tree or revision.tree),
                    limits=SPECS[revision.spec].limits,
                    network=session.network or revision.network,
                    level=revision.level,
                    epoch=session.epoch,
                    generation=session.saved_generation,
                    allow_setuid=revision.inside.has_sudo,
                    recovery_point=recovery_point(session),
                    mounts=(*revision.mounts, *session.mounts),
                    home=revision.inside.home,
                    rules=revision.rules,
                    memory=session.memory,
                    connections=revision.sharing.requests,
                )
            )
        except BaseException as error:
            await self._unclaimed(session, before, host, error)
            raise
        session = await self._reinstalling.after_claim(session, revision, host, placed)
        session = await self._ledger.swap(
            session,
            state=SessionState.READY,
            host_id=host_id,
            instance_id=placed.instance_id,
            reason=_how(placed),
            memory=None,
            last_active_at=datetime.now(UTC),
            past=_carried_on(session.past, placed),
        )
        live = Live(session, revision, host, placed.instance_id, placed.address, placed.pid)
        self._ledger.live.add(live)
        start = session.start or revision.start
        if start is not None and placed.how != "there":
            try:
                await self._ensure_started(live, start)
            except DovecoteError as error:
                # Whoever wants its port is told; files and commands are there without it.
                log.info("the start of session %s failed: %s", session.id, error)
        return live

    async def _unclaimed(self, session: Session, before: Session, host: Host, error: BaseException) -> None:
        state, reason = before.state, f"could not be woken: {error}"
        if isinstance(error, StorageFailed) and error.code == "corrupt":
            state = SessionState.DAMAGED
            last = await last_good(session, host)
            reason = f"its files of generation {session.saved_generation} failed verification ({last}): {error}"
        await self._ledger.swap(session, state=state, reason=reason[:500])


def _carried_on(past: Past, placed: Placed) -> Past:
    """Processes that go on where they were are initialized if they were before."""
    if placed.how != "memory":
        return past
    before = next((each for each in past.hooks if each.hook == INITIALIZE), None)
    return past.ran(replace(before, instance_id=placed.instance_id)) if before else past


def _how(placed: Placed) -> str:
    how = {"survivor": "its own files were still on the host", "memory": "its processes go on where they were"}
    return placed.note[:500] or how.get(placed.how, "")
