"""Instances that take so many requests at once, and errors of functions, through a real Envoy."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from dovecote.errors import DeadlineExceeded, Gone, Invalid, NoCapacity, NotFound, Unauthenticated
from dovecote.gateway import Answer, Ask
from dovecote.model.serving import Affinity, Mode
from tests.system.gateway_world import World, free_port, until, world

pytestmark = [pytest.mark.system, pytest.mark.anyio]

FUNCTION = "chat.fn.localhost"
KEY = {"x_dovecote_key": "key-of-one"}


@pytest.fixture
async def w() -> AsyncIterator[World]:
    async with world() as there:
        await there.open()
        yield there


@pytest.mark.parametrize("refusals", [1, 8])
async def test_a_request_that_a_full_instance_refuses_waits_its_turn_and_is_sent_once(w: World, refusals: int) -> None:
    """Also when others are there first again and again: no place is promised, and none is lost."""
    instance, full = await w.instance("a"), f"127.0.0.1:{free_port()}"
    refused: Counter[str] = Counter()

    async def answer(ask: Ask) -> Answer:
        refused[ask.path] += ask.failed is not None
        address = instance.address if refused[ask.path] >= refusals else full
        return Answer(address, affinity=Affinity(modes=(Mode.NONE,)), learn=False, is_limited=True)

    w.answers = answer
    answers = await asyncio.gather(*(w.send("POST", FUNCTION, f"/{n}", b"x", **KEY) for n in range(20)))
    assert {one.status_code for one in answers} == {200}
    assert sorted(instance.seen) == sorted(f"POST /{n}" for n in range(20))
    assert set(refused.values()) == {refusals}


async def test_a_request_that_begins_a_session_and_asks_again_is_told_apart_from_others(w: World) -> None:
    """By an id that no client chooses, so nobody comes to another one's session that way."""
    instance, full = await w.instance("a"), f"127.0.0.1:{free_port()}"
    made: list[str] = []

    async def answer(ask: Ask) -> Answer:
        key = ask.given or f"s{len(made)}"
        made.extend([] if ask.given else [key])
        address = instance.address if ask.given else full
        return Answer(address, affinity=Affinity(), key=key, is_limited=True)

    w.answers = answer
    posts = (w.send("POST", FUNCTION, body=b"x", x_request_id="chosen", **KEY) for _ in range(10))
    answers = await asyncio.gather(*posts)
    assert sorted(one.headers["x-dovecote-session"] for one in answers) == sorted(made)
    assert len(made) == 10
    assert "chosen" not in {one.json()["headers"]["x-request-id"] for one in answers}


@pytest.mark.parametrize("is_limited", [False, True])
async def test_an_instance_with_a_limit_gets_a_connection_for_each_request(w: World, is_limited: bool) -> None:
    instance = await w.instance("a")

    async def answer(ask: Ask) -> Answer:
        found = ask.session(Affinity())
        return Answer(instance.address, affinity=Affinity(), key=found.key if found else "s", is_limited=is_limited)

    w.answers = answer
    for session in ("one", "one", "two", "one", "two"):
        assert (await w.get(FUNCTION, x_dovecote_session=session, **KEY)).json()["name"] == "a"
    assert len(w.asks) == 2
    assert (instance.connections == 5) == is_limited


async def test_a_remembered_instance_that_is_full_is_asked_about(w: World) -> None:
    first, second = await w.instance("first"), await w.instance("second")
    at = first

    async def answer(ask: Ask) -> Answer:
        return Answer(at.address, affinity=Affinity(), key="s1", is_limited=True)

    w.answers = answer
    named = {"x_dovecote_session": "s1", **KEY}
    assert [(await w.get(FUNCTION, **named)).json()["name"] for _ in range(2)] == ["first"] * 2
    at = second
    await first.die()
    posted = (await w.send("POST", FUNCTION, "/", b"x", **named)).json()
    assert (posted["name"], posted["headers"]["x-dovecote-session"]) == ("second", "s1")
    assert not [name for name in posted["headers"] if name.startswith("x-gw-")]
    assert [ask.failed for ask in w.asks] == [None, first.address]


