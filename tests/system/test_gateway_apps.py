"""Apps from zero to several instances and back, through a real Envoy."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator

import pytest

from dovecote.errors import Failed
from dovecote.gateway import Answer, Ask
from tests.system.gateway_world import World, until, world

pytestmark = [pytest.mark.system, pytest.mark.anyio]

APP = "shop.app.localhost"


@pytest.fixture
async def w() -> AsyncIterator[World]:
    async with world() as there:
        there.concurrency = 2
        await there.open()
        yield there


async def served_by(w: World, *names: str) -> None:
    """Waits until the app's requests reach just these instances."""

    async def is_so() -> bool:
        return {(await w.get(APP)).json().get("name") for _ in range(6)} == set(names)

    await until(is_so)


async def test_visitors_of_an_app_at_zero_are_held_while_one_instance_starts(w: World) -> None:
    assert w.gateway is not None
    gateway = w.gateway
    started: list[str] = []
    starting = asyncio.Lock()
    instance = await w.instance("first")
    all_wait = asyncio.Event()

    async def answer(ask: Ask) -> Answer:
        assert (ask.kind, ask.name) == ("app", "shop")
        await all_wait.wait()
        async with starting:
            if not started:
                started.append("one")
                await gateway.set_apps({"shop": [instance.address]})
        return Answer(instance.address, learn=False)

    w.answers = answer
    await gateway.set_apps({"shop": []})
    visitors = [asyncio.create_task(w.send("POST", APP, f"/{n}", body=b"x")) for n in range(50)]

    async def all_are_held() -> bool:
        loads = await gateway.loads()
        return "shop" in loads and loads["shop"].waiting == 50

    await until(all_are_held)
    all_wait.set()
    answers = await asyncio.gather(*visitors)
    assert [one.status_code for one in answers] == [200] * 50
    assert started == ["one"]
    asked = len(w.asks)
    await served_by(w, "first")

    async def nobody_asks() -> bool:
        before = len(w.asks)
        assert (await w.get(APP)).status_code == 200
        return len(w.asks) == before

    await until(nobody_asks)
    assert asked == 50


@pytest.mark.parametrize("way", ["cold", "warm", "from a dead instance"])
async def test_no_instance_of_an_app_sees_which_key_or_user_a_visitor_sent(w: World, way: str) -> None:
    """A developer's client may send its API key with every request, and apps belong to others."""
    assert w.gateway is not None
    instance = await w.instance("a")
    w.points_to(instance)
    if way == "warm":
        await w.gateway.set_apps({"shop": [instance.address]})
        await served_by(w, "a")
    elif way == "from a dead instance":
        dead = await w.instance("dead", "127.0.0.2")
        await w.gateway.set_apps({"shop": [dead.address]})
        await served_by(w, "dead")
        await dead.die()
    asked = len(w.asks)
    said = {"x_dovecote_key": "key-of-one", "x_dovecote_user": "ann", "x_gw_ask": f"{APP} key-of-one - - u"}
    seen = (await w.send("POST", APP, body=b"x", **said)).json()
    assert (seen["name"], len(w.asks) == asked) == ("a", way == "warm")
    assert "key-of-one" not in json.dumps(seen)
    assert not [name for name in seen["headers"] if name.startswith(("x-gw-", "x-dovecote-"))]
    assert all(ask.credential == "" for ask in w.asks)


async def test_loads_count_what_is_in_flight_and_what_has_been(w: World) -> None:
    assert w.gateway is not None
    gateway = w.gateway
    instance = await w.instance("a")
    w.points_to(instance)
    await gateway.set_apps({"shop": [instance.address]})

    async def is_counted() -> bool:
        await w.get(APP)
        load = (await gateway.loads()).get("shop")
        return load is not None and load.total > 0

    await until(is_counted)
    before = (await gateway.loads())["shop"].total
    pending = [asyncio.create_task(w.get(APP, "/gated")) for _ in range(5)]

    async def five_are_in_flight() -> bool:
        load = (await gateway.loads())["shop"]
        return (load.active, load.total) == (5, before + 5)

    await until(five_are_in_flight)
    for _ in pending:
        instance.gate.release()
    await asyncio.gather(*pending)
    assert (await gateway.loads())["shop"].active == 0


