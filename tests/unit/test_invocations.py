"""Asynchronous calls: what becomes of one, who makes it, and that nobody else sees it. With a given clock."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import pytest

from dovecote.control.functions import Functions
from dovecote.control.invocations import Dispatching, Invocations, Wanted, deciding
from dovecote.control.invocations.deciding import LEASE, LONGEST_WAIT, Broken, Reply
from dovecote.control.invocations.delivering import render
from dovecote.errors import Conflict, DeadlineExceeded, Failed, Forbidden, Invalid, NoCapacity, NotFound
from dovecote.model.invocations import MOST_BODY, Delivery, Invocation, InvocationState, parse_headers
from dovecote.model.records import Function, Session
from dovecote.model.serving import Affinity, Destination, Invoking, Mode, To
from dovecote.store import Store
from tests.contract.stores import NOW, invocation
from tests.unit.control_world import BASE, START, until, world_on
from tests.unit.memory_host import Clock, MemoryHost

pytestmark = pytest.mark.anyio

WEBHOOK = Destination(To.WEBHOOK, "https://example.com/done")
DIED = Failed("the instance gave no whole answer", code="instance_died")
EVERY = (Mode.HEADER, Mode.COOKIE, Mode.MCP_HTTP, Mode.MCP_SSE)
State = InvocationState


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


@pytest.fixture
async def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Calls]:
    async with world_on(MemoryHost(Clock()), tmp_path, monkeypatch) as world:
        calls = Calls(world.store, world.tenant, world.other)
        yield calls
        await calls.dispatching.stop()


async def test_a_call_is_made_and_what_the_function_answered_is_kept(calls: Calls) -> None:
    function = await calls.function()
    headers = (("Content-Type", "text/plain"), ("Authorization", "Bearer x"), ("x-dovecote-key", "k"))
    wanted = Wanted(method="post", path="/work?a=b", headers=headers, body=b"\0hi", user="anna", key="chat7")
    made = await calls.invocations.create(function, wanted)
    assert (made.state, made.key, made.headers) == (State.QUEUED, "chat7", {"content-type": "text/plain"})
    await calls.settle()
    done = await calls.get(made)
    assert (done.state, done.status, done.attempts, done.session_id) == (State.SUCCEEDED, 200, 1, "ses_1")
    assert base64.b64decode(done.response_body) == b"done"
    assert (done.due_at, done.finished_at) == (None, NOW)
    [sent] = calls.callee.calls
    assert (sent.method, sent.path, sent.user, base64.b64decode(sent.body)) == ("POST", "/work?a=b", "anna", b"\0hi")


async def test_all_attempts_of_a_call_without_a_key_are_one_sessions(calls: Calls) -> None:
    calls.callee.answers = [Reply(500)]
    made = await calls.invocations.create(await calls.function(), Wanted())
    await calls.settle()
    await calls.pass_time(10)
    assert len(calls.callee.calls) == 2
    assert {each.key for each in calls.callee.calls} == {made.key}
    assert made.key is not None
    stateless = await calls.functions.create(
        calls.tenant, "stateless", start=START, affinity=Affinity(modes=(Mode.NONE,))
    )
    assert (await calls.invocations.create(stateless, Wanted(key="chat7"))).key is None


@pytest.mark.parametrize(
    ("headers", "path", "user", "key"),
    [
        ({"Cookie": "dovecote-session=there.proof"}, "/", "ann", "there"),
        ({"cookie": "dovecote-session=there.proof"}, "/", "bob", None),  # it is another user's
        ({"cookie": "dovecote-session=gone.proof"}, "/", "ann", None),
        ({"cookie": "dovecote-session=there"}, "/", "ann", None),
        ({"cookie": "dovecote-session=there.guessed"}, "/", "ann", None),
        ({"cookie": "dovecote-session=there.proof", "x-forwarded-proto": "https"}, "/", "ann", None),
        ({"cookie": "__Host-dovecote-session=there.proof", "x-forwarded-proto": "https"}, "/", "ann", "there"),
        ({"cookie": "dovecote-session=\xff"}, "/", "ann", None),
        ({"mcp-session-id": "there.x"}, "/", "ann", "there"),
        ({}, "/m?session_id=there.x", "ann", "there"),
        ({"x-dovecote-session": "mine", "cookie": "dovecote-session=there.proof"}, "/", "ann", "mine"),
    ],
)
async def test_a_request_names_its_session_as_its_function_has_it(
    calls: Calls, headers: dict[str, str], path: str, user: str, key: str | None
) -> None:
    function = await calls.functions.create(calls.tenant, "named", start=START, affinity=Affinity(modes=EVERY))
    wanted = Wanted(path=path, headers=tuple(headers.items()), user=user)
    made = await calls.invocations.create(function, wanted)
    assert made.key == key or (key is None and len(made.key or "") == 26)
    assert "there" not in str(made.headers) + made.path


@pytest.mark.parametrize("id", ["gone.x", "x", "", "there"])
async def test_an_mcp_session_that_is_not_there_is_refused(calls: Calls, id: str) -> None:
    function = await calls.functions.create(calls.tenant, "named", start=START, affinity=Affinity(modes=EVERY))
    with pytest.raises(NotFound) as caught:
        await calls.invocations.create(function, Wanted(headers=(("mcp-session-id", id),), user="ann"))
    assert caught.value.code == "no_such_session"


@pytest.mark.parametrize("failure", [Reply(503), Reply(429), Broken(DIED, was_sent=True)])
async def test_what_may_pass_is_tried_again_as_often_as_asked(calls: Calls, failure: Reply | Broken) -> None:
    calls.callee.answers = [failure] * 9
    made = await calls.invocations.create(await calls.function(retries=2), Wanted())
    await calls.settle()
    assert (await calls.get(made)).state is State.QUEUED
    for _ in range(5):
        await calls.pass_time(LONGEST_WAIT)
    assert ((await calls.get(made)).state, len(calls.callee.calls)) == (State.FAILED, 3)


async def test_what_a_function_refuses_is_not_tried_again(calls: Calls) -> None:
    calls.callee.answers = [Reply(404)]
    made = await calls.invocations.create(await calls.function(retries=8), Wanted())
    await calls.settle()
    done = await calls.get(made)
    assert (done.state, done.status, done.error_code) == (State.FAILED, 404, "function_error")


async def test_no_room_takes_no_attempt(calls: Calls) -> None:
    """Even a call that is to be tried once waits for a place, as long as its age allows."""
    no_room = NoCapacity("no memory", code="no_memory", retry_after=20)
    calls.callee.answers = [Broken(no_room, was_sent=False)] * 3
    made = await calls.invocations.create(await calls.function(retries=0), Wanted())
    await calls.settle()
    waiting = await calls.get(made)
    assert (waiting.state, waiting.attempts, waiting.waits) == (State.QUEUED, 0, 1)
    assert waiting.due_at == NOW + timedelta(seconds=20)
    for _ in range(3):
        await calls.pass_time(60)
    done = await calls.get(made)
    assert (done.state, done.attempts, done.waits) == (State.SUCCEEDED, 1, 3)


async def test_what_is_too_old_is_not_made_and_said_to_be(calls: Calls) -> None:
    calls.callee.answers = [Reply(500)] * 9
    function = await calls.function(retries=8, max_age=timedelta(seconds=30), on_failure=WEBHOOK)
    made = await calls.invocations.create(function, Wanted())
    for _ in range(9):
        await calls.pass_time(6)
    done = await calls.get(made)
    assert (done.state, done.error) == (State.EXPIRED, "the function answered 500")
    assert b'"condition":"EventAgeExceeded"' in render(calls.callee.told[0])


async def test_a_delayed_call_waits(calls: Calls) -> None:
    made = await calls.invocations.create(await calls.function(), Wanted(delay=timedelta(hours=1)))
    await calls.pass_time(3599)
    assert calls.callee.calls == []
    await calls.pass_time(1)
    assert (await calls.get(made)).state is State.SUCCEEDED


async def test_an_attempt_that_nobody_hears_of_again_counts(calls: Calls) -> None:
    """As after kill -9: with retries left it is made again when the lease has ended, without them it has failed."""
    calls.callee.gate = asyncio.Event()
    once = await calls.invocations.create(await calls.function("once", retries=0), Wanted())
    twice = await calls.invocations.create(await calls.function("twice", retries=1), Wanted())
    await calls.dispatching.tick()
    await until(lambda: len(calls.callee.calls) == 2)
    await calls.dispatching.stop()
    calls.callee.gate = None
    calls.dispatching = calls.dispatcher()
    await calls.pass_time(LEASE.total_seconds() - 1)
    assert (await calls.get(twice)).state is State.RUNNING
    for _ in range(3):
        await calls.pass_time(5)
    lost, again = await calls.get(once), await calls.get(twice)
    assert (lost.state, lost.attempts, lost.error_code) == (State.FAILED, 1, "attempt_lost")
    assert (again.state, again.attempts) == (State.SUCCEEDED, 2)


async def test_two_dispatchers_make_a_call_once(calls: Calls) -> None:
    function = await calls.function()
    made = [await calls.invocations.create(function, Wanted()) for _ in range(8)]
    other = calls.dispatcher()
    await asyncio.gather(*(each.tick() for each in (calls.dispatching, other) for _ in range(3)))
    await until(lambda: not calls.dispatching.calls.running and not other.calls.running)
    await other.stop()
    assert sorted(each.id for each in calls.callee.calls) == sorted(each.id for each in made)
    assert {(await calls.get(each)).state for each in made} == {State.SUCCEEDED}


async def test_a_function_has_so_many_calls_at_once_and_no_more(calls: Calls) -> None:
    calls.callee.gate = asyncio.Event()
    function, free = await calls.function(at_once=2), await calls.function("free")
    for _ in range(4):
        await calls.invocations.create(function, Wanted())
    late = await calls.invocations.create(free, Wanted())
    await calls.dispatching.tick()
    await until(lambda: len(calls.callee.calls) == 3)
    assert late.id in {each.id for each in calls.callee.calls}  # what is behind the limit does not wait for it
    calls.callee.gate.set()
    await until(lambda: len(calls.callee.calls) == 5 and not calls.dispatching.calls.running)
    assert calls.callee.most_at_once == 3


async def test_a_tenant_leaves_room_for_another(calls: Calls) -> None:
    calls.callee.gate = asyncio.Event()
    calls.dispatching = calls.dispatcher(at_once=4)
    mine, theirs = await calls.function(), await calls.function(tenant=calls.other)
    for _ in range(10):
        await calls.invocations.create(mine, Wanted())
    await calls.dispatching.tick()
    await until(lambda: len(calls.callee.calls) == 2)
    await calls.invocations.create(theirs, Wanted())
    await calls.dispatching.tick()
    await until(lambda: len(calls.callee.calls) == 3)
    assert calls.callee.calls[-1].tenant_id == calls.other
    calls.callee.gate.set()


async def test_an_idempotency_key_is_one_call(calls: Calls) -> None:
    function, other = await calls.function(), await calls.function(tenant=calls.other)
    wanted = Wanted(idempotency_key="order-1")
    made = await asyncio.gather(*(calls.invocations.create(function, wanted) for _ in range(5)))
    assert len({each.id for each in made}) == 1
    assert (await calls.invocations.create(other, wanted)).id != made[0].id
    await calls.settle()
    assert (await calls.invocations.create(function, wanted)).state is State.SUCCEEDED
    assert len(calls.callee.calls) == 2


async def test_an_idempotency_key_is_one_users(calls: Calls) -> None:
    """Two users may count their orders alike: neither is given the other's call, nor what names its session."""
    function = await calls.function()
    annas, bobs = [
        await calls.invocations.create(function, Wanted(user=user, idempotency_key="order-1"))
        for user in ("anna", "bob")
    ]
    assert annas.id != bobs.id
    assert annas.key != bobs.key


