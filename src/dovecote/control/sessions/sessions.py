"""Which caller owns which instance, until when: created, woken, frozen, parked, restored, ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Unpack

from dovecote.background import Background
from dovecote.control.fleet import SERVER_TAG, Claim, Command, Death, Fleet, Host, Placed
from dovecote.control.functions import SANDBOX, Functions
from dovecote.control.sessions.live import Live, LiveSessions
from dovecote.control.sessions.mounting import added, without
from dovecote.control.sessions.opening import Origin, Wishes, forked, new_session
from dovecote.control.sessions.reinstalling import Reinstalling
from dovecote.control.sessions.rules import (
    alive,
    is_over,
    parse_metadata,
    parse_state,
    parse_tier,
    parse_time,
    pauses_at,
    recovery_point,
    resting_lag,
    wakeable,
)
from dovecote.control.sessions.saved import SavedFiles, last_good
from dovecote.control.sessions.starting import ensure_started, wait_for_port, wait_until_ready
from dovecote.control.sessions.tokens import Tokens
from dovecote.control.tenancy import Tenancy
from dovecote.errors import Conflict, DovecoteError, Invalid, NotFound, StorageFailed
from dovecote.model.networks import parse_policy
from dovecote.model.records import Session, Start
from dovecote.model.rules import ReinstallState
from dovecote.model.sizes import SPECS, NetworkPolicy
from dovecote.model.states import LIVE_SESSION, Desired, Park, SessionState, check_session_move
from dovecote.model.trees import Lag, Workspace
from dovecote.model.volumes import Mount
from dovecote.store import Holding, Store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InstanceView:
    """The instance of a live session, for its owner and for operators."""

    instance_id: str
    address: str
    pid: int
    usage: Mapping[str, int | float]


class Sessions:
    def __init__(
        self,
        store: Store,
        fleet: Fleet,
        functions: Functions,
        tenancy: Tenancy,
        *,
        quiet_after: float,
        start_timeout: float,
        reinstall_timeout: float = 180.0,
    ) -> None:
        self._store = store
        self._fleet = fleet
        self._functions = functions
        self._tenancy = tenancy
        self._quiet_after = quiet_after
        self._start_timeout = start_timeout
        self.live = LiveSessions()
        self.tokens = Tokens(store, self.live)
        self.files = SavedFiles(fleet, self._swap)
        self._reinstalling = Reinstalling(self._swap, timeout=reinstall_timeout)
        self._waking: dict[str, asyncio.Task[Live]] = {}
        self._background = Background()

    # -- the record

    async def create(
        self,
        tenant_id: str,
        *,
        wake: bool = True,
        fork_of: Origin | None = None,
        **wishes: Unpack[Wishes],
    ) -> Session:
        """A new session. `fork_of` is a session and a tree of its: the new one begins there, of the same revision.

        Raises Invalid, NotFound (no_such_function, no_such_tier, no_such_template, no_such_spec, no_such_level),
        Conflict (exists), and what waking raises.
        """
        function = await self._functions.get(tenant_id, wishes.get("function", SANDBOX))
        owner = await self._tenancy.user(tenant_id, wishes.get("user") or "default")
        session = new_session(function, owner, wishes, datetime.now(UTC))
        size = {"template": wishes.get("template"), "spec": wishes.get("spec"), "level": wishes.get("level")}
        if any(size.values()):
            if function.name != SANDBOX or fork_of is not None:
                raise Invalid(
                    "template, spec and level are chosen for new sandboxes only",
                    hint="a function says what its sessions run, and a fork runs what its original runs",
                )
            session = replace(session, revision_id=(await self._functions.sandbox(tenant_id, **size)).id)
        if fork_of is not None:
            session = forked(session, fork_of, is_for_another=wishes.get("user") is not None)
        if wishes.get("mounts"):
            revision = await self._functions.revision(tenant_id, session.revision_id)
            for mount in wishes["mounts"]:
                session = replace(session, mounts=added(session, revision, mount))
        session = await self._store.tenant(tenant_id).sessions.insert(session)
        if not wake:
            return session
        try:
            return (await self.awake(session)).session
        except DovecoteError:
            # Nobody has its id yet: it must not lie about and hold the key.
            await self.delete(tenant_id, session.id)
            raise

    async def by_slug(self, slug: str, *, is_ended: bool = False) -> Session:
        """Whoever's it is: the slug is the right to ask. Raises NotFound, also for one that has ended, unless asked."""
        live = self.live.by_slug(slug)
        session = live.session if live else await self._store.everyone().sessions.find(slug=slug)
        if session is None or (session.state is SessionState.ENDED and not is_ended):
            raise NotFound("no sandbox has this address", code="no_such_session", hint="it may have been deleted")
        return session

    async def get(self, tenant_id: str, session_id: str) -> Session:
        live = self.live.get(session_id)
        if live is not None and live.session.tenant_id == tenant_id:
            return live.session
        return await self._store.tenant(tenant_id).sessions.get(session_id)

    async def list(
        self,
        tenant_id: str,
        *,
        function: str | None = None,
        user: str | None = None,
        state: str | Collection[str] | None = None,
        metadata: Mapping[str, str] | None = None,
        is_paused: bool | None = None,
        after: str | None = None,
        limit: int = 100,
        newest_first: bool = False,
    ) -> Sequence[Session]:
        """Those that match all that is given; `state` may be several, any of which will do."""
        equals: dict[str, object] = {"state": [each for each in SessionState if each is not SessionState.ENDED]}
        if metadata:
            equals["metadata"] = Holding(parse_metadata(metadata))
        if is_paused is not None:
            equals["desired"] = Desired.PARKED if is_paused else Desired.LIVE
        if function is not None:
            equals["function_id"] = (await self._functions.get(tenant_id, function)).id
        if user is not None:
            owner = await self._tenancy.find_user(tenant_id, user)
            if owner is None:
                return []
            equals["user_id"] = owner.id
        if state is not None:
            equals["state"] = [parse_state(each) for each in ([state] if isinstance(state, str) else state)]
        sessions = self._store.tenant(tenant_id).sessions
        records = await sessions.list(after=after, limit=limit, newest_first=newest_first, **equals)
        return [live.session if (live := self.live.get(record.id)) else record for record in records]

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
        """Changes times; effective at once. `ttl` counts from creation."""
        async with self.live.lock(session_id):
            session = await self._living(tenant_id, session_id)
            session = await self._change(
                session,
                tier=parse_tier(tier) if tier else session.tier,
                idle_after=parse_time(idle_after, "idle_after") or session.idle_after,
                quiet_after=parse_time(quiet_after, "quiet_after") or session.quiet_after,
                expires_at=session.created_at + ttl if (ttl := parse_time(ttl, "ttl")) else session.expires_at,
            )
            await self.pace(session)
            return session

    async def set_timeout(self, tenant_id: str, session_id: str, timeout: timedelta | None) -> Session:
        """So long from now, effective at once; None for no timeout. What it does is the session's `at_timeout`."""
        async with self.live.lock(session_id):
            session = await self._living(tenant_id, session_id)
            return await self._change(session, timeout_at=_from_now(timeout))

    async def set_network(self, tenant_id: str, session_id: str, network: NetworkPolicy | None) -> Session:
        """At once, for open connections too, and whenever it wakes; None is as its function says. Raises Invalid."""
        network = parse_policy(network) if network is not None else None
        async with self.live.lock(session_id):
            session = await self._living(tenant_id, session_id)
            live = self.live.get(session_id)
            if live is not None:
                await live.host.set_network(live.instance_id, network or live.revision.network)
            return await self._change(session, network=network)

    async def pace(self, session: Session) -> None:
        """Lets its instance, if it has one, be saved as often as its tier says. May be repeated."""
        live = self.live.get(session.id)
        if live is not None:
            with contextlib.suppress(NotFound):
                await live.host.set_recovery_point(live.instance_id, recovery_point(session))

    async def lag(self, tenant_id: str, session_id: str) -> Lag:
        """How far the store is behind its files; it is not woken for that."""
        session = await self.get(tenant_id, session_id)
        live = self.live.get(session_id)
        if live is not None:
            with contextlib.suppress(NotFound):
                return await live.host.lag(live.instance_id)
        return resting_lag(session, datetime.now(UTC))

    async def set_start(self, tenant_id: str, session_id: str, start: Start | None) -> Session:
        """Records how its server is started, for every later waking; does not start it."""
        if start is not None and not 0 <= start.port < 65536:
            raise Invalid(f"not a port: {start.port}", hint="1 to 65535, or 0 for a command that opens none")
        async with self.live.lock(session_id):
            session = await self._living(tenant_id, session_id)
            return await self._change(session, start=start)

    async def mount(self, tenant_id: str, session_id: str, mount: Mount) -> Session:
        """Of a volume of the same tenant; at once where it lives, and whenever it wakes. Raises Conflict (exists)."""
        async with self.live.lock(session_id):
            session = await self._living(tenant_id, session_id)
            revision = await self._functions.revision(tenant_id, session.revision_id)
            mounts = added(session, revision, mount)
            live = self.live.get(session_id)
            if live is not None:
                await live.host.mount(live.instance_id, mount)
            return await self._change(session, mounts=mounts)

    async def unmount(self, tenant_id: str, session_id: str, at: str, *, force: bool = False) -> Session:
        """Raises NotFound (no_such_mount), StorageFailed (busy) when something inside uses it, unless forced."""
        async with self.live.lock(session_id):
            session = await self._living(tenant_id, session_id)
            mounts = without(session, at)
            live = self.live.get(session_id)
            if live is not None:
                await live.host.unmount(live.instance_id, at, force=force)
            return await self._change(session, mounts=mounts)

    async def delete(self, tenant_id: str, session_id: str) -> None:
        """Ends it, its files and its snapshots. May be repeated."""
        await self._store.tenant(tenant_id).sessions.get(session_id)
        async with self.live.lock(session_id):
            await self._conclude(await self._store.tenant(tenant_id).sessions.get(session_id), "deleted")

    async def expire(self, tenant_id: str, session_id: str) -> None:
        """Ends it if its time is over by now: it may have been given more since somebody looked. May be repeated."""
        async with self.live.lock(session_id):
            session = await self._store.tenant(tenant_id).sessions.get(session_id)
            if is_over(session):
                await self._conclude(session, "its time to live is over")

    async def _conclude(self, session: Session, reason: str) -> None:
        """Called under its lock."""
        if session.state is SessionState.ENDED and session.instance_id is None:
            return
        live = self.live.get(session.id)
        instance_id = live.instance_id if live else session.instance_id
        if session.state is not SessionState.ENDED:
            # Ahead of the end: what names a tree keeps it in the store, and nobody looks at an ended session again.
            await self._forget_snapshots(session)
            session = await self._swap(
                session,
                state=SessionState.ENDED,
                desired=Desired.ENDED,
                reason=reason,
                ended_at=datetime.now(UTC),
                live_marker=session.id,
            )
            # Again: one may have been taken just before the end. Whoever takes one from now on finds the end.
            await self._forget_snapshots(session)
        self.live.drop(session.id)
        for host_id, host in self._fleet.hosts().items():
            # Any host that had it once may have an orphan.
            await _end(host, instance_id if session.host_id in (None, host_id) else None, session.id)
        if session.instance_id is not None:
            await self._swap(session, instance_id=None)

    async def _forget_snapshots(self, session: Session) -> None:
        snapshots = self._store.tenant(session.tenant_id).snapshots
        async for snapshot in snapshots.each(session_id=session.id, outlives_session=False):
            await snapshots.delete(snapshot.id)

    # -- paused, until somebody says or does otherwise

    async def pause(self, tenant_id: str, session_id: str, *, hibernate: bool | None = None) -> Session:
        """Its processes stop where they are, whatever they do. Takes its timeout away.

        Hibernated where its isolation level can: memory and files are in the store for as long as it exists, and open
        connections end. Else, or with `hibernate` False, frozen: connections stand still, and its memory is kept until
        its idle time is over. Raises Conflict (paused); with `hibernate` True also Unsupported (cannot_hibernate).
        """
        async with self.live.lock(session_id):
            session = await self._living(tenant_id, session_id)
            if session.is_paused:
                raise Conflict("the session is paused already", code="paused", hint="resume it")
            return await self._pause(session, "paused", hibernate)

    async def pause_if_due(self, tenant_id: str, session_id: str) -> None:
        """Its timeout may have been moved since somebody looked. May be repeated."""
        async with self.live.lock(session_id):
            session = await self._living(tenant_id, session_id)
            due = pauses_at(session)
            if due is not None and due <= datetime.now(UTC):
                await self._pause(session, "paused, its timeout has passed")

    async def _pause(self, session: Session, reason: str, hibernate: bool | None = None) -> Session:
        """Called under its lock."""
        live = self.live.get(session.id)
        if live is not None and hibernate is not False:
            try:
                session = await self._hibernate(live, reason)
            except DovecoteError as error:
                if hibernate:
                    raise
                if error.code != "cannot_hibernate":
                    log.warning("session %s is frozen, hibernating it failed: %s", session.id, error)
                session = live.session
            else:
                return await self._change(session, desired=Desired.PARKED, timeout_at=None)
        elif hibernate and not session.is_hibernated:
            raise Conflict("the session has no processes now", code="no_instance", hint="wake it first")
        if live is not None and live.is_ready:
            await live.host.freeze(live.instance_id, force=True)
            live.become(SessionState.FROZEN)
            session = live.session
        return await self._change(session, desired=Desired.PARKED, timeout_at=None, reason=reason)

    async def _hibernate(self, live: Live, reason: str) -> Session:
        """Its processes and files to the store, its instance ended. What fails leaves it as it was."""
        before = live.session
        await self._change(before, state=SessionState.PARKING, reason=reason)
        try:
            hibernated = await live.host.hibernate(live.instance_id)
            session = await self._swap(
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
            await asyncio.shield(self._take_back(live, before))
            raise
        self.live.drop(session.id)
        with contextlib.suppress(NotFound):
            await live.host.stop(live.instance_id, grace=0)
        await live.host.discard(session.id)
        return session

    async def _take_back(self, live: Live, before: Session) -> None:
        """It goes on as it was before, unless it has died meanwhile or cannot: then its files are left on the host."""
        try:
            await live.host.awaken(live.instance_id)
            if before.state is SessionState.FROZEN:
                await live.host.freeze(live.instance_id, force=True)
        except NotFound:
            return  # whoever is told of its death waits for the lock
        except DovecoteError as error:
            log.error("session %s does not go on after its memory was saved: %s", before.id, error)
            self.live.drop(before.id)
            with contextlib.suppress(NotFound):
                await live.host.stop(live.instance_id, grace=0)
            await self._swap(live.session, state=SessionState.LOST, instance_id=None, reason=error.message[:500])
            return
        if self.live.get(before.id) is live:
            live.session = await self._swap(live.session, state=before.state, reason=before.reason)

    async def remembered(self, tenant_id: str, session_id: str) -> Session:
        """With its processes as they are now saved beside its files, of one moment; it goes on.

        Its `memory` is for the caller: the record of one that goes on has none. One that is hibernated is not woken.
        Raises Unsupported (cannot_hibernate), Failed, StorageFailed.
        """
        session = await self.get(tenant_id, session_id)
        if session.is_hibernated and session.state is SessionState.PARKED:
            return session
        async with self.use(tenant_id, session_id) as live, self.live.lock(session_id):
            before = live.session
            await self._change(before, state=SessionState.PARKING)
            try:
                hibernated = await live.host.hibernate(live.instance_id)
            finally:
                await asyncio.shield(self._take_back(live, before))
            files = hibernated.files
            session = await self._change(
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
            async with self.live.lock(session_id):
                session = await self._living(tenant_id, session_id)
                if session.is_paused:
                    session = await self._put_away(session, "restarted")
                    await self._change(session, memory=None)
        live = await self.awake(await self.get(tenant_id, session_id), is_asked=True)
        if at_least is None:
            return live.session
        async with self.live.lock(session_id):
            session = await self._living(tenant_id, session_id)
            timeout_at = max(filter(None, (session.timeout_at, _from_now(at_least))))
            return await self._change(session, timeout_at=timeout_at)

    # -- waking

    async def wake(self, tenant_id: str, session_id: str) -> Session:
        """Ready whatever it takes; with a recorded start, its port is open. Raises what claims and starts raise."""
        live = await self.awake(await self.get(tenant_id, session_id))
        start = live.session.start or live.revision.start
        if start is not None:
            await self.serve(live, start)
        return live.session

    @asynccontextmanager
    async def use(self, tenant_id: str, session_id: str) -> AsyncIterator[Live]:
        """The awake session, kept awake while the caller is inside."""
        live = self.live.get(session_id)
        if live is None or not live.is_ready or live.session.tenant_id != tenant_id:
            live = await self.awake(await self.get(tenant_id, session_id))
        live.busy += 1
        try:
            yield live
        finally:
            live.busy -= 1
            live.touch()

    async def serve(self, live: Live, start: Start) -> None:
        """Returns when the port of the start takes connections, or its check is met; starts it unless it runs."""
        if not start.port:
            await self._ensure_started(live, start)
            if start.ready:
                inside = live.revision.inside
                check = ("/bin/sh", "-c", start.ready)
                command = Command(argv=check, env=self.environment(live), cwd=inside.cwd, user=inside.user)
                await wait_until_ready(live.guest, command, timeout=self._start_timeout)
            return
        answer = await live.guest.wait_port(start.port, 0)
        if not answer.is_open:
            number = await self._ensure_started(live, start)
            await wait_for_port(live.guest, start.port, server=number, timeout=self._start_timeout)

    async def _ensure_started(self, live: Live, start: Start) -> int:
        async with live.starting:
            inside = live.revision.inside
            return await ensure_started(live.guest, start, user=inside.user, env=self.environment(live), cwd=inside.cwd)

    def environment(self, live: Live) -> dict[str, str]:
        """What every command of the session sees: the template's, the revision's and the session's variables."""
        return {**live.revision.inside.env, **live.revision.env, **live.session.env}

    def default_user(self, live: Live) -> tuple[str, str]:
        """Name of the user that commands run as when they name none, and where they start."""
        return live.revision.inside.user, live.revision.inside.cwd

    async def awake(self, session: Session, *, is_asked: bool = False) -> Live:
        """The session with its instance ready, without waiting for its server. One waking for all who wait for it.

        `is_asked` says that its owner wants it awake, and not only something that is inside. Raises Conflict (paused).
        """
        live = self.live.get(session.id)
        if live is not None and live.is_ready:
            live.touch()
            return live
        task = self._waking.get(session.id)
        if task is None:
            task = self._waking[session.id] = asyncio.ensure_future(self._bring(session, is_asked))
            task.add_done_callback(lambda _: self._waking.pop(session.id, None))
        return await asyncio.shield(task)

    async def _bring(self, session: Session, is_asked: bool) -> Live:
        async with self.live.lock(session.id):
            live = self.live.get(session.id)
            if live is not None:
                wakeable(live.session, is_asked)
                if live.session.state is SessionState.FROZEN:
                    await live.host.thaw(live.instance_id)
                    live.become(SessionState.READY)
                if live.session.is_paused:
                    await self._change(live.session, desired=Desired.LIVE)
                live.touch()
                return live
            try:
                return await self._claim(wakeable(session, is_asked))
            except Conflict as error:
                if error.code != "stale":
                    raise
            # The caller's copy was read before somebody else changed it.
            return await self._claim(wakeable(await self._living(session.tenant_id, session.id), is_asked))

    async def _claim(self, session: Session) -> Live:
        revision = await self._functions.revision(session.tenant_id, session.revision_id)
        if session.state in LIVE_SESSION:
            # The record says that it lives, and it does not: its death has not been noted yet.
            session = await self._swap(session, state=SessionState.LOST, instance_id=None)
        before = session
        session = await self._swap(
            session, state=SessionState.STARTING, desired=Desired.LIVE, epoch=session.epoch + 1, reason=""
        )
        host_id = self._fleet.place(prefer=session.host_id)
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
                )
            )
        except BaseException as error:
            await self._unclaimed(session, before, host, error)
            raise
        session = await self._reinstalling.after_claim(session, revision, host, placed)
        session = await self._swap(
            session,
            state=SessionState.READY,
            host_id=host_id,
            instance_id=placed.instance_id,
            reason=_how(placed),
            memory=None,
            last_active_at=datetime.now(UTC),
        )
        live = Live(session, revision, host, placed.instance_id, placed.address, placed.pid)
        self.live.add(live)
        start = session.start or revision.start
        if start is not None and placed.how != "there":
            try:
                await self._ensure_started(live, start)
            except DovecoteError as error:
                # Whoever wants its port is told; files and commands are there without it.
                log.info("the start of session %s failed: %s", session.id, error)
        return live

    def resume_reinstall(self, live: Live) -> None:
        """After a restart in the middle of it: does it again, while the session goes on."""
        if live.session.reinstall is not None and live.session.reinstall.state is ReinstallState.RUNNING:
            self._background.run(self._resume_reinstall(live), f"reinstalling in {live.session.id}")

    async def _resume_reinstall(self, live: Live) -> None:
        done = await self._reinstalling.again(live.session, live.revision, live.host, live.instance_id)
        async with self.live.lock(live.session.id):
            if self.live.get(live.session.id) is live:
                await self._change(live.session, reinstall=done)

    async def _unclaimed(self, session: Session, before: Session, host: Host, error: BaseException) -> None:
        state, reason = before.state, f"could not be woken: {error}"
        if isinstance(error, StorageFailed) and error.code == "corrupt":
            state = SessionState.DAMAGED
            last = await last_good(session, host)
            reason = f"its files of generation {session.saved_generation} failed verification ({last}): {error}"
        await self._swap(session, state=state, reason=reason[:500])

    # -- resting

    async def freeze(self, tenant_id: str, session_id: str) -> Session:
        """Raises Conflict (busy) when a request or a call is on its way."""
        await self._store.tenant(tenant_id).sessions.get(session_id)
        if not await self.rest(session_id):
            raise Conflict("the session is in use", code="busy", hint="wait until its requests are answered")
        return await self.get(tenant_id, session_id)

    async def rest(self, session_id: str, *, unless_used_since: float | None = None) -> bool:
        """Freezes it unless somebody is inside; True when it is frozen or has no instance.

        `unless_used_since` is a `time.monotonic()`: whoever decides from afar says what the decision rests on.
        """
        async with self.live.lock(session_id):
            live = self.live.get(session_id)
            if live is None or live.session.state is SessionState.FROZEN:
                return True
            if live.busy or await _used(live, unless_used_since):
                return False
            if not await live.host.freeze(live.instance_id):
                return False
            if live.busy:
                # A call of the API came in while it froze: that goes over no connection that the host could see.
                await live.host.thaw(live.instance_id)
                return False
            live.become(SessionState.FROZEN, "quiet")
        await self._note(live)
        return True

    async def park(
        self, tenant_id: str, session_id: str, *, reason: str | None = None, unless_used_since: float | None = None
    ) -> Session:
        """Files to the store, the instance ended, its memory free. Raises StorageFailed; then nothing is lost.

        A session whose instance died is parked from what that left on its host.
        """
        async with self.live.lock(session_id):
            session = await self._living(tenant_id, session_id)
            live = self.live.get(session_id)
            is_asked = live is not None and unless_used_since is not None
            if live is not None and is_asked and (live.busy or await _used(live, unless_used_since)):
                return session
            keeps_memory = is_asked and session.park is Park.MEMORY
            session = await self._put_away(session, reason or "asked to", keeps_memory=keeps_memory)
            return session if reason else await self._change(session, desired=Desired.PARKED)

    async def _put_away(self, session: Session, reason: str, *, keeps_memory: bool = False) -> Session:
        """Ends its instance and saves what that leaves. Called under its lock."""
        live = self.live.get(session.id)
        if live is not None:
            if keeps_memory:
                try:
                    return await self._hibernate(live, reason)
                except DovecoteError as error:
                    log.info("session %s is parked without its processes: %s", session.id, error)
                    session = live.session
            session = await self._change(session, state=SessionState.PARKING, reason=reason)
            self.live.drop(session.id)
            with contextlib.suppress(NotFound):
                await live.host.stop(live.instance_id)
            return await self.files.store_leftover(session, live.host, reason)
        if session.state in (SessionState.READY, SessionState.FROZEN):
            # Its instance died a moment ago; whoever notes that waits for the lock.
            session = await self._swap(session, state=SessionState.LOST)
        if session.state in (SessionState.LOST, SessionState.PARKING) and session.host_id is not None:
            if session.instance_id is not None:
                with contextlib.suppress(NotFound):
                    await self._fleet.host(session.host_id).stop(session.instance_id)
            return await self.files.store_leftover(session, self._fleet.host(session.host_id), reason)
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
        async with self.live.lock(session_id):
            session = await self._living(tenant_id, session_id)
            revision = await self._functions.revision(tenant_id, session.revision_id)
            if revision.template != files.template:
                raise Conflict("the snapshot is over another template", code="wrong_template", hint="fork it instead")
            session = await self._put_away(session, "being rewound")
            await before(session)
            host = self._fleet.host(self._fleet.place(prefer=session.host_id))
            await host.verify(files.template, files.tree)
            session = await self._swap(
                session,
                epoch=session.epoch + 1,
                state=SessionState.PARKED if session.state is SessionState.DAMAGED else session.state,
                tree=files.tree,
                memory=None,
                saved_generation=session.saved_generation + 1,
                saved_at=datetime.now(UTC),
                reason="rewound",
            )
            session = await self.files.log_rewind(host, session, files)
            for each in self._hosts_of(session):
                await each.discard(session.id)
            return session

    async def home(self, session: Session) -> str:
        """Of the user that its commands run as."""
        revision = await self._functions.revision(session.tenant_id, session.revision_id)
        return revision.inside.home

    async def save(self, tenant_id: str, session_id: str) -> Session:
        """A checkpoint of a session that goes on. Raises StorageFailed."""
        async with self.use(tenant_id, session_id) as live, self.live.lock(session_id):
            saved = await live.host.save(live.instance_id)
            return await self._change(
                live.session, tree=saved.tree, saved_generation=saved.generation, saved_at=datetime.now(UTC)
            )

    async def whole(self, tenant_id: str, session_id: str) -> tuple[Session, str]:
        """A checkpoint, and a tree that also has what rules leave out of that: an app cannot install at each start."""
        async with self.use(tenant_id, session_id) as live, self.live.lock(session_id):
            checkpoint = await live.host.save(live.instance_id)
            session = await self._change(
                live.session,
                tree=checkpoint.tree,
                saved_generation=checkpoint.generation,
                saved_at=datetime.now(UTC),
            )
            return session, (await live.host.save(live.instance_id, whole=True)).tree

    async def instance(self, tenant_id: str, session_id: str) -> InstanceView:
        """Raises NotFound (no_instance) when it has none now."""
        await self.get(tenant_id, session_id)
        live = self.live.get(session_id)
        if live is None:
            raise NotFound("the session has no instance now", code="no_instance", hint="wake it")
        return InstanceView(live.instance_id, live.address, live.pid, await live.host.usage(live.instance_id))

    def died(self, death: Death) -> None:
        """Told by a host: the instance of one of our sessions ended by itself."""
        live = self.live.get(death.owner)
        if live is None or live.instance_id != death.instance_id:
            return
        self.live.drop(death.owner)
        self._background.run(self._lost(live, death.reason), f"noting the death of {death.instance_id}")

    async def _lost(self, live: Live, reason: str) -> None:
        session_id = live.session.id
        async with self.live.lock(session_id):
            session = await self._store.tenant(live.session.tenant_id).sessions.get(session_id)
            if session.instance_id == live.instance_id and session.state in LIVE_SESSION:
                await self._swap(session, state=SessionState.LOST, instance_id=None, reason=reason)

    async def settle(
        self, session: Session, state: SessionState, instance_id: str | None, *, host_id: str | None = None
    ) -> Session:
        """Writes what a host was seen to hold, after a restart; `host_id` says which. Called under its lock."""
        host_id = host_id or session.host_id
        if (session.state, session.instance_id, session.host_id) == (state, instance_id, host_id):
            return session
        if session.state is SessionState.STARTING and state is SessionState.FROZEN:
            session = await self._swap(session, state=SessionState.READY)
        return await self._swap(session, state=state, instance_id=instance_id, host_id=host_id)

    async def went_on(self, session: Session) -> Session:
        """After a restart, of one that was seen to run: what it went on from is behind it."""
        return await self._swap(session, memory=None) if session.is_hibernated else session

    # -- inside

    def _hosts_of(self, session: Session) -> Sequence[Host]:
        return [host for host_id, host in self._fleet.hosts().items() if session.host_id in (None, host_id)]

    async def _living(self, tenant_id: str, session_id: str) -> Session:
        live = self.live.get(session_id)
        if live is not None and live.session.tenant_id == tenant_id:
            return live.session
        return alive(await self._store.tenant(tenant_id).sessions.get(session_id))

    async def _change(self, session: Session, **changes: object) -> Session:
        """Changes a session that may be live; called under its lock."""
        live = self.live.get(session.id)
        changed = await self._swap(session, **changes)
        if live is not None:
            live.session = changed
        return changed

    async def _swap(self, session: Session, **changes: object) -> Session:
        wanted = replace(session, **changes)  # type: ignore[arg-type]
        if wanted.tree != session.tree and "memory" not in changes:
            wanted = replace(wanted, memory=None)  # it goes with the files that it was saved with
        check_session_move(session.state, wanted.state)
        return await self._store.tenant(session.tenant_id).sessions.swap(wanted)

    async def let_go(self, session_id: str) -> None:
        """Ends an instance of ours whose session another server has taken over since: its files become an orphan."""
        async with self.live.lock(session_id):
            live = self.live.get(session_id)
            if live is None:
                return
            session = await self._store.tenant(live.session.tenant_id).sessions.get(session_id)
            if session.instance_id == live.instance_id:
                live.session = replace(session, state=live.session.state)  # which is true and not always written
                return
            log.warning("session %s goes on elsewhere: %s ends", session_id, live.instance_id)
            self.live.drop(session_id)
            with contextlib.suppress(NotFound):
                await live.host.stop(live.instance_id, grace=0)
            with contextlib.suppress(NotFound):
                await live.host.save_leftover(session_id)

    async def _note(self, live: Live) -> None:
        """Brings the record of a live session up to what is true of it."""
        async with self.live.lock(live.session.id):
            if self.live.get(live.session.id) is not live:
                return
            seconds = time.monotonic() - live.touched
            live.session = await self._swap(live.session, last_active_at=datetime.now(UTC) - timedelta(seconds=seconds))


def _from_now(timeout: timedelta | None) -> datetime | None:
    timeout = parse_time(timeout, "timeout")
    return datetime.now(UTC) + timeout if timeout else None


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


def _how(placed: Placed) -> str:
    how = {"survivor": "its own files were still on the host", "memory": "its processes go on where they were"}
    return placed.note[:500] or how.get(placed.how, "")


async def _end(host: Host, instance_id: str | None, owner: str) -> None:
    if instance_id is not None:
        try:
            await host.stop(instance_id, grace=0)
        except NotFound:
            log.debug("instance %s is gone already", instance_id)
    await host.erase(owner)
