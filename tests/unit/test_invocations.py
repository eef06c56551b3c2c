"""Asynchronous calls: what is asked for and of whom, what is kept, and that nobody else sees it."""

from __future__ import annotations

import asyncio
import base64
from datetime import timedelta

import pytest

from dovecote.control.invocations import Wanted
from dovecote.control.invocations.deciding import Reply
from dovecote.errors import Conflict, Invalid, NotFound
from dovecote.model.invocations import MOST_BODY, InvocationState, parse_headers
from dovecote.model.serving import Affinity, Mode
from tests.contract.stores import NOW
from tests.unit.control_world import START, until
from tests.unit.invocation_world import WEBHOOK, Calls

pytestmark = pytest.mark.anyio

EVERY = (Mode.HEADER, Mode.COOKIE, Mode.MCP_HTTP, Mode.MCP_SSE)
State = InvocationState


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
