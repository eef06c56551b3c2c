"""Random requests, deaths, restarts and clocks against a small model of who may be where."""

from __future__ import annotations

import asyncio
import tempfile
from collections import defaultdict
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dovecote.control.sessions import Routed
from dovecote.control.sessions.keeping import RETRY_LOST_AFTER
from dovecote.errors import Gone, NoCapacity
from dovecote.model.records import Session
from dovecote.model.serving import Affinity, Mode, Sharing
from dovecote.model.states import LIVE_SESSION, SessionState
from tests.unit.control_world import START, world_on
from tests.unit.memory_host import Clock, MemoryHost

IDLE, QUIET = 100, 10  # seconds
SEATED = Sharing(sessions=2, requests=2, instances=3)
FUNCTIONS = {
    "own": (Affinity(idle_after=timedelta(seconds=IDLE)), Sharing(sessions=1, instances=4)),
    "seated": (Affinity(idle_after=timedelta(seconds=IDLE)), SEATED),
    "guarded": (Affinity(refuses_reuse=True, idle_after=timedelta(seconds=IDLE)), Sharing(sessions=3)),
    "none": (Affinity(modes=(Mode.NONE,), idle_after=timedelta(seconds=IDLE)), Sharing(requests=2, instances=2)),
}
WITH_SESSIONS = [name for name in FUNCTIONS if name != "none"]
T = TypeVar("T")
Caller = tuple[int, str, str, str]  # tenant, user, function, key

functions = st.sampled_from(WITH_SESSIONS)
callers = st.tuples(st.integers(0, 1), st.sampled_from(["ann", "bob"]), functions, st.sampled_from(["a", "b", "c"]))


indexes = st.integers(0, 20)  # of what there is then; what is drawn must not depend on it