@pytest.mark.parametrize("is_limited", [False, True])
async def test_an_address_that_is_wrong_again_and_again_is_given_up(w: World, is_limited: bool) -> None:
    dead = f"127.0.0.1:{free_port()}"

    async def answer(ask: Ask) -> Answer:
        return Answer(dead, affinity=Affinity(), key="s1", is_limited=is_limited)

    w.answers = answer
    response = await w.send("POST", FUNCTION, body=b"x", **KEY)
    assert (response.json()["error"]["code"], len(w.asks)) == ("unreachable", 10 if is_limited else 4)


@pytest.mark.parametrize(
    ("error", "status", "code", "retry_after"),
    [
        (Invalid("odd", code="malformed_id"), 400, "malformed_id", None),
        (Unauthenticated("no key"), 401, "unauthenticated", None),
        (Gone("over", code="session_expired"), 401, "session_expired", None),
        (NotFound("none", code="no_such_session"), 404, "no_such_session", None),
        (NoCapacity("full", code="too_many", retry_after=3), 429, "too_many", "3"),
        (DeadlineExceeded("slow", code="start_timeout"), 504, "start_timeout", None),
    ],
)
async def test_what_python_refuses_has_its_status_and_one_shape(
    w: World, error: Exception, status: int, code: str, retry_after: str | None
) -> None:
    async def answer(ask: Ask) -> Answer:
        raise error

    w.answers = answer
    for host, path in ((FUNCTION, "/"), ("localhost", "/fn/chat/")):
        response = await w.send("POST", host, path, b"x", **KEY)
        said = response.json()["error"]
        assert (response.status_code, said["code"]) == (status, code)
        assert set(said) == {"code", "message", "hint", "request_id"}
        assert response.headers.get("retry-after") == retry_after


async def test_a_post_whose_instance_dies_is_not_repeated_and_a_get_is(w: World) -> None:
    first, second = await w.instance("first"), await w.instance("second")
    at = first

    async def answer(ask: Ask) -> Answer:
        return Answer(at.address, affinity=Affinity(), key="s1")

    w.answers = answer
    named = {"x_dovecote_session": "s1", **KEY}
    await w.get(FUNCTION, **named)
    post = asyncio.create_task(w.send("POST", FUNCTION, "/hang", b"x", **named))
    keyed = asyncio.create_task(w.send("POST", FUNCTION, "/gated", b"x", idempotency_key="k", **named))
    get = asyncio.create_task(w.get(FUNCTION, "/gated", **named))

    async def all_there() -> bool:
        return {"POST /hang", "POST /gated", "GET /gated"} <= set(first.seen)

    await until(all_there)
    at = second
    await first.die()
    response = await post
    assert (response.status_code, response.json()["error"]["code"]) == (502, "instance_died")
    for _ in range(2):
        second.gate.release()
    assert [(await each).json()["name"] for each in (keyed, get)] == ["second", "second"]
    assert "POST /hang" not in second.seen


@pytest.mark.parametrize("modes", [(Mode.HEADER,), (Mode.COOKIE, Mode.HEADER), (Mode.NONE,)])
@pytest.mark.parametrize("is_stranger", [False, True])
async def test_an_instance_sees_a_user_only_if_its_tenant_vouches_for_it(
    w: World, modes: tuple[Mode, ...], is_stranger: bool
) -> None:
    """Cold, warm, and by the way of a dead instance: anybody may call a public function, and say to be anyone."""
    affinity, first, second = Affinity(modes=modes), await w.instance("first"), await w.instance("second")
    at, key = first, None if Mode.NONE in modes else "s1"

    async def answer(ask: Ask) -> Answer:
        return Answer(at.address, affinity=affinity, key=key, is_stranger=is_stranger)

    w.answers = answer
    named = {"x_dovecote_session": "s1", "x_dovecote_user": "ann"}
    seen = [(await w.send("POST", FUNCTION, "/", b"x", **named)).json() for _ in range(2)]
    assert len(w.asks) == 1
    at = second
    await first.die()
    seen.append((await w.send("POST", FUNCTION, "/", b"x", **named)).json())
    assert [one["name"] for one in seen] == ["first", "first", "second"]
    assert [one["headers"].get("x-dovecote-user") for one in seen] == [None if is_stranger else "ann"] * 3


