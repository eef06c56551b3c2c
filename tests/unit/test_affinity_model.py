"""Random requests in all modes, kills of everything, and a given clock, against a model of who may be where.

A longer run: `DOVECOTE_MODEL_EXAMPLES=1000 pytest --timeout 0 tests/unit/test_affinity_model.py`, as in `make stress`.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dovecote.model.serving import Mode
from tests.unit.affinity_acts import Acts
from tests.unit.affinity_callers import Client, callers
from tests.unit.affinity_truth import FUNCTIONS, SERVER, Truth
from tests.unit.affinity_world import WORKERS, affinity_world

T = TypeVar("T")

EXAMPLES = int(os.environ.get("DOVECOTE_MODEL_EXAMPLES", "25"))

clients = st.integers(0, len(callers()) - 1)
workers = st.integers(0, WORKERS - 1)
calls = st.tuples(clients, workers, st.booleans())
indexes = st.integers(0, 30)  # of what there is then; what is drawn must not depend on it
shared = st.sampled_from(["own", "seated", "tools", "none"])


class AffinityModel(Acts, RuleBasedStateMachine):
    """Callers with what they were given, through workers of the gateway with what they have learned."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.patch = pytest.MonkeyPatch()
        self.stack = AsyncExitStack()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(work, 30))

    @initialize()
    def begin(self) -> None:
        self.run(self._begin())

    async def _begin(self) -> None:
        directory = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        self.there = await self.stack.enter_async_context(affinity_world(directory, self.patch))
        world = self.there.world
        self.truth = Truth(self.there, [world.tenant, world.other])
        self.credentials = []
        for number, tenant in enumerate(self.truth.tenants):
            self.credentials.append((await world.tenancy.create_key(tenant, "model")).secret)
            for name, (affinity, sharing, hooks) in FUNCTIONS.items():
                self.truth.functions[number, name] = await world.functions.create(
                    tenant, name, start=SERVER, affinity=affinity, sharing=sharing, hooks=hooks
                )

    def teardown(self) -> None:
        if hasattr(self, "there"):
            self.run(self._release())
            self.run(self.there.kill())
        self.run(self.stack.aclose())
        self.patch.undo()
        self.loop.close()

    # -- what callers do

    @rule(call=calls)
    def request(self, call: tuple[int, int, bool]) -> None:
        at, worker, is_post = call
        self.run(self._ask(self.clients[at], worker, is_post))

    @rule(several=st.lists(calls, min_size=2, max_size=8, unique_by=lambda call: call[0]))
    def requests_at_once(self, several: list[tuple[int, int, bool]]) -> None:
        async def work() -> None:
            await asyncio.gather(*[self._ask(self.clients[at], worker, is_post) for at, worker, is_post in several])

        self.run(work())

    @rule(at=clients, first=workers, times=st.integers(2, 6))
    def the_same_at_once(self, at: int, first: int, times: int) -> None:
        """By all workers: of one session, however cold it is."""
        client = self.clients[at]
        if client.chosen:

            async def work() -> None:
                await asyncio.gather(*[self._ask(client, first + n, n % 2 == 0) for n in range(times)])

            self.run(work())

    @rule(victim=clients, thief=clients, worker=workers)
    def steal(self, victim: int, thief: int, worker: int) -> None:
        """Somebody shows what another one was given, with a credential of his own."""
        robbed, robber = self.clients[victim], self.clients[thief]
        is_own = (robbed.tenant, robbed.user, robbed.function) == (robber.tenant, robber.user, robber.function)
        if robbed.mode is not robber.mode or is_own or not robbed.key or robbed.function != robber.function:
            return
        false = robbed.stolen_by(robber)

        async def work() -> None:
            before = await self.truth.session(false)
            theirs = await self.truth.session(robbed)
            response = await self.there.gateway.send(self._request(false, is_post=False), worker=worker)
            await self._judge(false, before, response, was_full=await self.truth.is_full(false))
            mine = await self.truth.session(false)
            assert mine is None or theirs is None or mine.id != theirs.id

        self.run(work())

    @rule(worker=workers, tenant=st.integers(0, 1), is_held=st.booleans())
    def request_of_nobody(self, worker: int, tenant: int, is_held: bool) -> None:
        client = Client(tenant, "ann", "none", Mode.NONE)
        self.run(self._nobody(client, worker, asyncio.Event() if is_held else None))

    @rule(at=clients, worker=workers)
    def a_request_that_lasts(self, at: int, worker: int) -> None:
        client = self.clients[at]
        if client.mode not in (Mode.HEADER, Mode.COOKIE) or not client.key or len(self.held) > 3:
            return

        async def work() -> None:
            before, was_full = await self.truth.session(client), await self.truth.is_full(client)
            response = await self._sent(client, worker, asyncio.Event())
            if response is not None:
                await self._judge(client, before, response, was_full=was_full)

        self.run(work())

    @rule()
    def answers_come(self) -> None:
        self.run(self._release())

    @rule(at=clients)
    def a_stream_ends(self, at: int) -> None:
        client = self.clients[at]
        if client.stream is not None:
            self.run(self._close(client))

    @rule(at=clients, worker=workers)
    def an_mcp_client_is_done(self, at: int, worker: int) -> None:
        client = self.clients[at]
        if client.mode is not Mode.MCP_HTTP or not client.given:
            return

        async def work() -> None:
            before = await self.truth.session(client)
            request = replace(self._request(client, is_post=False), method="DELETE")
            response = await self.there.gateway.send(request, worker=worker)
            if response.instance is None:
                await self._judge(client, before, response)
            elif before is not None:
                await self.truth.has_ended(before.id)
            client.forget()

        self.run(work())

    # -- what is done to sessions

    @rule(at=indexes, act=st.sampled_from(["delete", "pause", "resume", "park", "vip", "default", "short", "idle"]))
    def change(self, at: int, act: str) -> None:
        async def work() -> None:
            session = await self._some(at)
            if session is not None:
                await self._change(session, act)

        self.run(work())

    @rule(seconds=st.sampled_from([1, 5, 11, 31, 101, 401]))
    def time_passes(self, seconds: int) -> None:
        self.there.clock.advance(seconds)
        self.run(self.there.world.tick())

    # -- limits

    @rule(name=shared, tenant=st.integers(0, 1), instances=st.integers(1, 4))
    def limit(self, name: str, tenant: int, instances: int) -> None:
        async def work() -> None:
            functions = self.there.world.functions
            function = await functions.get(self.truth.tenants[tenant], name)
            now = await functions.revision(function.tenant_id, function.revision_id)
            like = replace(now, sharing=replace(now.sharing, instances=instances))
            await functions.revise(function.tenant_id, function.id, like=like)

        self.run(work())

    # -- what breaks

    @rule(at=indexes, is_told=st.booleans())
    def an_instance_dies(self, at: int, is_told: bool) -> None:
        async def work() -> None:
            await self._die(at, is_told=is_told)
            await self.there.world.tick()

        self.run(work())

    @rule()
    def envoy_dies(self) -> None:
        async def work() -> None:
            self.there.gateway.die()
            await self._release()
            for client in self.clients:
                if client.stream is not None:
                    client.stream.close()
                    client.stream = None  # nobody tells of its end; the client comes back to its session

        self.run(work())

    @rule(
        several=st.lists(calls, min_size=1, max_size=6, unique_by=lambda call: call[0]),
        at=indexes,
        act=st.sampled_from(["nothing", "tick", "delete", "pause", "park"]),
        after=st.integers(1, 80),
        away=st.lists(calls, max_size=4),
        deaths=st.lists(indexes, max_size=2),
        is_machine=st.booleans(),
    )
    def control_is_killed(self, **drawn: Any) -> None:
        """In the middle of something; meanwhile warm requests go on, instances die, or all of the machine does."""
        self.run(self._killed(**drawn))

    # -- what must always hold

    @invariant()
    @precondition(lambda self: hasattr(self, "there"))
    def all_is_well(self) -> None:
        streams = sum(1 for client in self.clients if client.stream is not None)
        self.run(self.truth.look(len(self.held) + streams))


AffinityModel.TestCase.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestAffinity = AffinityModel.TestCase