class AffinityModel(RuleBasedStateMachine):
    """`known` is the session that a caller was last given; `ended` are those that may never be given again."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.patch = pytest.MonkeyPatch()
        self.stack = AsyncExitStack()
        self.known: dict[Caller, str] = {}
        self.callers: dict[str, Caller] = {}
        self.places: dict[str, str] = {}  # session -> instance, as long as nothing took it away
        self.ended: set[str] = set()
        self.flows: list[str] = []

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(work, 20))

    @initialize()
    def begin(self) -> None:
        directory = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        self.host = MemoryHost(Clock())
        self.world = self.run(self.stack.enter_async_context(world_on(self.host, directory, self.patch)))
        self.world.start_timeout = 0.2
        self.world.join()
        self.tenants = [self.world.tenant, self.world.other]
        for tenant in self.tenants:
            for name, (affinity, sharing) in FUNCTIONS.items():
                self.run(self.world.functions.create(tenant, name, start=START, affinity=affinity, sharing=sharing))

    def teardown(self) -> None:
        self.run(self.stack.aclose())
        self.patch.undo()
        self.loop.close()

    async def ask(self, caller: Caller) -> Routed:
        tenant, user, name, key = caller
        return await self.world.call(name, user=user, key=key, tenant=self.tenants[tenant])

    def took(self, caller: Caller, routed: Routed) -> None:
        """What every answer must keep to."""
        session = routed.session
        assert session is not None
        assert session.id not in self.ended
        assert session.tenant_id == self.tenants[caller[0]]
        assert self.callers.setdefault(session.id, caller) == caller  # no id crosses users, tenants or functions
        before = self.known.get(caller)
        assert before in (None, session.id) or before in self.ended
        self.known[caller] = session.id
        [instance] = [i for i in self.host.instances.values() if i.address == routed.address.partition(":")[0]]
        assert self.places.get(session.id, instance.id) == instance.id  # it stays where it is
        self.places[session.id] = instance.id

    # -- what callers do

    @rule(caller=callers)
    def request(self, caller: Caller) -> None:
        try:
            routed = self.run(self.ask(caller))
        except Gone:
            assert caller[2] == "guarded"
            assert self.known[caller] in self.ended
        except NoCapacity:
            assert self.is_full(caller)
        else:
            assert caller[2] != "guarded" or self.known.get(caller) not in self.ended
            self.took(caller, routed)

    @rule(several=st.lists(callers, min_size=2, max_size=8))
    def requests_at_once(self, several: list[Caller]) -> None:
        async def all_of_them() -> list[Routed | BaseException]:
            return await asyncio.gather(*map(self.ask, several), return_exceptions=True)

        for caller, routed in zip(several, self.run(all_of_them()), strict=True):
            if isinstance(routed, Routed):
                self.took(caller, routed)
            else:
                assert isinstance(routed, (Gone, NoCapacity)), routed

    @rule(tenant=st.integers(0, 1))
    def request_of_nobody(self, tenant: int) -> None:
        try:
            routed = self.run(self.world.call("none", user="ann", key=None, tenant=self.tenants[tenant]))
        except NoCapacity:
            assert sum(self.of("none", tenant).values()) >= 4
        else:
            assert routed.session is None
            if self.host.connect(routed.address):
                self.flows.append(routed.address)

    @rule()
    def answers_come(self) -> None:
        for address in self.flows:
            self.host.disconnect(address)
        self.flows.clear()

    # -- what is done to sessions

    def some(self, at: int) -> Session | None:
        alive = [each for _, each in sorted(self.known.items()) if each not in self.ended]
        if not alive:
            return None
        session_id = alive[at % len(alive)]
        return self.run(self.world.store.everyone().sessions.find(id=session_id))

    @rule(at=indexes)
    def delete(self, at: int) -> None:
        if (session := self.some(at)) is not None:
            self.run(self.world.sessions.delete(session.tenant_id, session.id))
            self.gone(session.id)

    @rule(at=indexes)
    def pause(self, at: int) -> None:
        if (session := self.some(at)) is not None and not session.is_paused:
            self.run(self.world.sessions.pause(session.tenant_id, session.id))
            self.forget_moved()

    @rule(at=indexes, tier=st.sampled_from(["default", "vip"]))
    def change_tier(self, at: int, tier: str) -> None:
        if (session := self.some(at)) is not None:
            self.run(self.world.sessions.update(session.tenant_id, session.id, tier=tier))

    @rule(at=indexes)
    def its_time_is_over(self, at: int) -> None:
        if (session := self.some(at)) is not None:
            ttl = timedelta(microseconds=1)
            self.run(self.world.sessions.update(session.tenant_id, session.id, ttl=ttl))
            self.host.clock.advance(RETRY_LOST_AFTER)  # those that rest are looked at so often
            self.run(self.world.tick())
            self.forget_moved()
            self.gone(session.id)

    @rule(seconds=st.sampled_from([QUIET + 1, IDLE + 1]))
    def time_passes(self, seconds: int) -> None:
        self.host.clock.advance(seconds)
        self.run(self.world.tick())
        self.forget_moved()

    # -- what breaks

    @rule(at=indexes, is_told=st.booleans())
    def instance_dies(self, at: int, is_told: bool) -> None:
        owners = [instance.claim.owner for instance in self.host.instances.values()]
        if owners:
            self.run(self.host.die(owners[at % len(owners)], is_told=is_told))
            self.run(self.world.tick())
            self.forget_moved()

    @rule()
    def control_restarts(self) -> None:
        self.run(self.world.restart())
        self.forget_moved()

    @rule(name=functions, tenant=st.integers(0, 1))
    def revise(self, name: str, tenant: int) -> None:
        async def work() -> None:
            function = await self.world.functions.get(self.tenants[tenant], name)
            revision = await self.world.functions.revision(function.tenant_id, function.revision_id)
            await self.world.functions.revise(function.tenant_id, function.id, like=replace(revision, env={"V": "2"}))

        self.run(work())

    # -- what must always hold

    @invariant()
    def seats_and_instances_are_within_bounds_and_agree_with_the_records(self) -> None:
        if not hasattr(self, "world"):
            return
        live = self.live()
        holders: dict[str, set[str]] = defaultdict(set)
        for session in live:
            assert session.instance_id in self.host.instances
            holders[str(session.instance_id)].add(session.id)
        instances: dict[str, int] = defaultdict(int)
        for instance in self.host.instances.values():
            owner = instance.claim.owner
            if owner.startswith("ses_"):
                assert holders[instance.id] == {owner}
                continue
            function_id, revision_id, _ = owner.split(":")
            instances[function_id] += 1
            revision = self.run(self.revision(revision_id))
            assert len(holders[instance.id]) <= revision.sharing.sessions
            [there] = [i for i in self.world.sessions.placing.on(self.host) if i.instance_id == instance.id]
            assert set(there.seats) == holders[instance.id]
            assert there.places == 0
            assert self.host.flows[instance.id] <= (revision.sharing.requests or 1000)
            bound = revision.sharing.instances
            assert not bound or instances[function_id] <= bound

    async def revision(self, revision_id: str) -> Any:
        found = await self.world.store.everyone().revisions.find(id=revision_id)
        assert found is not None
        return found

    def live(self) -> list[Session]:
        async def read() -> list[Session]:
            # What a death has begun to note comes first.
            for _ in range(200):
                found = [s async for s in self.world.store.everyone().sessions.each(state=list(LIVE_SESSION))]
                if all(session.instance_id in self.host.instances for session in found):
                    return found
                await asyncio.sleep(0.002)
            return found

        return self.run(read())

    def of(self, name: str, tenant: int) -> dict[str, int]:
        """Instances of a function, with what is open to each."""
        function = self.run(self.world.functions.get(self.tenants[tenant], name))
        found = [i for i in self.host.instances.values() if i.claim.owner.startswith(function.id)]
        return {instance.id: self.host.flows[instance.id] for instance in found}

    def is_full(self, caller: Caller) -> bool:
        tenant, _, name, _ = caller
        if name == "own":
            function = self.run(self.world.functions.get(self.tenants[tenant], name))
            return sum(1 for s in self.live() if s.function_id == function.id) >= 4
        return name == "seated" and len(self.of(name, tenant)) >= SEATED.instances

    def gone(self, session_id: str) -> None:
        self.ended.add(session_id)
        self.places.pop(session_id, None)
        record = self.run(self.world.store.everyone().sessions.find(id=session_id))
        assert record is not None
        assert record.state is SessionState.ENDED

    def forget_moved(self) -> None:
        """Those whose record says that they have no instance may wake in another."""
        seated = {session.id: session.instance_id for session in self.live()}
        self.places = {each: place for each, place in self.places.items() if seated.get(each) == place}


AffinityModel.TestCase.settings = settings(
    max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
TestAffinity = AffinityModel.TestCase