async def test_a_cancelled_call_is_not_made(calls: Calls) -> None:
    function = await calls.function(on_failure=WEBHOOK, on_success=WEBHOOK)
    waiting = await calls.invocations.create(function, Wanted())
    await calls.invocations.cancel(calls.tenant, waiting.id)
    await calls.settle()
    assert ((await calls.get(waiting)).state, calls.callee.calls, calls.callee.told) == (State.CANCELLED, [], [])
    assert await calls.invocations.cancel(calls.tenant, waiting.id) == await calls.get(waiting)


async def test_a_call_is_cancelled_while_it_runs(calls: Calls) -> None:
    calls.invocations.stop = calls.dispatching.cut_off
    calls.callee.gate = asyncio.Event()
    made = await calls.invocations.create(await calls.function(), Wanted())
    await calls.dispatching.tick()
    await until(lambda: calls.callee.at_once == 1)
    await calls.invocations.cancel(calls.tenant, made.id)
    await until(lambda: calls.callee.at_once == 0 and not calls.dispatching.calls.running)
    assert (await calls.get(made)).state is State.CANCELLED


async def test_a_call_that_has_ended_is_not_cancelled_but_replayed(calls: Calls) -> None:
    wanted = Wanted(path="/a", body=b"x", key="chat7", user="anna", idempotency_key="order-1")
    made = await calls.invocations.create(await calls.function(), wanted)
    with pytest.raises(Conflict) as caught:
        await calls.invocations.replay(calls.tenant, made.id)
    assert caught.value.code == "not_ended"
    await calls.settle()
    with pytest.raises(Conflict) as caught:
        await calls.invocations.cancel(calls.tenant, made.id)
    assert caught.value.code == "has_ended"
    again = await calls.invocations.replay(calls.tenant, made.id)
    await calls.settle()
    done = await calls.get(again)
    assert (done.replay_of, done.state) == (made.id, State.SUCCEEDED)
    assert (done.path, done.body, done.key, done.user) == (made.path, made.body, "chat7", "anna")


