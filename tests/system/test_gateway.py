"""Requests to sandboxes and functions through a real Envoy."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator

import pytest

from dovecote.errors import DovecoteError, NoCapacity, Unauthenticated
from dovecote.gateway import Answer, Ask
from dovecote.model.serving import Affinity
from tests.system.gateway_world import BOUND, SLUG, Instance, World, until, world

pytestmark = [pytest.mark.system, pytest.mark.anyio]

BOX = f"3000-{SLUG}.box.localhost"
FUNCTION = "chat.fn.localhost"


@pytest.fixture
async def w() -> AsyncIterator[World]:
    async with world() as there:
        await there.open()
        yield there


def serves_sessions(w: World, instance: Instance, header: str = "x-dovecote-session") -> None:
    affinity = Affinity(header=header.lower())

    async def answer(ask: Ask) -> Answer:
        if ask.credential != "key-of-one":
            raise Unauthenticated("not a key of ours")
        found = ask.session(affinity)
        return Answer(instance.address, affinity=affinity, key=found.key if found else "made-by-server")

    w.answers = answer


async def test_only_the_first_request_of_a_sandbox_asks(w: World) -> None:
    w.points_to(await w.instance("a"))
    assert [(await w.get(BOX)).json()["name"] for _ in range(5)] == ["a"] * 5
    (ask,) = w.asks
    assert (ask.kind, ask.name, ask.port, ask.failed) == ("box", SLUG, 3000, None)


async def test_an_answer_that_is_not_to_be_learned_is_asked_for_again(w: World) -> None:
    instance = await w.instance("a")

    async def answer(ask: Ask) -> Answer:
        return Answer(instance.address, learn=False)

    w.answers = answer
    for _ in range(3):
        assert (await w.get(BOX)).status_code == 200
    assert len(w.asks) == 3


async def test_a_route_ends_with_its_ttl() -> None:
    async with world() as w:
        w.route_ttl = 1
        await w.open()
        w.points_to(await w.instance("a"))

        async def asked_twice() -> bool:
            assert (await w.get(BOX)).status_code == 200
            return len(w.asks) >= 2

        await until(asked_twice)


async def test_the_session_of_a_function_is_found_by_its_header(w: World) -> None:
    serves_sessions(w, await w.instance("a"))
    for _ in range(3):
        answer = await w.get(FUNCTION, x_dovecote_key="key-of-one", x_dovecote_user="ann b", x_dovecote_session="s1")
        assert answer.status_code == 200
        assert "x-dovecote-session" not in answer.headers
    (ask,) = w.asks
    assert (ask.kind, ask.name, ask.credential, ask.user) == ("function", "chat", "key-of-one", "ann b")
    assert (ask.method, ask.path, ask.headers["x-dovecote-session"]) == ("GET", "/", "s1")


async def test_a_session_made_by_the_server_comes_back_in_the_header_and_is_warm_at_once(w: World) -> None:
    serves_sessions(w, await w.instance("a"))
    first = await w.get(FUNCTION, x_dovecote_key="key-of-one")
    made = first.headers["x-dovecote-session"]
    assert made == "made-by-server"
    again = await w.get(FUNCTION, x_dovecote_key="key-of-one", x_dovecote_session=made)
    assert (again.status_code, len(w.asks)) == (200, 1)


async def test_without_a_session_each_request_asks(w: World) -> None:
    serves_sessions(w, await w.instance("a"))
    for _ in range(2):
        await w.get(FUNCTION, x_dovecote_key="key-of-one")
    assert len(w.asks) == 2


async def test_a_function_may_have_another_affinity_header(w: World) -> None:
    serves_sessions(w, await w.instance("a"), header="X-Chat-Id")
    for session in ("one", "two", "one", "two"):
        assert (await w.get(FUNCTION, x_dovecote_key="key-of-one", x_chat_id=session)).status_code == 200
    assert [ask.headers["x-chat-id"] for ask in w.asks] == ["one", "two"]


async def test_a_route_is_used_only_with_the_credential_user_and_session_that_it_was_learned_with(w: World) -> None:
    serves_sessions(w, await w.instance("a"))
    good = {"x_dovecote_key": "key-of-one", "x_dovecote_user": "ann", "x_dovecote_session": "s1"}
    assert (await w.get(FUNCTION, **good)).status_code == 200
    assert (await w.get(FUNCTION, **good)).status_code == 200
    assert len(w.asks) == 1
    for changed in ("x_dovecote_key", "x_dovecote_user", "x_dovecote_session"):
        before = len(w.asks)
        await w.get(FUNCTION, **{**good, changed: "other"})
        assert len(w.asks) == before + 1, changed
    strangers = [
        {**good, "x_dovecote_key": "key-of-two"},
        {"x_dovecote_session": "s1", "x_dovecote_user": "ann"},
        # Fields that join to the same text as those of the first request.
        {"x_dovecote_key": "key-of-one s1 ann", "x_dovecote_session": "s1"},
        {"x_dovecote_key": "", "x_dovecote_session": "key-of-one s1 ann"},
    ]
    for stranger in strangers:
        assert (await w.get(FUNCTION, **stranger)).status_code == 401, stranger


async def test_internal_headers_of_a_client_are_ignored(w: World) -> None:
    right, wrong = await w.instance("right"), await w.instance("wrong")
    w.points_to(right)
    spoof = {
        "x_gw_dst": wrong.address,
        "x_gw_ask": f"{BOX} key-of-one s1 ann",
        "x_gw_wake": f"x route {wrong.address} - - {BOX}",
        "x_gw_failed": "1.2.3.4:5",
    }
    for _ in range(2):
        seen = (await w.get(BOX, **spoof)).json()
        assert seen["name"] == "right"
        assert not [name for name in seen["headers"] if name.startswith("x-gw-")]
    (ask,) = w.asks
    assert (ask.credential, ask.failed) == ("", None)
    assert not [name for name in ask.headers if name.startswith("x-gw-")]


async def test_an_instance_cannot_teach_the_gateway(w: World) -> None:
    w.points_to(await w.instance("a"))
    for _ in range(2):
        answer = await w.get(BOX, "/spoof")
        assert answer.status_code == 200
        assert "x-gw-wake" not in answer.headers


async def test_no_instance_sees_an_api_key(w: World) -> None:
    """Neither cold, nor warm, nor when the request came by the way of a dead instance."""
    first, second = await w.instance("first"), await w.instance("second")
    serves_sessions(w, first)
    good = {"x_dovecote_key": "key-of-one", "x_dovecote_session": "s1"}
    seen = [(await w.get(FUNCTION, **good)).json() for _ in range(2)]
    serves_sessions(w, second)
    await first.die()
    seen.append((await w.get(FUNCTION, **good)).json())
    assert [one["name"] for one in seen] == ["first", "first", "second"]
    assert all("key-of-one" not in json.dumps(one) for one in seen)
    assert all(not name.startswith("x-gw-") for one in seen for name in one["headers"])


async def test_a_dead_instance_is_asked_for_again_by_the_request_that_meets_it(w: World) -> None:
    first, second = await w.instance("first"), await w.instance("second")
    w.points_to(first)
    await w.get(BOX)
    w.points_to(second)
    await first.die()
    answer = await w.send("POST", BOX, body=b"once")
    assert (answer.json()["name"], answer.json()["size"]) == ("second", 4)
    assert w.asks[-1].failed == first.address
    assert [one for one in second.seen if one.startswith("POST")] == ["POST /"]
    await w.get(BOX)
    assert len(w.asks) == 2


async def test_an_answer_that_was_wrong_is_reported_and_asked_for_once_more(w: World) -> None:
    dead, alive = await w.instance("dead"), await w.instance("alive")
    await dead.die()

    async def answer(ask: Ask) -> Answer:
        return Answer(alive.address if ask.failed == dead.address else dead.address)

    w.answers = answer
    assert (await w.send("POST", BOX, body=b"x")).json()["name"] == "alive"
    assert [ask.failed for ask in w.asks] == [None, dead.address]


@pytest.mark.parametrize("is_warm", [False, True])
async def test_a_post_that_reached_an_instance_is_not_sent_twice(w: World, is_warm: bool) -> None:
    first, second = await w.instance("first"), await w.instance("second")
    w.points_to(first)
    if is_warm:
        await w.get(BOX)
    pending = asyncio.create_task(w.send("POST", BOX, "/hang", body=b"x"))
    await until(lambda: _seen(first, "POST /hang"))
    w.points_to(second)
    await first.die()
    answer = await pending
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "instance_died")
    assert answer.json()["error"]["request_id"] == answer.headers["x-request-id"]
    assert second.seen == []


@pytest.mark.parametrize("is_warm", [False, True])
@pytest.mark.parametrize(("method", "headers"), [("GET", {}), ("POST", {"idempotency_key": "k1"})])
async def test_a_request_that_may_be_repeated_is(w: World, method: str, headers: dict[str, str], is_warm: bool) -> None:
    first, second = await w.instance("first"), await w.instance("second")
    w.points_to(first)
    if is_warm:
        await w.get(BOX)
    pending = asyncio.create_task(w.send(method, BOX, "/hang", b"", **headers))
    await until(lambda: _seen(first, f"{method} /hang"))
    w.points_to(second)
    second_answers = asyncio.create_task(until(lambda: _seen(second, f"{method} /hang")))
    await first.die()
    await second_answers
    pending.cancel()


async def _seen(instance: Instance, request: str) -> bool:
    return request in instance.seen


async def test_a_hundred_cold_posts_at_once_are_all_answered(w: World) -> None:
    instance = await w.instance("a")
    all_are_here = asyncio.Event()

    async def answer(ask: Ask) -> Answer:
        if len(w.asks) == 100:
            all_are_here.set()
        await all_are_here.wait()
        return Answer(instance.address)

    w.answers = answer
    answers = await asyncio.gather(*(w.send("POST", BOX, f"/{n}", body=b"%d" % n) for n in range(100)))
    assert [one.status_code for one in answers] == [200] * 100
    assert sorted(instance.seen) == sorted(f"POST /{n}" for n in range(100))
    assert w.gateway is not None
    assert w.gateway.held == 0


async def test_a_client_that_leaves_ends_its_question(w: World) -> None:
    async def answer(ask: Ask) -> Answer:
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    w.answers = answer
    gateway = w.gateway
    assert gateway is not None
    pending = asyncio.create_task(w.get(BOX))

    async def is_held() -> bool:
        return gateway.held == 1

    async def is_over() -> bool:
        return gateway.held == 0

    await until(is_held)
    pending.cancel()
    await until(is_over)


@pytest.mark.parametrize("is_warm", [False, True])
async def test_a_websocket_passes_both_ways(w: World, is_warm: bool) -> None:
    w.points_to(await w.instance("a"))
    if is_warm:
        await w.get(BOX)
    reader, writer = await w.dial(BOX, "/socket")
    for word in (b"one", b"two"):
        writer.write(word)
        assert await asyncio.wait_for(reader.readexactly(5), BOUND) == b"a:" + word
    writer.close()


@pytest.mark.parametrize("is_warm", [False, True])
async def test_events_arrive_one_by_one(w: World, is_warm: bool) -> None:
    instance = await w.instance("a")
    w.points_to(instance)
    if is_warm:
        await w.get(BOX)
    async with w.client.stream("GET", "/events", headers={"host": BOX}) as answer:
        lines = answer.aiter_lines()
        for n in range(3):
            instance.gate.release()  # the next event is not made before the last one has arrived
            assert await anext(lines) == f"data: {n}"
            assert await anext(lines) == ""


@pytest.mark.parametrize("is_dead", [False, True])
async def test_a_large_upload_arrives_whole(w: World, is_dead: bool) -> None:
    """100 MB, also when it first meets an instance that is gone."""
    first, second = await w.instance("first"), await w.instance("second")
    w.points_to(first)
    await w.get(BOX)
    if is_dead:
        await first.die()
        w.points_to(second)
    block = bytes(range(256)) * 4096
    digest = hashlib.sha256()
    for _ in range(100):
        digest.update(block)

    async def body() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield block

    answer = await w.client.post("/upload", content=body(), headers={"host": BOX})
    seen = answer.json()
    assert (seen["size"], seen["sha256"]) == (100 * len(block), digest.hexdigest())
    assert seen["name"] == ("second" if is_dead else "first")


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (None, 404, "not_found"),
        (Unauthenticated("no key"), 401, "unauthenticated"),
        (NoCapacity("all are full", code="too_many", retry_after=7), 429, "too_many"),
        (RuntimeError("a fault of ours"), 500, "failed"),
    ],
)
async def test_a_refusal_has_the_shape_of_our_errors(
    w: World, error: Exception | None, status: int, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def answer(ask: Ask) -> Answer:
        assert error is not None
        raise error

    if error is not None:
        w.answers = answer
    response = await w.send("POST", BOX, body=b"x")
    said = response.json()["error"]
    assert response.status_code == status
    assert said["code"] == ("internal" if isinstance(error, RuntimeError) else code)
    assert said["message"]
    assert said["request_id"] == response.headers["x-request-id"]
    assert "fault of ours" not in response.text
    assert not [name for name in response.headers if name.startswith(("x-gw-", "x-envoy-"))]
    if isinstance(error, DovecoteError) and error.retry_after:
        assert response.headers["retry-after"] == "7"


async def test_a_start_that_takes_too_long_ends_the_wait() -> None:
    async with world() as w:
        w.start_timeout = 0.2
        await w.open()

        async def answer(ask: Ask) -> Answer:
            await asyncio.get_running_loop().create_future()
            raise AssertionError

        w.answers = answer
        response = await w.get(BOX)
        assert (response.status_code, response.json()["error"]["code"]) == (504, "start_timeout")


async def test_more_waiting_requests_than_allowed_are_refused() -> None:
    async with world() as w:
        w.most_held = 3
        await w.open()
        instance = await w.instance("a")
        refused = asyncio.Event()

        async def answer(ask: Ask) -> Answer:
            await refused.wait()
            return Answer(instance.address)

        w.answers = answer

        async def one() -> int:
            response = await w.get(BOX)
            if response.status_code == 429:
                assert response.json()["error"]["code"] == "too_many"
                refused.set()
            return response.status_code

        answers = await asyncio.gather(*(one() for _ in range(4)))
        assert sorted(answers) == [200, 200, 200, 429]


async def test_errors_that_envoy_makes_have_the_same_shape(w: World) -> None:
    dead = await w.instance("dead")
    w.points_to(dead)
    await dead.die()
    response = await w.get(BOX)
    said = response.json()["error"]
    assert (response.status_code, said["code"]) == (503, "unreachable")
    assert said["request_id"] == response.headers["x-request-id"]
    too_large = await w.get(BOX, x_much="x" * 70_000)
    assert (too_large.status_code, too_large.json()["error"]["code"]) == (431, "headers_too_large")


async def test_a_request_that_kills_whatever_it_meets_is_not_repeated_for_ever(w: World) -> None:
    instances = [await w.instance(f"i{number}") for number in range(5)]
    asked = iter(instances)

    async def answer(ask: Ask) -> Answer:
        return Answer(next(asked).address)

    async def kills() -> None:
        for instance in instances[:3]:
            await until(lambda instance=instance: _seen(instance, "GET /hang"))  # type: ignore[misc]
            await instance.die()

    w.answers = answer
    response, _ = await asyncio.gather(w.get(BOX, path="/hang"), kills())
    assert (response.status_code, response.json()["error"]["code"]) == (502, "instance_died")
    assert [instance.seen for instance in instances[3:]] == [[], []]