@pytest.mark.parametrize("is_warm", [False, True])
async def test_no_status_of_an_instance_has_its_request_sent_again(w: World, is_warm: bool) -> None:
    """421 asks a client to try elsewhere; what we send on has been carried out once, whatever was answered."""
    instance = await w.instance("a")

    async def answer(ask: Ask) -> Answer:
        return Answer(instance.address, affinity=Affinity(), key="s1")

    w.answers = answer
    named = {"x_dovecote_session": "s1", **KEY}
    if is_warm:
        await w.get(FUNCTION, "/before", **named)
    for status in ("421", "503", "409"):
        response = await w.send("POST", FUNCTION, f"/{status}", b"x", x_status=status, **named)
        assert (response.status_code, instance.seen.count(f"POST /{status}")) == (int(status), 1)


async def test_requests_go_on_while_nobody_reads_what_is_told_of_streams() -> None:
    """The pipe is full and its reader stopped: Envoy's workers do not wait for it."""
    async with world() as w:
        w.report_every = 0.01
        await w.open()
        instance = await w.instance("a")

        async def answer(ask: Ask) -> Answer:
            found = ask.session(Affinity())
            key = found.key if found else "x"
            return Answer(instance.address, affinity=Affinity(), key=key, session_id=f"ses_{key}")

        w.answers = answer
        fifo = os.open(w.run_dir / "gateway" / "streams", os.O_WRONLY | os.O_NONBLOCK)
        assert w.gateway is not None
        asyncio.get_running_loop().remove_reader(w.gateway._streams._fd)
        try:
            while True:
                os.write(fifo, b"\n" * 4096)
        except BlockingIOError:
            pass
        finally:
            os.close(fifo)
        long = [asyncio.create_task(w.get(FUNCTION, "/gated", x_dovecote_session=f"l{n}", **KEY)) for n in range(20)]
        for n in range(200):
            assert (await w.get(FUNCTION, x_dovecote_session=f"s{n % 10}", **KEY)).status_code == 200
        for _ in long:
            instance.gate.release()
        assert {(await each).status_code for each in long} == {200}
        asyncio.get_running_loop().add_reader(w.gateway._streams._fd, w.gateway._streams._read)

        async def are_touched() -> bool:
            return {f"ses_l{n}" for n in range(20)} <= set(w.touched)

        await until(are_touched)


async def test_streams_are_told_of_again_after_control_was_gone(w: World) -> None:
    """Envoy goes on without a reader, and writes to the same pipe when there is one again."""
    instance = await w.instance("a")
    assert w.gateway is not None

    async def answer(ask: Ask) -> Answer:
        return Answer(instance.address, affinity=Affinity(modes=(Mode.MCP_HTTP,)), key="s1", session_id="ses_s1")

    w.answers = answer
    pid = w.gateway.envoy_pid
    await w.get(FUNCTION, mcp_session_id="s1.x", **KEY)
    await w.gateway.stop(keep_envoy=True)
    assert (await w.get(FUNCTION, mcp_session_id="s1.x", **KEY)).status_code == 200
    await w.open()
    assert w.gateway.envoy_pid == pid
    await w.send("DELETE", FUNCTION, "/", b"", mcp_session_id="s1.x", **KEY)

    async def is_over() -> bool:
        return w.ended == [("ses_s1", "its MCP client ended it")]

    await until(is_over)