async def test_requests_in_flight_are_spread_over_the_instances(w: World) -> None:
    assert w.gateway is not None
    first, second = await w.instance("first"), await w.instance("second", "127.0.0.2")
    w.points_to(first)
    await w.gateway.set_apps({"shop": [first.address, second.address]})
    await served_by(w, "first", "second")
    pending = []
    for n in range(10):
        pending.append(asyncio.create_task(w.get(APP, "/gated")))

        async def has_arrived(n: int = n) -> bool:
            return sum(one.seen.count("GET /gated") for one in (first, second)) == n + 1

        await until(has_arrived)
    assert 4 <= first.seen.count("GET /gated") <= 6  # the last answer before them may still have counted
    for instance in (first, second):
        for _ in range(10):
            instance.gate.release()
    await asyncio.gather(*pending)


async def test_no_request_is_lost_while_instances_come_and_go(w: World) -> None:
    """Also in the moments in which there is none: those are held, and answered by the one that resolve names."""
    assert w.gateway is not None
    gateway = w.gateway
    a, b = await w.instance("a"), await w.instance("b", "127.0.0.2")
    w.points_to(a)
    answers: list[int] = []
    is_over = asyncio.Event()

    async def visitor() -> None:
        for n in itertools.count():
            if is_over.is_set():
                return
            method = ("GET", "POST")[n % 2]
            answers.append((await w.send(method, APP, body=b"x" if n % 2 else b"")).status_code)

    visitors = [asyncio.create_task(visitor()) for _ in range(8)]
    sets = [[a.address], [], [b.address], [a.address, b.address], []]
    for n in range(60):
        seen = len(answers)
        await gateway.set_apps({"shop": sets[n % len(sets)]})

        async def some_were_answered(seen: int = seen) -> bool:
            return len(answers) >= seen + 20

        await until(some_were_answered)
    is_over.set()
    await asyncio.gather(*visitors)
    assert set(answers) == {200}
    assert {"a", "b"} <= {one.name for one in (a, b) if one.seen}
    assert w.asks


async def test_a_dead_instance_of_an_app_costs_no_request(w: World) -> None:
    assert w.gateway is not None
    dead, alive = await w.instance("dead"), await w.instance("alive", "127.0.0.2")
    w.points_to(alive)
    await w.gateway.set_apps({"shop": [dead.address, alive.address]})
    await served_by(w, "dead", "alive")
    await dead.die()
    answers = [await w.send("POST", APP, body=b"x") for _ in range(30)]
    assert {one.status_code for one in answers} == {200}


async def test_a_hundred_apps_are_told_at_once_and_stay_apart(w: World) -> None:
    assert w.gateway is not None
    instances = [await w.instance(f"i{n}") for n in range(3)]
    apps = {f"app-{n}": [instances[n % 3].address] for n in range(100)}

    async def answer(ask: Ask) -> Answer:
        return Answer(apps[ask.name][0], learn=False)

    w.answers = answer
    await w.gateway.set_apps(apps)

    async def none_asks() -> bool:
        before = len(w.asks)
        for n in range(100):
            assert (await w.get(f"app-{n}.app.localhost")).json()["name"] == f"i{n % 3}"
        return len(w.asks) == before

    await until(none_asks)


async def test_an_app_that_was_taken_away_is_asked_about(w: World) -> None:
    assert w.gateway is not None
    instance = await w.instance("a")
    w.points_to(instance)
    await w.gateway.set_apps({"shop": [instance.address]})
    await served_by(w, "a")
    w.answers = w._nobody
    await w.gateway.set_apps({})

    async def is_unknown() -> bool:
        return (await w.get(APP)).status_code == 404

    await until(is_unknown)


@pytest.mark.parametrize("change", ["other", "none", "removed"])
async def test_a_request_in_flight_outlives_a_change_of_instances(w: World, change: str) -> None:
    assert w.gateway is not None
    old, new = await w.instance("old"), await w.instance("new", "127.0.0.2")
    w.points_to(old)
    await w.gateway.set_apps({"shop": [old.address]})
    await served_by(w, "old")
    pending = asyncio.create_task(w.send("POST", APP, "/gated", body=b"x"))

    async def has_arrived() -> bool:
        return "POST /gated" in old.seen

    await until(has_arrived)
    w.points_to(new)
    apps: dict[str, dict[str, list[str]]] = {"other": {"shop": [new.address]}, "none": {"shop": []}, "removed": {}}
    await w.gateway.set_apps(apps[change])
    await served_by(w, "new")
    old.gate.release()
    answer = await pending
    assert (answer.status_code, answer.json()["name"]) == (200, "old")


async def test_load_is_unknown_and_not_nothing_while_envoy_is_away(w: World) -> None:
    """Zeros would make what is counted afterwards look like visits, and start apps that nobody visits."""
    assert w.gateway is not None
    await w.gateway.stop()
    with pytest.raises(Failed):
        await w.build().loads()