async def test_another_tenants_calls_are_not_there(calls: Calls) -> None:
    made = await calls.invocations.create(await calls.function(), Wanted())
    await calls.function(tenant=calls.other)
    for act in (calls.invocations.get, calls.invocations.cancel, calls.invocations.replay):
        with pytest.raises(NotFound) as caught:
            await act(calls.other, made.id)
        assert caught.value.code == "no_such_invocation"
    assert await calls.invocations.list(calls.other) == []
    assert await calls.invocations.list(calls.other, function="work") == []
    with pytest.raises(Invalid):
        await calls.invocations.list(calls.other, after=made.id)


async def test_calls_are_listed_by_what_they_are(calls: Calls) -> None:
    work, other = await calls.function(), await calls.function("other")
    first = await calls.invocations.create(work, Wanted(user="anna", key="a"))
    await calls.settle()
    calls.now += timedelta(seconds=1)
    second = await calls.invocations.create(other, Wanted(user="bert", key="b"))

    async def listed(**wishes: object) -> list[str]:
        return [each.id for each in await calls.invocations.list(calls.tenant, **wishes)]  # type: ignore[arg-type]

    assert await listed() == [first.id, second.id]
    assert await listed(newest_first=True) == [second.id, first.id]
    assert await listed(function="work") == await listed(user="anna") == await listed(key="a") == [first.id]
    assert await listed(states=[State.QUEUED]) == await listed(after=first.id) == [second.id]


