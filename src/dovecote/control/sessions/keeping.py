"""Looks after sessions as time goes by, and makes records and hosts agree again after a restart."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from datetime import UTC, datetime
from math import inf
from typing import Any

from dovecote.background import Background
from dovecote.control.fleet import Death, Fleet, Host, Observed
from dovecote.control.functions import Functions
from dovecote.control.sessions.activity import quiet_of, rest_of
from dovecote.control.sessions.adopting import AdoptingShared
from dovecote.control.sessions.idle import Move, next_move, to_come
from dovecote.control.sessions.live import Live
from dovecote.control.sessions.replicas import stop_replica
from dovecote.control.sessions.rules import idle_after, is_over
from dovecote.control.sessions.seats import Seat, SharedInstance
from dovecote.control.sessions.sessions import Sessions
from dovecote.errors import DovecoteError, NotFound
from dovecote.model.records import Session
from dovecote.model.states import LIVE_SESSION, InstanceState, SessionState
from dovecote.store import Before, Store

log = logging.getLogger(__name__)

PAGE = 500
MOVES_AT_ONCE = 8
CONSIDER_EVERY = 5.0  # seconds, at least, of a seat for which nothing is due: the clock of the wall may be set
LOOK_FOR_ENDS_EVERY = 10.0  # seconds between looks at what other servers have ended of what lives here
RETRY_LOST_AFTER = 30.0  # seconds between tries to save what a dead instance left

Strays = Callable[[Iterable[Observed]], Sequence[Observed]]
"""Of what a host has, the instances of a room that nobody there knows: ending them has failed."""


class Keeping:
    def __init__(
        self,
        store: Store,
        fleet: Fleet,
        functions: Functions,
        sessions: Sessions,
        *,
        quiet_after: float,
        route_ttl: float = 0.0,
        strays: Sequence[Strays] = (),
    ) -> None:
        """`route_ttl` is for how many seconds the gateway uses a route without asking. `strays` are of other rooms."""
        self._store = store
        self._fleet = fleet
        self._functions = functions
        self._sessions = sessions
        self._quiet_after = quiet_after
        self._unseen = 2 * route_ttl
        self._strays = (sessions.placing.strays, *strays)
        self._shared = AdoptingShared(store, functions, sessions)
        self._moving: dict[str, asyncio.Task[None]] = {}
        self._background = Background()
        self._lost_looked_at = self._ends_looked_at = 0.0
        self._limit = asyncio.Semaphore(MOVES_AT_ONCE)

    # -- after a restart

    async def adopt(self) -> None:
        """What runs and what is stored is the truth; records follow. Called once, before the first request."""
        for host_id, host in self._fleet.hosts().items():
            observed = {o.owner: o for o in await host.observe()}
            left = {leftover.owner: leftover for leftover in host.leftovers()}
            await self._shared.instances(host, observed)
            for state in (*LIVE_SESSION, SessionState.LOST):
                async for session in self._store.everyone().sessions.each(state=state):
                    if session.host_id in (None, host_id):
                        try:
                            await self._adopt(session, host_id, observed.get(session.id), session.id in left)
                        except Exception:
                            log.exception("session %s could not be taken over; the others go on", session.id)
            await self._remove_strays(host, observed, set(left))

    async def _adopt(self, session: Session, host_id: str, seen: Observed | None, is_left: bool) -> None:
        host = self._fleet.host(host_id)
        async with self._sessions.live.lock(session.id):
            if self._sessions.live.get(session.id) is not None:
                return  # taken over a moment ago, when its record said another state
            revision = await self._functions.revision(session.tenant_id, session.revision_id)
            if revision.sharing.has_seats:
                await self._shared.session(session)
            elif seen is not None:
                live = Live(session, revision, host, seen.instance_id, seen.address, seen.pid)
                state = SessionState.FROZEN if seen.state is InstanceState.FROZEN else SessionState.READY
                if session.state is SessionState.LOST:
                    session = await self._sessions.settle(session, SessionState.STARTING, None)
                live.session = await self._sessions.settle(session, state, seen.instance_id, host_id=host_id)
                live.session = await self._sessions.went_on(live.session)
                self._sessions.live.add(live)
                await self._sessions.pace(live.session)
                self._sessions.resume_reinstall(live)
            elif session.is_hibernated and session.state is SessionState.STARTING:
                # Nobody has seen anything of what went on for a moment.
                await host.discard(session.id)
                await self._sessions.settle(session, SessionState.PARKED, None, host_id=host_id)
            elif is_left:
                await self._sessions.settle(session, SessionState.LOST, None, host_id=host_id)
            elif (
                session.state is SessionState.STARTING
                and session.tree is None
                and await host.last_saved(session.id) is None
            ):
                await self._sessions.settle(session, SessionState.NEW, None)
            else:
                lost = await self._sessions.settle(session, SessionState.LOST, None)
                await self._sessions.files.recover_from_log(lost, host)

    async def _remove_strays(self, host: Host, observed: dict[str, Observed], left: set[str]) -> None:
        """Instances and leftovers of sessions that have ended or were parked: their record was written just in time.

        And orphans of those that have ended.
        """
        for owner in {owner for owner in [*observed, *left, *host.orphaned()] if owner.startswith("ses_")}:
            try:
                await self._remove_stray(host, owner, observed.get(owner), is_left=owner in left)
            except Exception:
                log.exception("what is left of %s could not be removed; the others go on", owner)

    async def _remove_stray(self, host: Host, owner: str, seen: Observed | None, *, is_left: bool) -> None:
        session = await self._store.everyone().sessions.find(id=owner)
        if session is not None and session.state in (*LIVE_SESSION, SessionState.LOST, SessionState.DAMAGED):
            return
        if seen is not None:
            with contextlib.suppress(NotFound):
                await host.stop(seen.instance_id, grace=0)
        if session is not None and session.state is SessionState.ENDED:
            await host.erase(owner)
        elif seen is None and not is_left:
            return  # an orphan of a session that goes on
        elif session is not None and session.is_hibernated:
            # What its record names was saved when it stood still; what ran on after the crash nobody has seen.
            await host.discard(owner)
        elif session is not None and session.state is SessionState.PARKED:
            # Whether its save came before the last write nobody can tell by now.
            async with self._sessions.live.lock(owner):
                await self._sessions.files.store_leftover(session, host, session.reason)
        else:
            await host.discard(owner)

    # -- every tick

    async def tick(self) -> None:
        """Starts what is due: freezing, parking, ending. Each move is a task of its own; few go on at once."""
        now = time.monotonic()
        for host in self._fleet.hosts().values():
            before = [live for live in self._sessions.live.all() if live.host is host]
            shared = self._sessions.placing.on(host)
            observed = await host.observe()
            there = {seen.instance_id for seen in observed}
            for live in before:
                if live.instance_id not in there:
                    self._sessions.died(Death(live.instance_id, live.session.id, "its host does not know of it"))
            for seen in observed:
                owner = self._sessions.live.get(seen.owner)
                if owner is not None and owner.instance_id == seen.instance_id:
                    owner.seen = seen
                    self._consider(owner, seen, now)
            by_owner = {seen.owner: seen for seen in observed}
            for instance, move in self._sessions.placing.due(shared, by_owner, quiet_after=self._quiet_after):
                self._go_on(instance.owner, self._turn(instance, move))
            for strays in self._strays:
                for stray in strays(observed):
                    self._go_on(stray.owner, stop_replica(host, stray.instance_id, stray.owner))
            self._go_on(f"memory of {id(host)}", self._sessions.admitting.tick(host))
        for seat in self._sessions.placing.seats():
            self._consider_seat(seat, now)
        if now - self._ends_looked_at >= LOOK_FOR_ENDS_EVERY:
            self._ends_looked_at = now
            await self._end_ended()
        if now - self._lost_looked_at >= RETRY_LOST_AFTER:
            self._lost_looked_at = now
            await self._end_expired()
            await self._park_lost()

    def _consider(self, live: Live, seen: Observed, now: float) -> None:
        session = live.session
        live.touched = max(live.touched, now - min(seen.quiet_for, now - live.touched))
        quiet = quiet_of(live, seen, datetime.now(UTC))
        idle = idle_after(session, live.revision).total_seconds()
        quiet_after = session.quiet_after.total_seconds() if session.quiet_after else self._quiet_after
        move = next_move(
            session.state,
            quiet,
            quiet_after=quiet_after,
            idle_after=idle,
        )
        if move is not Move.STAY:
            self._begin(move, session, quiet.unused_for, live.touched)

    def _begin(self, move: Move, session: Session, quiet_for: float, used: float) -> None:
        if session.id not in self._moving:
            self._go_on(session.id, self._make(move, session, quiet_for, used))

    def _go_on(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """One of a name at a time; what it raises is logged."""
        if name in self._moving:
            work.close()
            return
        task = self._background.run(work, name)
        self._moving[name] = task
        task.add_done_callback(lambda _: self._moving.pop(name, None))

    def _consider_seat(self, seat: Seat, now: float) -> None:
        """A session in a shared instance. Its instance freezes by itself; a route that the gateway has learned serves
        it unseen for a while. There may be thousands, so each is looked at when something may be due."""
        session = seat.session
        if seat.considered is session and now < seat.consider_at:
            return
        quiet_for = now - seat.touched
        quiet = rest_of(session, max(0.0, quiet_for - self._unseen), datetime.now(UTC))
        idle = idle_after(session, seat.instance.revision).total_seconds()
        move = next_move(session.state, quiet, quiet_after=inf, idle_after=idle)
        if move is not Move.STAY:
            self._begin(move, session, quiet_for, seat.touched)
            return
        coming = to_come(session.state, quiet, quiet_after=inf, idle_after=idle)
        soonest = min((after for _, after in coming), default=inf)
        seat.considered, seat.consider_at = session, now + min(soonest, CONSIDER_EVERY)

    async def _turn(self, instance: SharedInstance, move: Move) -> None:
        async with self._limit:
            try:
                await self._sessions.placing.make(instance, move)
            except DovecoteError as error:
                log.warning("%s could not %s: %s", instance.owner, move, error)
            except Exception:
                log.exception("%s could not %s", instance.owner, move)

    async def _make(self, move: Move, session: Session, quiet_for: float, used: float) -> None:
        async with self._limit:
            try:
                if move is Move.END:
                    await self._sessions.expire(session.tenant_id, session.id)
                elif move is Move.PAUSE:
                    await self._sessions.pause_if_due(session.tenant_id, session.id)
                elif move is Move.PARK:
                    reason = f"idle for {quiet_for:.0f} s"
                    await self._sessions.park(session.tenant_id, session.id, reason=reason, unless_used_since=used)
                else:
                    await self._sessions.rest(session.id, unless_used_since=used)
            except DovecoteError as error:
                log.warning("session %s could not %s: %s", session.id, move, error)
                if error.code == "stale":
                    await self._sessions.let_go(session.id)
            except Exception:
                log.exception("session %s could not %s", session.id, move)

    async def _park_lost(self) -> None:
        """Files that only a host has are brought to the store, once their session has been idle for its time."""
        now = datetime.now(UTC)
        since = time.monotonic()
        async for session in self._store.everyone().sessions.each(state=[SessionState.LOST, SessionState.PARKING]):
            if self._sessions.live.lock(session.id).locked():
                continue
            revision = await self._functions.revision(session.tenant_id, session.revision_id)
            idle_for = now - session.last_active_at
            if idle_for >= idle_after(session, revision):
                self._begin(Move.PARK, session, idle_for.total_seconds(), since)

    async def _end_ended(self) -> None:
        """What lives here is asked no record for while it is used; another server may have ended it since."""
        ids = [live.session.id for live in self._sessions.live.all()]
        ids += [seat.session.id for seat in self._sessions.placing.seats()]
        for start in range(0, len(ids), PAGE):
            page = ids[start : start + PAGE]
            for session in await self._store.everyone().sessions.list(id=page, state=SessionState.ENDED, limit=PAGE):
                self._begin(Move.END, session, 0, 0)

    async def _end_expired(self) -> None:
        """Sessions without an instance, whose time is over all the same."""
        resting = [SessionState.NEW, SessionState.PARKED, SessionState.LOST, SessionState.DAMAGED]
        sessions, over = self._store.everyone().sessions, Before(datetime.now(UTC))
        due = await sessions.list(state=resting, expires_at=over, limit=PAGE)
        due += await sessions.list(state=resting, timeout_at=over, limit=PAGE)
        for session in due:
            self._begin(Move.END if is_over(session) else Move.PAUSE, session, 0, 0)

    async def stop(self) -> None:
        """Lets the moves under way come to their end."""
        await asyncio.gather(*self._moving.values(), return_exceptions=True)
