"""The room of asynchronous calls over a store, with a server that answers as it is told and a given clock."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta

from dovecote.control.functions import Functions
from dovecote.control.invocations import Dispatching, Invocations
from dovecote.control.invocations.deciding import Broken, Reply
from dovecote.model.invocations import Invocation
from dovecote.model.records import Function, Session
from dovecote.model.serving import Destination, Invoking, To
from dovecote.store import Store
from tests.contract.stores import NOW
from tests.unit.control_world import BASE, START, until

WEBHOOK = Destination(To.WEBHOOK, "https://example.com/done")


@dataclass
class Callee:
    """A function's server, which answers as it is told, and a destination."""

    answers: list[Reply | Broken] = field(default_factory=list)
    calls: list[Invocation] = field(default_factory=list)
    told: list[Invocation] = field(default_factory=list)
    refusals: list[Exception] = field(default_factory=list)
    gate: asyncio.Event | None = None
    at_once: int = 0
    most_at_once: int = 0

    async def call(
        self, function: Function, made: Invocation, placed: Callable[[str], Awaitable[None]]
    ) -> Reply | Broken:
        self.calls.append(made)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await placed("ses_1")
            if self.gate is not None:
                await self.gate.wait()
        finally:
            self.at_once -= 1
        return self.answers.pop(0) if self.answers else Reply(200, body=base64.b64encode(b"done").decode())

    async def deliver(self, done: Invocation) -> None:
        if self.refusals:
            raise self.refusals.pop(0)
        self.told.append(done)


class One:
    """The only session that there is: the user's, of that key and with that cookie."""

    async def holds(self, function: Function, user: str, key: str, cookie: str | None = None) -> bool:
        return (user, key) == ("ann", "there") and cookie in (None, "there.proof")

    async def session(self, function: Function, user: str, key: str) -> Session:
        raise AssertionError("nobody asks for it here")


class Calls:
    """The room over a store; `now` goes on only when told to."""

    def __init__(self, store: Store, tenant: str, other: str) -> None:
        self.store, self.tenant, self.other = store, tenant, other
        self.now = NOW
        self.callee = Callee()
        self.functions = Functions(store, templates={"base": BASE}, level="crun", levels=frozenset({"crun"}))
        self.invocations = Invocations(store, self.functions, begun=One(), now=lambda: self.now)
        self.dispatching = self.dispatcher()

    def dispatcher(self, at_once: int = 10) -> Dispatching:
        return Dispatching(
            self.store,
            self.functions,
            call=self.callee.call,
            deliver=self.callee.deliver,
            at_once=at_once,
            kept_for=timedelta(days=7),
            now=lambda: self.now,
            chance=lambda: 1.0,
        )

    async def function(self, name: str = "work", *, tenant: str = "", **invoking: object) -> Function:
        return await self.functions.create(
            tenant or self.tenant,
            name,
            start=START,
            invoking=Invoking(**invoking),  # type: ignore[arg-type]
        )

    async def pass_time(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        await self.settle()

    async def settle(self) -> None:
        """What is due is started, and what was started has ended, unless it is held."""
        await self.dispatching.tick()
        lanes = (self.dispatching.calls, self.dispatching.deliveries)
        if self.callee.gate is None:
            await until(lambda: not any(lane.running for lane in lanes) and not self.is_looking)

    @property
    def is_looking(self) -> bool:
        asked = self.dispatching._asked
        return asked is not None and not asked.done()

    async def get(self, made: Invocation) -> Invocation:
        return await self.invocations.get(made.tenant_id, made.id)