async def test_a_destination_is_told_until_it_listens(calls: Calls) -> None:
    calls.callee.refusals = [Failed("it answered 500", code="webhook_failed")] * 2
    made = await calls.invocations.create(await calls.function(on_success=WEBHOOK), Wanted())
    await calls.settle()
    pending = await calls.get(made)
    assert (pending.state, pending.delivery, pending.delivery_error) == (
        State.SUCCEEDED,
        Delivery.PENDING,
        "it answered 500",
    )
    for _ in range(3):
        await calls.pass_time(LONGEST_WAIT)
    done = await calls.get(made)
    assert (done.delivery, done.deliveries, len(calls.callee.told)) == (Delivery.DELIVERED, 3, 1)


async def test_a_destination_that_never_listens_is_given_up(calls: Calls) -> None:
    calls.callee.refusals = [Failed("down", code="webhook_failed")] * 99
    deaf = await calls.invocations.create(await calls.function(on_success=WEBHOOK), Wanted())
    for _ in range(12):
        await calls.pass_time(LONGEST_WAIT)
    done = await calls.get(deaf)
    assert (done.delivery, done.deliveries) == (Delivery.FAILED, deciding.MOST_DELIVERIES)
    calls.callee.refusals = [Forbidden("inside", code="address_refused")]
    inside = await calls.invocations.create(await calls.function("inside", on_success=WEBHOOK), Wanted())
    await calls.settle()
    await calls.settle()
    assert (await calls.get(inside)).deliveries == 1


async def test_a_destination_is_given_up_however_telling_it_fails(calls: Calls) -> None:
    """With an error that nobody thought of, or with the server that told it, time after time."""
    calls.callee.refusals = [RuntimeError("a bug")] * 99
    odd = await calls.invocations.create(await calls.function(on_success=WEBHOOK), Wanted())
    for _ in range(12):
        await calls.pass_time(LONGEST_WAIT)
    done = await calls.get(odd)
    assert (done.delivery, done.deliveries) == (Delivery.FAILED, deciding.MOST_DELIVERIES)
    assert "on our side" in done.delivery_error
    calls.callee.refusals = []
    kept = calls.store.tenant(calls.tenant).invocations
    last = replace(done, delivery=Delivery.PENDING, due_at=calls.now)  # the server died over the last attempt
    await kept.swap(last)
    await calls.settle()
    assert ((await calls.get(odd)).delivery, calls.callee.told) == (Delivery.FAILED, [])


