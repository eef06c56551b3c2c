"""Which shared instance a session has its seat in, and which one takes a request that belongs to no session."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from dovecote.background import Background
from dovecote.control.fleet import Death, Fleet, Host, Observed
from dovecote.control.functions import Functions
from dovecote.control.sessions.bringing import Bringing
from dovecote.control.sessions.idle import Move
from dovecote.control.sessions.ledger import Ledger
from dovecote.control.sessions.lines import LOOK_EVERY, Lines, instance_full, no_instances
from dovecote.control.sessions.pools import Pool, Pools
from dovecote.control.sessions.replicas import Admit
from dovecote.control.sessions.rules import wakeable
from dovecote.control.sessions.seats import Seat, SharedInstance, emptiest, fullest, next_turn
from dovecote.control.sessions.starting import INSTANCE_IS_GONE, instance_dies
from dovecote.errors import DovecoteError, Failed, NotFound
from dovecote.model.records import Function, Revision, Session
from dovecote.model.sizes import TIERS
from dovecote.model.states import LIVE_SESSION, Desired, SessionState

log = logging.getLogger(__name__)

DEATHS_IN_A_ROUTE = 3
UNKNOWN = "its host does not know of it"
T = TypeVar("T")


class Placing:
    def __init__(
        self, ledger: Ledger, fleet: Fleet, functions: Functions, *, start_timeout: float, lines: Lines, admit: Admit
    ) -> None:
        self._ledger = ledger
        self._fleet = fleet
        self._functions = functions
        self._start_timeout = start_timeout
        self._lines = lines
        self._bringing = Bringing(start_timeout=start_timeout, admit=admit, hooks=ledger.hooks)
        self._pools = Pools()
        self.strays = self._pools.strays
        self._seating: dict[str, asyncio.Task[Seat]] = {}  # by session
        self._background = Background()

    # -- callers

    async def seat(self, function: Function, session: Session, *, is_doubted: bool = True) -> Seat:
        """The session's seat, its instance awake and answering: looked at again where that `is_doubted`.

        Raises NoCapacity (no_instances), Conflict (paused), Gone, and what starting raises.
        """

        async def take() -> tuple[SharedInstance, Seat]:
            seat = self._ledger.seated.get(session.id) or await self._sit_down(function, session)
            seat.instance.places += 1
            return seat.instance, seat

        seat = await self._answering(take, is_doubted)
        seat.touch()
        return seat

    async def anyone(self, function: Function, *, is_doubted: bool = True) -> SharedInstance:
        """An instance for one request of nobody's session: the one with the fewest. Raises NoCapacity (instance_full),
        and what starting raises."""
        pool = self._pools.of(function)
        revision = await self._functions.revision(function.tenant_id, function.revision_id)

        async def take() -> tuple[SharedInstance, SharedInstance]:
            try:
                async with asyncio.timeout(self._start_timeout), pool.first:
                    instance = await self._place(pool, revision)
                    while instance is None:
                        await asyncio.sleep(LOOK_EVERY)
                        instance = await self._place(pool, revision)
            except TimeoutError:
                raise instance_full(self._start_timeout) from None
            try:
                await self._arrived(instance)
            except BaseException:
                instance.places -= 1
                raise
            return instance, instance

        return await self._answering(take, is_doubted)

    async def _answering(self, take: Callable[[], Awaitable[tuple[SharedInstance, T]]], is_doubted: bool) -> T:
        """What was taken, once its instance answers. `take` counts the caller among its `places`."""
        for _ in range(DEATHS_IN_A_ROUTE):
            instance, taken = await take()
            try:
                instance.touch()
                await self._bringing.thaw(instance)
                if is_doubted or not instance.is_serving:
                    await self._bringing.serve(instance)
                return taken
            except DovecoteError as error:
                if error.code not in INSTANCE_IS_GONE:
                    raise
                await self._let_go(instance)
            finally:
                instance.touch()
                instance.places -= 1
                instance.sent.note()
        raise instance_dies()

    async def _let_go(self, instance: SharedInstance) -> None:
        """It did not answer: waits a moment for its host to say that it died, or finds out that it is gone."""
        for _ in range(20):
            if instance.is_dead:
                return
            try:
                await instance.host.usage(instance.instance_id)
            except NotFound:
                return self._bury(instance, UNKNOWN)
            await asyncio.sleep(0.05)

    # -- seats

    async def _sit_down(self, function: Function, session: Session) -> Seat:
        task = self._seating.get(session.id)  # one seating for all who wait for it
        if task is None:
            task = self._seating[session.id] = asyncio.ensure_future(self._sit(function, session))
            task.add_done_callback(lambda _: self._seating.pop(session.id, None))
        return await asyncio.shield(task)

    async def _sit(self, function: Function, session: Session) -> Seat:
        async with self._ledger.live.lock(session.id):
            if (seat := self._ledger.seated.get(session.id)) is not None:
                return seat
            session = wakeable(await self._ledger.stored(session.tenant_id, session.id), False)
            revision = await self._revision_for(function, session)
            if session.state in LIVE_SESSION:
                # The record says that it lives, and it does not: its death has not been noted yet.
                session = await self._ledger.swap(session, state=SessionState.LOST, instance_id=None, host_id=None)
            before = session
            session = await self._ledger.swap(
                session,
                state=SessionState.STARTING,
                revision_id=revision.id,
                desired=Desired.LIVE,
                epoch=session.epoch + 1,
                reason="",
            )
            instance: SharedInstance | None = None
            try:
                instance = self._reserve(self._pools.of(function), revision, session.id)
                await self._arrived(instance)
            except BaseException as error:
                await self._unseated(session, before, instance, f"could not be woken: {error}"[:500])
                raise
            return await self._seated(session, instance)

    async def _revision_for(self, function: Function, session: Session) -> Revision:
        """The current one: a session without files has nothing that ties it to an older one."""
        current = await self._functions.revision(function.tenant_id, function.revision_id)
        if current.sharing.has_seats:
            return current
        return await self._functions.revision(session.tenant_id, session.revision_id)

    async def _unseated(self, session: Session, before: Session, instance: SharedInstance | None, reason: str) -> None:
        """It stays what it was, and remembers which hook has failed."""
        past = session.past
        if instance is not None:
            instance.seats.pop(session.id, None)
            past = past.went_through(instance.past)
        await self._ledger.swap(session, state=before.state, reason=reason, past=past)

    def _reserve(self, pool: Pool, revision: Revision, session_id: str) -> SharedInstance:
        """Nothing waits between looking and taking, so that no seat is taken twice."""
        current = pool.current(revision)
        index = fullest([len(each.seats) for each in current], capacity=revision.sharing.sessions)
        if index is None and not pool.has_room(revision):
            self._end_outdated(pool, revision)
            raise no_instances(revision.sharing.instances)
        instance = self._add(pool, revision) if index is None else current[index]
        instance.seats[session_id] = None
        return instance

    async def _seated(self, session: Session, instance: SharedInstance) -> Seat:
        try:
            session = await self._ledger.swap(
                session,
                state=SessionState.READY,
                host_id=self._host_id(instance.host),
                instance_id=instance.instance_id,
                last_active_at=datetime.now(UTC),
                past=session.past.went_through(instance.past),
            )
        except BaseException:
            instance.seats.pop(session.id, None)
            raise
        seat = Seat(session, instance)
        if instance.is_dead:
            # Since it came. Whoever asks finds no instance there, and a new seat.
            self._note_loss(seat, Death(instance.instance_id, instance.owner, "its instance died"))
            return seat
        instance.seats[session.id] = seat
        self._ledger.seated.take(seat)
        return seat

    async def leave(self, session: Session, reason: str) -> Session:
        """Its seat is free and nothing of it is lost: it has no files. Called under its lock; may be repeated."""
        seat = self._ledger.seated.leave(session.id)
        known: dict[str, object] = {}
        if seat is not None:
            unused_for = timedelta(seconds=time.monotonic() - seat.touched)
            known = {"past": seat.past, "last_active_at": datetime.now(UTC) - unused_for}
        try:
            if session.state in (SessionState.READY, SessionState.STARTING):
                # What starts under this lock has come to its end, so this one was cut short by an end of ours.
                away = SessionState.PARKING if session.state is SessionState.READY else SessionState.PARKED
                session = await self._ledger.swap(session, state=away, reason=reason, **known)
            if session.state in (SessionState.PARKING, SessionState.LOST):
                session = await self._ledger.swap(
                    session, state=SessionState.PARKED, instance_id=None, host_id=None, reason=reason
                )
        except BaseException:
            if seat is not None and not seat.instance.is_dead:
                self._ledger.seated.take(seat)
            raise
        if seat is not None:
            _free(seat)
        return session

    def ended(self, session_id: str) -> None:
        """Frees the seat of a session whose end is recorded. Called under its lock; may be repeated."""
        seat = self._ledger.seated.leave(session_id)
        if seat is not None:
            _free(seat)

    # -- places of requests without a session

    async def _place(self, pool: Pool, revision: Revision) -> SharedInstance | None:
        """One that has room, with a place in it taken; None where nothing has. `Pool.first` is held."""
        limit = revision.sharing.requests
        asked = [each for each in pool.current(revision) if each.is_ready]
        inside = await asyncio.gather(*(self._connections(each) for each in asked))
        counted = [
            (each, count + each.places + each.sent.lately())
            for each, count in zip(asked, inside, strict=True)
            if count is not None and each.is_open
        ]
        index = emptiest([count for _, count in counted], limit=limit)
        if index is not None:
            chosen = counted[index][0]
        else:
            coming = [each for each in pool.current(revision) if not each.is_ready]
            index = emptiest([each.places for each in coming], limit=limit)
            if index is None and not pool.has_room(revision):
                self._end_outdated(pool, revision)
                return None
            chosen = self._add(pool, revision) if index is None else coming[index]
        chosen.places += 1
        return chosen

    async def _connections(self, instance: SharedInstance) -> int | None:
        try:
            return await instance.host.connections(instance.instance_id)
        except NotFound:
            self._bury(instance, UNKNOWN)
            return None

    # -- instances

    def _add(self, pool: Pool, revision: Revision) -> SharedInstance:
        host = self._fleet.host(self._fleet.place(prefer=None))
        instance = self._pools.add(pool, revision, host)
        instance.coming = self._background.run(self._come(pool, instance), f"starting {instance.owner}")
        return instance

    async def _come(self, pool: Pool, instance: SharedInstance) -> None:
        try:
            await self._bringing.bring(instance)
        except Exception as error:
            log.warning("an instance of function %s did not start: %s", pool.function.name, error)
            instance.failed = error if isinstance(error, DovecoteError) else Failed(str(error), code="internal")
            self._bury(instance, str(instance.failed))

    async def _arrived(self, instance: SharedInstance) -> None:
        if instance.coming is not None:
            await asyncio.shield(instance.coming)
        if instance.failed is not None:
            raise instance.failed

    def _end_outdated(self, pool: Pool, revision: Revision) -> None:
        """They are in the way of the current revision."""
        for each in pool.empty_outdated(revision.id):
            each.is_leaving = True
            self._background.run(self._end(each), f"ending {each.owner}")

    async def _end(self, instance: SharedInstance) -> None:
        instance.is_leaving = True
        ended = False
        try:
            ended = await self._bringing.end(instance)
        finally:
            instance.is_leaving = ended
        if ended:
            self._bury(instance, "it was idle")

    def died(self, death: Death) -> None:
        """Told by a host. Its sessions are seated anew by their next requests."""
        for instance in self._pools.all():
            if death.owner == instance.owner:
                self._bury(instance, death.reason, is_own_doing=death.is_own_doing)

    def _bury(self, instance: SharedInstance, reason: str, *, is_own_doing: bool = False) -> None:
        instance.is_dead = True
        self._pools.remove(instance)
        for session_id, seat in list(instance.seats.items()):
            if seat is not None and self._ledger.seated.get(session_id) is seat:
                self._ledger.seated.leave(session_id)
                self._note_loss(seat, Death(instance.instance_id, instance.owner, reason, is_own_doing))
        instance.seats.clear()

    def _note_loss(self, seat: Seat, death: Death) -> None:
        self._background.run(self._lost(seat, death), f"noting the loss of {seat.session.id}")

    async def _lost(self, seat: Seat, death: Death) -> None:
        async with self._ledger.live.lock(seat.session.id):
            session = await self._ledger.stored(seat.session.tenant_id, seat.session.id)
            if session.instance_id == seat.instance.instance_id and session.state in LIVE_SESSION:
                past = session.past.went_through(seat.instance.past)
                await self._ledger.lose(session, death, past=past, host_id=None)

    def _host_id(self, host: Host) -> str:
        return next(host_id for host_id, each in self._fleet.hosts().items() if each is host)

    # -- as time goes by

    def seats(self) -> list[Seat]:
        return self._ledger.seated.all()

    def on(self, host: Host) -> list[SharedInstance]:
        return [each for each in self._pools.all() if each.host is host and each.is_ready]

    def due(
        self, there: Sequence[SharedInstance], observed: Mapping[str, Observed], *, quiet_after: float
    ) -> list[tuple[SharedInstance, Move]]:
        """What is to become of those that were there before the host was looked at; who is not there any more died."""
        now = time.monotonic()
        moves: list[tuple[SharedInstance, Move]] = []
        for instance in there:
            seen = observed.get(instance.owner)
            if seen is None:
                self._bury(instance, UNKNOWN)
                continue
            pool = self._pools.around(instance)
            if pool is None or self._lines.waiting(instance.instance_id):
                continue
            quiet_for = min(seen.quiet_for, now - instance.used)
            idle_after = pool.function.affinity.idle_after or TIERS["default"].idle_after
            move = next_turn(
                instance,
                quiet_for=quiet_for,
                is_current=instance.revision.id == pool.function.revision_id,
                quiet_after=quiet_after,
                idle_after=idle_after.total_seconds(),
            )
            if move is not Move.STAY:
                moves.append((instance, move))
        return moves

    async def make(self, instance: SharedInstance, move: Move) -> None:
        if not instance.is_open:
            return
        if move is Move.FREEZE:
            await self._bringing.freeze(instance)
        elif not instance.seats and not instance.places:
            await self._end(instance)

    async def stop(self) -> None:
        """Ends what is being done; instances go on."""
        await self._background.stop()

    # -- after a restart

    def take_over(self, function: Function, revision: Revision, host: Host, seen: Observed, is_frozen: bool) -> None:
        instance = SharedInstance(seen.owner, revision, host, seen.instance_id, seen.address, seen.pid, is_ready=True)
        instance.is_frozen = is_frozen
        self._pools.take(self._pools.of(function), instance)

    def sit_again(self, session: Session) -> bool:
        """Whether the instance that its record names is here; then it has its seat there again."""
        for instance in self._pools.all():
            if instance.instance_id == session.instance_id:
                seat = Seat(session, instance)
                instance.seats[session.id] = seat
                self._ledger.seated.take(seat)
                return True
        return False


def _free(seat: Seat) -> None:
    seat.instance.seats.pop(seat.session.id, None)
    seat.instance.touch()
