"""Lets an instance begin where there is memory for it, and keeps the memory that tiers promise."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Protocol

from dovecote.background import Background
from dovecote.control.fleet import Host
from dovecote.control.sessions.activity import quiet_of
from dovecote.control.sessions.idle import awake_by
from dovecote.control.sessions.ledger import Ledger
from dovecote.control.sessions.live import Live
from dovecote.control.sessions.memory import STARTING, Held, make_room, outstanding, promised_bytes, relieve
from dovecote.control.sessions.metrics import BREACHES, PARKED, PROMISED, REFUSED
from dovecote.errors import DovecoteError, NoCapacity
from dovecote.model.records import Session
from dovecote.model.sizes import MIB, SPECS, TIERS
from dovecote.model.states import SessionState

log = logging.getLogger(__name__)

MEASURE_EVERY = 10.0  # seconds
ROOM_WITHIN = 30.0  # seconds that a waking waits for others to be parked
RETRY_AFTER = 5.0
NEEDED = "its memory was needed, and its tier promises none"
RAN_OUT = "memory ran out, it was parked before its promised time"


class Park(Protocol):
    """Parks a session unless it was used since."""

    async def __call__(
        self, tenant_id: str, session_id: str, *, reason: str | None = ..., unless_used_since: float | None = ...
    ) -> Session: ...


@dataclass(frozen=True, eq=False)
class _Coming:
    """What was let in and is not there yet."""

    host: Host
    owner: str
    needed: int  # bytes


class Admitting:
    def __init__(self, ledger: Ledger, *, overcommit: float) -> None:
        self._ledger = ledger
        self._overcommit = overcommit
        self._coming: set[_Coming] = set()
        self._making = asyncio.Lock()
        self._background = Background()
        self._measured_at = 0.0

    def join(self, park: Park) -> None:
        """Says how sessions are parked, before the first one begins: what parks them begins instances too."""
        self._park = park

    @asynccontextmanager
    async def admitted(self, host: Host, owner: str, *, promised_limit: int | None = None) -> AsyncIterator[None]:
        """Around the beginning of an instance. `promised_limit` is its memory's limit where a tier promises that.

        Sessions of tiers without a promise make room, those unused for the longest time first. Raises NoCapacity
        (no_memory) where that does not help.
        """
        needed = STARTING if promised_limit is None else promised_bytes(promised_limit, self._overcommit)
        async with self._room_for(host, owner, needed):
            yield

    @asynccontextmanager
    async def promised(self, live: Live) -> AsyncIterator[None]:
        """Around the change by which its tier begins to promise what it has. Raises NoCapacity (no_memory)."""
        held = replace(self._of(live), is_promised=True)
        async with self._room_for(live.host, live.session.id, outstanding(held, self._overcommit)):
            yield

    @asynccontextmanager
    async def _room_for(self, host: Host, owner: str, needed: int) -> AsyncIterator[None]:
        if not self._fits(host, owner, needed):
            async with self._making:
                await self._make_room(host, owner, needed)
        coming = _Coming(host, owner, needed)
        self._coming.add(coming)
        try:
            yield
        finally:
            self._coming.discard(coming)

    def _fits(self, host: Host, owner: str, needed: int) -> bool:
        held = self._others(host, owner)
        room = make_room(self._wanted(host, needed), host.memory().free_bytes, held, overcommit=self._overcommit)
        return room.is_enough and not room.park

    def _others(self, host: Host, owner: str) -> list[Held]:
        """Nobody makes room for himself, and what a session is about to be promised is among what comes."""
        coming = {owner, *(each.owner for each in self._coming)}
        return [each for each in self.held(host) if each.session_id not in coming]

    def _wanted(self, host: Host, needed: int) -> int:
        return needed + sum(each.needed for each in self._coming if each.host is host)

    async def _make_room(self, host: Host, owner: str, needed: int) -> None:
        await self._measure()  # what was seen seconds ago decides nothing here
        free, held = host.memory().free_bytes, self._others(host, owner)
        room = make_room(self._wanted(host, needed), free, held, overcommit=self._overcommit)
        if room.is_enough:
            await self._put_to_rest(room.park)
        if not self._fits(host, owner, needed):
            REFUSED.inc()
            raise NoCapacity(
                f"this host has {max(0, free) // MIB} MiB of memory beside its reserve, and promises of tiers to keep",
                code="no_memory",
                hint="end or park sessions, change their tier, or add memory",
                retry_after=RETRY_AFTER,
            )

    def held(self, host: Host) -> list[Held]:
        return [self._of(live) for live in self._ledger.live.all() if live.host is host]

    def _of(self, live: Live) -> Held:
        session = live.session
        unused_for, may_rest = 0.0, False
        if live.seen is not None and live.seen.instance_id == live.instance_id:
            quiet = quiet_of(live, live.seen, datetime.now(UTC))
            unused_for = quiet.unused_for
            rests = session.state is SessionState.FROZEN and not session.is_paused
            may_rest = (rests or live.is_ready) and not awake_by(session.state, quiet) and unused_for > 0
        return Held(
            session.id,
            SPECS[live.revision.spec].limits.memory_bytes,
            live.memory_bytes,
            TIERS[session.tier].is_promised,
            unused_for,
            may_rest,
        )

    async def tick(self, host: Host) -> None:
        """Measures now and then, and makes room before a machine runs out of memory."""
        now = time.monotonic()
        if now - self._measured_at >= MEASURE_EVERY:
            self._measured_at = now
            await self._measure()
        memory, held = host.memory(), self.held(host)
        PROMISED.set(sum(outstanding(each, self._overcommit) for each in held))
        chosen = relieve(memory.free_bytes, -memory.reserve_bytes // 2, held, overcommit=self._overcommit)
        if chosen and not self._making.locked():
            async with self._making:
                await self._put_to_rest(chosen)

    async def _measure(self) -> None:
        for live in self._ledger.live.all():
            try:
                used = await live.host.usage(live.instance_id)
            except DovecoteError:
                continue  # it died a moment ago
            live.memory_bytes = int(used.get("memory_bytes", 0) - used.get("cache_bytes", 0))

    async def _put_to_rest(self, chosen: Sequence[Held]) -> None:
        """All of them, bounded: what takes longer goes on by itself."""
        if chosen:
            tasks = [self._background.run(self._rest(each), f"parking {each.session_id}") for each in chosen]
            await asyncio.wait(tasks, timeout=ROOM_WITHIN)

    async def _rest(self, held: Held) -> None:
        live = self._ledger.live.get(held.session_id)
        if live is None:
            return
        session = live.session
        reason = RAN_OUT if held.is_promised else NEEDED
        try:
            parked = await self._park(session.tenant_id, session.id, reason=reason, unless_used_since=live.touched)
        except DovecoteError as error:
            log.warning("session %s could not make room: %s", session.id, error)
            return
        if parked.state is not SessionState.PARKED or parked.reason != reason:
            return  # somebody came back to it
        if not held.is_promised:
            PARKED.inc()
            return
        log.error("session %s of tier %s was parked before its promised time", session.id, session.tier)
        BREACHES.labels("parked").inc()
        async with self._ledger.live.lock(session.id):
            parked = await self._ledger.stored(session.tenant_id, session.id)
            past = parked.past.breached(datetime.now(UTC), reason)
            await self._ledger.change(parked, past=past)