async def test_a_function_hears_of_another_once_and_not_in_circles(calls: Calls) -> None:
    circle = await calls.function("circle", on_success=Destination(To.FUNCTION, "circle"))
    made = await calls.invocations.create(circle, Wanted(user="anna", key="chat7", body=b"hello"))
    for _ in range(2):  # told twice, as after a crash, it is one call
        follower = await calls.invocations.follow(await calls.get(made), "circle", b"{}")
    assert (follower.hops, follower.user, follower.key) == (1, "anna", "chat7")
    assert len(await calls.invocations.list(calls.tenant)) == 2
    last = replace(follower, hops=5)
    with pytest.raises(Conflict) as caught:
        await calls.invocations.follow(last, "circle", b"{}")
    assert caught.value.code == "too_many_hops"


async def test_a_call_of_a_function_that_was_removed_fails(calls: Calls) -> None:
    function = await calls.function()
    made = await calls.invocations.create(function, Wanted())
    await calls.functions.remove(calls.tenant, function.id)
    await calls.settle()
    assert ((await calls.get(made)).state, calls.callee.calls) == (State.FAILED, [])


async def test_what_ended_long_ago_is_forgotten(calls: Calls) -> None:
    function = await calls.function()
    old = await calls.invocations.create(function, Wanted())
    await calls.settle()
    await calls.pass_time(8 * 86400)
    new = await calls.invocations.create(function, Wanted())
    await calls.dispatching.forget()
    assert [each.id for each in await calls.invocations.list(calls.tenant)] == [new.id]
    with pytest.raises(NotFound):
        await calls.get(old)


@pytest.mark.parametrize(
    "fields",
    [
        {"path": "work"},
        {"path": "//elsewhere"},
        {"path": "/a b"},
        {"body": b"x" * (MOST_BODY + 1)},
        {"delay": timedelta(hours=25)},
        {"timeout": timedelta(0)},
        {"key": "a key"},
        {"idempotency_key": ""},
        {"headers": (("a b", "c"),)},
        {"headers": (("a", "b\r\nc: d"),)},
        {"headers": (("a", "x" * 20_000),)},
        {"method": "BREW"},
        {"user": ""},
    ],
)
async def test_what_cannot_be_asked_for_is_refused(calls: Calls, fields: dict[str, object]) -> None:
    function = await calls.function()
    with pytest.raises(Invalid):
        await calls.invocations.create(function, Wanted(**fields))  # type: ignore[arg-type]
    assert await calls.invocations.list(calls.tenant) == []


def test_headers_are_joined_and_credentials_left_out() -> None:
    pairs = [("A", "1"), ("a", "2"), ("Cookie", "c"), ("Host", "h"), ("x-gw-dst", "1.2.3.4:5"), ("Connection", "close")]
    assert parse_headers(pairs) == {"a": "1, 2"}


@pytest.mark.parametrize(("times", "least", "most"), [(1, 0.5, 1), (2, 1, 2), (5, 8, 16), (40, 150, 300)])
def test_waits_double_up_to_a_bound(times: int, least: float, most: float) -> None:
    assert deciding.wait(times, 0.0) == timedelta(seconds=least)
    assert deciding.wait(times, 1.0) == timedelta(seconds=most)


def test_what_a_function_asks_for_is_waited() -> None:
    made = deciding.claimed(invocation(retries=3), NOW)
    again = deciding.after(made, Reply(429, retry_after=90), NOW, 1.0)
    assert (again.state, again.due_at) == (State.QUEUED, NOW + timedelta(seconds=90))


@pytest.mark.parametrize(
    ("outcome", "state"),
    [
        (Broken(DeadlineExceeded("late", code="start_timeout"), was_sent=False), State.QUEUED),
        (Broken(Failed("no server", code="port_closed"), was_sent=False), State.FAILED),
        (Broken(NotFound("no such session"), was_sent=False), State.FAILED),
        (Reply(302), State.SUCCEEDED),
    ],
)
def test_what_becomes_of_it(outcome: Reply | Broken, state: InvocationState) -> None:
    assert deciding.after(deciding.claimed(invocation(retries=1), NOW), outcome, NOW, 1.0).state is state


def test_a_destination_is_told_request_response_and_condition() -> None:
    function_error = deciding.after(deciding.claimed(invocation(), NOW), Reply(500, body="/w=="), NOW, 0)
    said = render(function_error)
    for part in (
        b'"requestPayload":"hi"',
        b'"responsePayload":"/w=="',
        b'"isResponseBase64":true',
        b'"statusCode":500',
    ):
        assert part in said
    assert b'"condition":"RetriesExhausted"' in said
    assert b'"session":"chat7"' in said
