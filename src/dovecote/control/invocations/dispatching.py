"""Takes asynchronous calls whose time has come, makes them, and tells their destinations; fair between tenants."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from dovecote.background import Background
from dovecote.control.functions import Functions
from dovecote.control.invocations import deciding
from dovecote.control.invocations.deciding import LEASE, Broken, Reply
from dovecote.errors import Conflict, DovecoteError, Failed, NotFound
from dovecote.model.invocations import Invocation, InvocationState
from dovecote.model.records import Function
from dovecote.store import Store

log = logging.getLogger(__name__)

RENEW_EVERY = LEASE.total_seconds() / 3
FORGET_EVERY = 60.0  # seconds
FORGOTTEN_AT_ONCE, MOST_FORGOTTEN = 200, 10_000  # records: in one statement, in one look
LOOKS_IN_A_ROW = 100
TRIES = 8
WRITE_AGAIN = 1.0  # seconds; all tries end well before the lease does

Call = Callable[[Function, Invocation, Callable[[str], Awaitable[None]]], Awaitable[Reply | Broken]]
Deliver = Callable[[Invocation], Awaitable[None]]


@dataclass
class Lane:
    """Work of one kind that is under way: so much at once, of one tenant at most half of it."""

    at_once: int
    is_final: bool
    running: dict[str, tuple[Invocation, asyncio.Task[None]]] = field(default_factory=dict)

    @property
    def room(self) -> int:
        return max(0, self.at_once - len(self.running))

    def full_tenants(self) -> set[str]:
        most = max(1, self.at_once // 2)
        return {tenant for tenant, count in self._count("tenant_id").items() if count >= most}

    def of(self, function_id: str) -> int:
        return self._count("function_id")[function_id]

    def _count(self, name: str) -> Counter[str]:
        return Counter(getattr(invocation, name) for invocation, _ in self.running.values())


class Dispatching:
    """`call` makes one attempt and raises nothing that a function does; `deliver` tells a destination, or raises."""

    def __init__(
        self,
        store: Store,
        functions: Functions,
        *,
        call: Call,
        deliver: Deliver,
        at_once: int,
        kept_for: timedelta,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._store = store
        self._functions = functions
        self._call = call
        self._deliver = deliver
        self._kept_for = kept_for
        self._now = now
        self._chance = chance
        self.calls = Lane(at_once, is_final=False)
        self.deliveries = Lane(at_once, is_final=True)
        self._background = Background()
        self._looking = asyncio.Lock()
        self._asked: asyncio.Task[None] | None = None
        self._is_asked = False
        self._is_stopped = False

    def queued(self) -> None:
        """Something may be due sooner than the next tick. Many who ask at once have one look."""
        self._is_asked = True
        if not self._is_stopped and (self._asked is None or self._asked.done()):
            self._asked = self._background.run(self._look(), "a look at asynchronous calls")

    async def _look(self) -> None:
        while self._is_asked:
            self._is_asked = False
            await self.tick()

    def cut_off(self, invocation_id: str) -> None:
        """An attempt under way ends now; whoever asks has written why."""
        if found := self.calls.running.get(invocation_id):
            found[1].cancel()

    async def stop(self) -> None:
        """What is under way is cut off: the leases run out, and it is found then."""
        self._is_stopped = True
        await self._background.stop()

    async def tick(self) -> None:
        """Starts what is due, as far as there is room."""
        async with self._looking:
            for lane in (self.calls, self.deliveries):
                await self._fill(lane)

    async def forget(self) -> None:
        """Deletes what ended long ago, a bounded part at a time."""
        before = self._now() - self._kept_for
        for _ in range(MOST_FORGOTTEN // FORGOTTEN_AT_ONCE):
            if await self._store.forget_invocations(before, limit=FORGOTTEN_AT_ONCE) < FORGOTTEN_AT_ONCE:
                return

    async def _fill(self, lane: Lane) -> None:
        full_functions: set[str] = set()
        for _ in range(LOOKS_IN_A_ROW):
            if not lane.room:
                return
            due = await self._store.invocations_due(
                self._now(),
                is_final=lane.is_final,
                limit=lane.room,
                but_tenants=lane.full_tenants(),
                but_functions=full_functions,
            )
            if not due:
                return
            for invocation in due:
                if not await self._take(lane, invocation):
                    full_functions.add(invocation.function_id)

    async def _take(self, lane: Lane, invocation: Invocation) -> bool:
        """Answers False where the function has as many calls under way as it may."""
        if not lane.room or invocation.tenant_id in lane.full_tenants():
            return True
        if lane.is_final and deciding.is_told_enough(invocation):
            lost = Failed("the server went away each time while it told", code="delivery_lost")
            await self._swap(deciding.not_delivered(invocation, lost, self._now(), 0))
            return True
        if lane.is_final:
            await self._start(lane, deciding.delivery_claimed(invocation, self._now()), self._tell)
            return True
        instead = deciding.ready(invocation, self._now(), self._chance())
        if instead is not None:
            await self._swap(instead)
            return True
        try:
            function = await self._functions.by_id(invocation.tenant_id, invocation.function_id)
        except NotFound as error:
            made = deciding.claimed(invocation, self._now())
            await self._swap(deciding.after(made, Broken(error, was_sent=False), self._now(), 0))
            return True
        if 0 < function.invoking.at_once <= lane.of(function.id):
            return False

        async def attempt(claimed: Invocation) -> None:
            await self._attempt(function, claimed)

        await self._start(lane, deciding.claimed(invocation, self._now()), attempt)
        return True

    async def _start(self, lane: Lane, claimed: Invocation, work: Callable[[Invocation], Awaitable[None]]) -> None:
        """Claims it, and begins where nobody else has."""
        kept = await self._swap(claimed)
        if kept is None:
            return

        async def run() -> None:
            try:
                await work(kept)
            finally:
                lane.running.pop(kept.id, None)
                self.queued()

        lane.running[kept.id] = kept, self._background.run(run(), f"invocation {kept.id}")

    async def _attempt(self, function: Function, claimed: Invocation) -> None:
        async def placed(session_id: str) -> None:
            await self._change(claimed, lambda it: deciding.placed(it, session_id))

        renewing = asyncio.ensure_future(self._renew(claimed))
        try:
            outcome = await self._call(function, claimed, placed)
        except DovecoteError as error:
            outcome = Broken(error, was_sent=True)
        except Exception:
            log.exception("attempt %s of invocation %s failed", claimed.attempts, claimed.id)
            outcome = Broken(Failed("something went wrong on our side", code="internal"), was_sent=True)
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)
        await self._settle(claimed, outcome)

    async def _settle(self, claimed: Invocation, outcome: Reply | Broken) -> None:
        """Writes what came of it; a store that fails for a moment loses no outcome."""
        chance = self._chance()
        for n in range(TRIES):
            try:
                await self._change(claimed, lambda it: deciding.after(it, outcome, self._now(), chance))
                return
            except Failed as error:
                if n == TRIES - 1:
                    raise
                log.warning("what came of invocation %s could not be written: %s", claimed.id, error)
                await asyncio.sleep(WRITE_AGAIN)

    async def _renew(self, claimed: Invocation) -> None:
        """While the attempt goes on nobody else makes it. Ends it where it was cancelled elsewhere."""
        while True:
            await asyncio.sleep(RENEW_EVERY)
            try:
                if not await self._change(claimed, lambda it: deciding.renewed(it, self._now())):
                    self.cut_off(claimed.id)
                    return
            except DovecoteError as error:
                log.warning("the lease of invocation %s could not be renewed: %s", claimed.id, error)

    async def _tell(self, claimed: Invocation) -> None:
        try:
            await self._deliver(claimed)
        except DovecoteError as error:
            told = deciding.not_delivered(claimed, error, self._now(), self._chance())
        except Exception:
            log.exception("the destination of invocation %s could not be told", claimed.id)
            ours = Failed("something went wrong on our side", code="internal")
            told = deciding.not_delivered(claimed, ours, self._now(), self._chance())
        else:
            told = deciding.delivered(claimed)
        await self._swap(told)

    async def _change(self, claimed: Invocation, change: Callable[[Invocation], Invocation]) -> bool:
        """Answers False, and changes nothing, where the attempt is not ours any more."""
        kept = self._store.tenant(claimed.tenant_id).invocations
        for _ in range(TRIES):
            found = await kept.find(id=claimed.id)
            is_ours = found is not None and found.state is InvocationState.RUNNING
            if found is None or not is_ours or found.attempts != claimed.attempts:
                return False
            if await self._swap(change(found)) is not None:
                return True
        return False

    async def _swap(self, invocation: Invocation) -> Invocation | None:
        """None where somebody else was first."""
        with contextlib.suppress(Conflict, NotFound):
            return await self._store.tenant(invocation.tenant_id).invocations.swap(invocation)
        return None
