"""Which caller owns which instance, until when: created, woken, frozen, parked, restored, ended."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Unpack

from dovecote.background import Background
from dovecote.control.fleet import Death, Fleet, Host
from dovecote.control.functions import SANDBOX, Functions
from dovecote.control.sessions.admitting import Admitting
from dovecote.control.sessions.hibernating import Hibernating
from dovecote.control.sessions.ledger import Ledger
from dovecote.control.sessions.lines import Lines
from dovecote.control.sessions.live import InstanceView, Live
from dovecote.control.sessions.mounting import added, without
from dovecote.control.sessions.opening import Origin, Wishes, forked, new_session
from dovecote.control.sessions.parking import Parking, before_stop
from dovecote.control.sessions.pausing import Pausing
from dovecote.control.sessions.placing import Placing
from dovecote.control.sessions.reinstalling import Reinstalling
from dovecote.control.sessions.rules import (
    from_now,
    is_over,
    parse_metadata,
    parse_state,
    resting_lag,
)
from dovecote.control.sessions.saved import SavedFiles
from dovecote.control.sessions.tiers import Tiers
from dovecote.control.sessions.tokens import Tokens
from dovecote.control.sessions.waking import Waking
from dovecote.control.sessions.watching import Watching
from dovecote.control.tenancy import Tenancy
from dovecote.errors import DovecoteError, Invalid, NotFound
from dovecote.model.networks import parse_policy
from dovecote.model.records import Session, Start
from dovecote.model.rules import ReinstallState
from dovecote.model.sizes import NetworkPolicy
from dovecote.model.states import LIVE_SESSION, Desired, SessionState
from dovecote.model.trees import Lag
from dovecote.model.volumes import Mount
from dovecote.store import Holding, Store

log = logging.getLogger(__name__)


class Sessions:
    def __init__(
        self,
        store: Store,
        fleet: Fleet,
        functions: Functions,
        tenancy: Tenancy,
        *,
        start_timeout: float,
        reinstall_timeout: float = 180.0,
        quiet_after: float = 10.0,
        overcommit: float = 4.0,
    ) -> None:
        self._store = store
        self._fleet = fleet
        self._functions = functions
        self._tenancy = tenancy
        self._ledger = Ledger(store)
        self.live, self.seated, self.hooks = self._ledger.live, self._ledger.seated.get, self._ledger.hooks
        self.tokens = Tokens(store, self.live)
        self.files = SavedFiles(fleet, self._ledger.swap)
        self._reinstalling = Reinstalling(self._ledger.swap, timeout=reinstall_timeout)
        self._background = Background()
        # What other rooms ask of sessions, whichever noun answers it.
        self.get, self.by_slug, self.placed = self._ledger.get, self._ledger.by_slug, self._ledger.placed
        self.lines = Lines(longest=start_timeout)
        self.admitting = Admitting(self._ledger, overcommit=overcommit)
        self.placing = Placing(
            self._ledger,
            fleet,
            functions,
            start_timeout=start_timeout,
            lines=self.lines,
            admit=self.admitting.admitted,
        )
        hibernating = Hibernating(self._ledger)
        parking = Parking(self._ledger, fleet, functions, self.files, hibernating, self.placing)
        self.admitting.join(parking.park)
        waking = Waking(
            self._ledger,
            fleet,
            functions,
            self._reinstalling,
            self.admitting,
            self.placing,
            start_timeout=start_timeout,
        )
        self._waking = waking
        self.awake, self.wake, self.use, self.ensure_open = waking.awake, waking.wake, waking.use, waking.ensure_open
        watching = Watching(self._ledger, functions, waking, quiet_after=quiet_after)
        self.lease, self.release, self.activity = watching.lease, watching.release, watching.activity
        self.freeze, self.rest, self.park, self.rewind = parking.freeze, parking.rest, parking.park, parking.rewind
        pausing = Pausing(self._ledger, waking, parking, hibernating)
        self.pause, self.pause_if_due, self.resume = pausing.pause, pausing.pause_if_due, pausing.resume
        self.remembered = pausing.remembered
        tiers = Tiers(store, self._ledger, self.admitting, tenancy)
        self.update, self.pace, self.set_user_tier = tiers.update, tiers.pace, tiers.set_user_tier

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
        Conflict (exists), Unsupported (shared_instance: variables, mounts or a network), and what waking raises.
        """
        function = await self._functions.get(tenant_id, wishes.get("function", SANDBOX))
        if not function.has_sessions:
            raise Invalid(
                f"function {function.name} has no sessions", code="no_sessions", hint="its affinity mode is `none`"
            )
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
        if session.env or session.network is not None or wishes.get("mounts"):
            revision = await self._waking.owning(session)
            for mount in wishes.get("mounts", ()):
                session = replace(session, mounts=added(session, revision, mount))
        if not wake:
            return await self._ledger.insert(session)
        if wishes.get("key") is not None:
            await self._ledger.refuse_taken(session)
        try:
            return await self._waking.begin(session)
        except DovecoteError:
            # Nobody has its id yet: it must not lie about and hold the key.
            with contextlib.suppress(NotFound):  # it was not recorded
                await self.delete(tenant_id, session.id)
            raise

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

    async def set_timeout(self, tenant_id: str, session_id: str, timeout: timedelta | None) -> Session:
        """So long from now, effective at once; None for no timeout. What it does is the session's `at_timeout`."""
        async with self.live.lock(session_id):
            session = await self._ledger.living(tenant_id, session_id)
            return await self._ledger.change(session, timeout_at=from_now(timeout))

    async def set_network(self, tenant_id: str, session_id: str, network: NetworkPolicy | None) -> Session:
        """At once, for open connections too, and whenever it wakes; None is as its function says. Raises Invalid."""
        network = parse_policy(network) if network is not None else None
        async with self.live.lock(session_id):
            session = await self._ledger.living(tenant_id, session_id)
            await self._waking.owning(session)
            live = self.live.get(session_id)
            if live is not None:
                await live.host.set_network(live.instance_id, network or live.revision.network)
            return await self._ledger.change(session, network=network)

    async def lag(self, tenant_id: str, session_id: str) -> Lag:
        """How far the store is behind its files; it is not woken for that."""
        session = await self._ledger.get(tenant_id, session_id)
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
            session = await self._ledger.living(tenant_id, session_id)
            await self._waking.owning(session)
            return await self._ledger.change(session, start=start)

    async def mount(self, tenant_id: str, session_id: str, mount: Mount) -> Session:
        """Of a volume of the same tenant; at once where it lives, and whenever it wakes. Raises Conflict (exists)."""
        async with self.live.lock(session_id):
            session = await self._ledger.living(tenant_id, session_id)
            mounts = added(session, await self._waking.owning(session), mount)
            live = self.live.get(session_id)
            if live is not None:
                await live.host.mount(live.instance_id, mount)
            return await self._ledger.change(session, mounts=mounts)

    async def unmount(self, tenant_id: str, session_id: str, at: str, *, force: bool = False) -> Session:
        """Raises NotFound (no_such_mount), StorageFailed (busy) when something inside uses it, unless forced."""
        async with self.live.lock(session_id):
            session = await self._ledger.living(tenant_id, session_id)
            mounts = without(session, at)
            live = self.live.get(session_id)
            if live is not None:
                await live.host.unmount(live.instance_id, at, force=force)
            return await self._ledger.change(session, mounts=mounts)

    async def delete(self, tenant_id: str, session_id: str) -> None:
        """Ends it, its files and its snapshots. May be repeated."""
        await self.end(tenant_id, session_id, "deleted")

    async def end(self, tenant_id: str, session_id: str, reason: str) -> None:
        """As `delete` does, for a reason that can be read afterwards."""
        await self._ledger.stored(tenant_id, session_id)
        async with self.live.lock(session_id):
            await self._conclude(await self._ledger.stored(tenant_id, session_id), reason)

    async def expire(self, tenant_id: str, session_id: str) -> None:
        """Ends it if its time is over by now (it may have been given more), or another server has. May be repeated."""
        async with self.live.lock(session_id):
            session = await self._ledger.stored(tenant_id, session_id)
            if is_over(session) or session.state is SessionState.ENDED:
                await self._conclude(session, "its time to live is over")

    async def _conclude(self, session: Session, reason: str) -> None:
        """Called under its lock."""
        live, seat = self.live.get(session.id), self.seated(session.id)
        if session.state is SessionState.ENDED and not (session.instance_id or live or seat):
            return
        instance_id = live.instance_id if live else session.instance_id
        if live is not None and (run := await before_stop(live, self.hooks)) is not None:
            session = replace(session, past=live.session.past.ran(run))
        if seat is not None:
            session = replace(session, past=seat.past)
        if (await self._functions.revision(session.tenant_id, session.revision_id)).sharing.has_seats:
            instance_id = None  # others are in it
        if session.state is not SessionState.ENDED:
            # Ahead of the end: what names a tree keeps it in the store, and nobody looks at an ended session again.
            await self._forget_snapshots(session)
            session = await self._ledger.swap(
                session,
                state=SessionState.ENDED,
                desired=Desired.ENDED,
                reason=reason,
                ended_at=datetime.now(UTC),
                live_marker=session.id,
            )
        self.live.drop(session.id)
        self.placing.ended(session.id)
        # Again: one may have been taken just before the end. Whoever takes one from now on finds the end.
        await self._forget_snapshots(session)
        for host_id, host in self._fleet.hosts().items():
            # Any host that had it once may have an orphan.
            has_it = live.host is host if live else session.host_id in (None, host_id)
            await _end(host, instance_id if has_it else None, session.id)
        if session.instance_id is not None:
            await self._ledger.swap(session, instance_id=None)

    async def _forget_snapshots(self, session: Session) -> None:
        snapshots = self._store.tenant(session.tenant_id).snapshots
        async for snapshot in snapshots.each(session_id=session.id, outlives_session=False):
            await snapshots.delete(snapshot.id)

    def resume_reinstall(self, live: Live) -> None:
        """After a restart in the middle of it: does it again, while the session goes on."""
        if live.session.reinstall is not None and live.session.reinstall.state is ReinstallState.RUNNING:
            self._background.run(self._resume_reinstall(live), f"reinstalling in {live.session.id}")

    async def _resume_reinstall(self, live: Live) -> None:
        done = await self._reinstalling.again(live.session, live.revision, live.host, live.instance_id)
        async with self.live.lock(live.session.id):
            if self.live.get(live.session.id) is live:
                await self._ledger.change(live.session, reinstall=done)

    async def home(self, session: Session) -> str:
        """Of the user that its commands run as."""
        revision = await self._functions.revision(session.tenant_id, session.revision_id)
        return revision.inside.home

    async def save(self, tenant_id: str, session_id: str) -> Session:
        """A checkpoint of a session that goes on. Raises StorageFailed."""
        async with self.use(tenant_id, session_id) as live, self.live.lock(session_id):
            return await self._checkpoint(live)

    async def whole(self, tenant_id: str, session_id: str) -> tuple[Session, str]:
        """A checkpoint, and a tree that also has what rules leave out of that: an app cannot install at each start."""
        async with self.use(tenant_id, session_id) as live, self.live.lock(session_id):
            return await self._checkpoint(live), (await live.host.save(live.instance_id, whole=True)).tree

    async def _checkpoint(self, live: Live) -> Session:
        saved = await live.host.save(live.instance_id)
        return await self._ledger.change(
            live.session, tree=saved.tree, saved_generation=saved.generation, saved_at=datetime.now(UTC)
        )

    async def instance(self, tenant_id: str, session_id: str) -> InstanceView:
        """Raises NotFound (no_instance) when it has none now."""
        await self._ledger.get(tenant_id, session_id)
        if (seat := self._ledger.seated.get(session_id)) is not None:
            shared = seat.instance
            usage = await shared.host.usage(shared.instance_id)
            return InstanceView(shared.instance_id, shared.address, shared.pid, usage)
        live = self.live.get(session_id)
        if live is None:
            raise NotFound("the session has no instance now", code="no_instance", hint="wake it")
        return InstanceView(live.instance_id, live.address, live.pid, await live.host.usage(live.instance_id))

    def died(self, death: Death) -> None:
        """Told by a host: the instance of some of our sessions ended by itself."""
        self.placing.died(death)
        live = self.live.get(death.owner)
        if live is None or live.instance_id != death.instance_id:
            return
        self.live.drop(death.owner)
        self._background.run(self._lost(live, death), f"noting the death of {death.instance_id}")

    async def _lost(self, live: Live, death: Death) -> None:
        session_id = live.session.id
        async with self.live.lock(session_id):
            session = await self._ledger.stored(live.session.tenant_id, session_id)
            if session.instance_id == live.instance_id and session.state in LIVE_SESSION:
                await self._ledger.lose(session, death, past=live.session.past)

    async def settle(
        self, session: Session, state: SessionState, instance_id: str | None, *, host_id: str | None = None
    ) -> Session:
        """Writes what a host was seen to hold, after a restart; `host_id` says which. Called under its lock."""
        host_id = host_id or session.host_id
        if (session.state, session.instance_id, session.host_id) == (state, instance_id, host_id):
            return session
        if session.state is SessionState.STARTING and state is SessionState.FROZEN:
            session = await self._ledger.swap(session, state=SessionState.READY)
        return await self._ledger.swap(session, state=state, instance_id=instance_id, host_id=host_id)

    async def went_on(self, session: Session) -> Session:
        """After a restart, of one that was seen to run: what it went on from is behind it."""
        return await self._ledger.swap(session, memory=None) if session.is_hibernated else session

    async def let_go(self, session_id: str) -> None:
        """Ends an instance of ours whose session another server has taken over since: its files become an orphan."""
        async with self.live.lock(session_id):
            live = self.live.get(session_id)
            if live is None:
                return
            session = await self._ledger.stored(live.session.tenant_id, session_id)
            if session.instance_id == live.instance_id:
                live.session = replace(session, state=live.session.state)  # which is true and not always written
                return
            log.warning("session %s goes on elsewhere: %s ends", session_id, live.instance_id)
            self.live.drop(session_id)
            with contextlib.suppress(NotFound):
                await live.host.stop(live.instance_id, grace=0)
            with contextlib.suppress(NotFound):
                await live.host.save_leftover(session_id)


async def _end(host: Host, instance_id: str | None, owner: str) -> None:
    if instance_id is not None:
        try:
            await host.stop(instance_id, grace=0)
        except NotFound:
            log.debug("instance %s is gone already", instance_id)
    await host.erase(owner)
