"""E2B's control API: sandboxes as its clients know them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote, urlencode

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as some
from starlette.datastructures import Headers

from dovecote.api.e2b.auth import decode_key, encode_key, secret_of
from dovecote.api.e2b.entrance import CONTROL
from dovecote.api.e2b.repeating import KEEP, Repeating
from dovecote.control.tenancy.keys import new_secret
from dovecote.errors import Invalid, Unauthenticated
from dovecote.model.sizes import NetworkPolicy
from dovecote.model.states import SessionState
from tests.unit.e2b_world import E2B, e2b_on

pytestmark = pytest.mark.anyio


@pytest.fixture
async def e2b(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[E2B]:
    async with e2b_on(tmp_path, monkeypatch) as there:
        yield there


def problem(answer: httpx.Response) -> int:
    """Status of an error, after a look at its shape."""
    body = answer.json()
    assert set(body) == {"code", "message"}
    assert body["code"] == answer.status_code
    assert body["message"]
    return answer.status_code


def moment(text: object) -> datetime:
    return datetime.fromisoformat(str(text))


# -- keys


def test_a_key_is_read_in_either_form() -> None:
    secret = new_secret()
    assert decode_key(encode_key(secret)) == decode_key(secret) == secret
    assert set(encode_key(secret).removeprefix("e2b_")) <= set("0123456789abcdef")


@given(some.text())
def test_no_text_breaks_the_reading_of_keys(text: str) -> None:
    assert isinstance(decode_key(text), str)
    assert isinstance(decode_key("e2b_" + text), str)


def test_a_key_may_come_in_either_header() -> None:
    assert secret_of(Headers({"x-api-key": "one", "authorization": "Bearer two"})) == "one"
    assert secret_of(Headers({"authorization": "bearer two"})) == "two"
    with pytest.raises(Unauthenticated):
        secret_of(Headers({"authorization": "Basic dXNlcjo="}))


async def test_without_a_good_key_nothing_is_told(e2b: E2B) -> None:
    for headers in ({}, {"x-api-key": "e2b_00"}, {"x-api-key": new_secret()}):
        answer = await e2b.http.get("/v2/sandboxes", headers={"x-api-key": "", **headers})
        assert problem(answer) == 401


@pytest.mark.parametrize("path", ["/sandboxes", "/v2/sandboxes/x/connect", "/v3/templates", "/volumecontent/v/file"])
def test_paths_of_the_control_api_are_known(path: str) -> None:
    assert CONTROL.fullmatch(path)


@pytest.mark.parametrize("path", ["/", "/v1/sessions", "/v1/templates", "/metrics", "/sandboxesx", "/v4/sandboxes"])
def test_our_own_paths_are_left_alone(path: str) -> None:
    assert not CONTROL.fullmatch(path)


# -- create


async def test_a_new_sandbox_is_a_session(e2b: E2B) -> None:
    made = await e2b.create(timeout=60, metadata={"who": "ada"}, envVars={"A": "1"})
    session = await e2b.world.sessions.by_slug(made["sandboxID"])
    assert session.state is SessionState.READY
    assert session.env == {"A": "1"}
    assert made["envdAccessToken"] == session.token
    assert (made["envdVersion"], made["domain"], made["templateID"]) == ("0.6.4", "box.localhost:8080", "base")
    info = await e2b.info(made["sandboxID"])
    assert info["metadata"] == {"who": "ada"}
    assert (info["state"], info["cpuCount"], info["memoryMB"]) == ("running", 1, 1024)
    assert moment(info["endAt"]) - moment(info["startedAt"]) == timedelta(seconds=60)


async def test_older_clients_choose_whether_a_token_is_needed(e2b: E2B) -> None:
    for secure in (True, False):
        answer = await e2b.http.post("/sandboxes", json={"templateID": "base", "secure": secure})
        assert ("envdAccessToken" in answer.json()) is secure


async def test_fields_of_later_clients_are_passed_over(e2b: E2B) -> None:
    await e2b.create(somethingNew={"x": 1})


async def test_what_cannot_be_had_is_said(e2b: E2B) -> None:
    refused: list[dict[str, object]] = [
        {"mcp": {"browserbase": {}}},
        {"iam": {"tokens": {"a": {}}}},
        {"network": {"allowPublicTraffic": False}},
        {"network": {"allowOut": ["example.com"]}},
        {"network": {"rules": {"example.com": []}}},
        {"network": {"dnsServers": ["192.0.2.1"]}},
    ]
    for fields in refused:
        answer = await e2b.http.post("/v2/sandboxes", json={"templateID": "base", **fields})
        assert problem(answer) == 501
    assert problem(await e2b.http.post("/v2/sandboxes", json={"templateID": "nothing"})) == 404
    assert problem(await e2b.http.post("/v2/sandboxes", json={"timeout": -1})) == 400
    assert problem(await e2b.http.post("/v2/sandboxes", content=b"{")) == 400
    for field in (b'"envVars": {"a=b": ""}', b'"envVars": {"a": "\\ud800"}', b'"metadata": {"a": "\\ud800"}'):
        assert problem(await e2b.http.post("/v2/sandboxes", content=b'{"templateID": "base", %b}' % field)) == 400
    assert e2b.world.host.instances == {}


async def test_a_repeated_request_makes_one_sandbox(e2b: E2B) -> None:
    async def create(key: str, metadata: dict[str, str]) -> httpx.Response:
        body = {"templateID": "base", "metadata": metadata}
        return await e2b.http.post("/v2/sandboxes", json=body, headers={"idempotency-key": key})

    answers = await asyncio.gather(*[create("k", {}) for _ in range(5)])
    assert {(answer.status_code, answer.json()["sandboxID"]) for answer in answers} == {
        (201, answers[0].json()["sandboxID"])
    }
    assert problem(await create("k", {"other": "body"})) == 400
    assert (await create("l", {})).json() != answers[0].json()
    there = await e2b.stranger.post("/v2/sandboxes", json={"templateID": "base"}, headers={"idempotency-key": "k"})
    assert there.json()["sandboxID"] != answers[0].json()["sandboxID"]


async def test_a_failure_is_tried_again_and_answers_are_forgotten_in_time() -> None:
    now = 0.0
    repeating = Repeating(lambda: now)
    calls = 0

    async def act() -> str:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise Invalid("not yet")
        return str(calls)

    with pytest.raises(Invalid):
        await repeating.once("t", "k", b"", act)
    assert await repeating.once("t", "k", b"", act) == "2"
    assert await repeating.once("t", "k", b"", act) == "2"
    now = KEEP + 1
    assert await repeating.once("t", "k", b"", act) == "3"


# -- whose


async def test_nobody_sees_or_ends_the_sandbox_of_another(e2b: E2B) -> None:
    made = (await e2b.create())["sandboxID"]
    assert (await e2b.stranger.get("/v2/sandboxes")).json() == []
    for method, path in (
        ("GET", ""),
        ("DELETE", ""),
        ("POST", "/pause"),
        ("POST", "/connect"),
        ("POST", "/timeout"),
        ("POST", "/refreshes"),
        ("POST", "/fork"),
        ("POST", "/snapshots"),
        ("PUT", "/network"),
        ("GET", "/metrics"),
        ("GET", "/logs"),
    ):
        body = {"timeout": 5} if method != "GET" else None
        answer = await e2b.stranger.request(method, f"/sandboxes/{made}{path}", json=body)
        assert problem(answer) == 404, path
    assert (await e2b.info(made))["state"] == "running"


async def test_a_killed_sandbox_is_not_there(e2b: E2B) -> None:
    made = (await e2b.create())["sandboxID"]
    assert (await e2b.http.delete(f"/sandboxes/{made}")).status_code == 204
    assert problem(await e2b.http.delete(f"/sandboxes/{made}")) == 404
    assert problem(await e2b.http.get(f"/sandboxes/{made}")) == 404
    assert (await e2b.http.get("/v2/sandboxes")).json() == []


async def test_one_whose_time_is_over_is_not_there(e2b: E2B) -> None:
    made = (await e2b.create())["sandboxID"]
    assert (await e2b.http.post(f"/sandboxes/{made}/timeout", json={"timeout": 0})).status_code == 204
    deadline = time.monotonic() + 10
    while (await e2b.http.get(f"/sandboxes/{made}")).status_code != 404:
        assert time.monotonic() < deadline
    assert (await e2b.http.get("/v2/sandboxes")).json() == []


# -- time


async def test_a_timeout_is_moved_either_way_and_refreshes_only_later(e2b: E2B) -> None:
    made = (await e2b.create(timeout=600))["sandboxID"]

    async def left() -> float:
        return (moment((await e2b.info(made))["endAt"]) - datetime.now(UTC)).total_seconds()

    await e2b.http.post(f"/sandboxes/{made}/refreshes", json={"duration": 60})
    assert await left() > 500
    await e2b.http.post(f"/sandboxes/{made}/timeout", json={"timeout": 60})
    assert await left() <= 60
    await e2b.http.post(f"/sandboxes/{made}/refreshes", json={"duration": 900})
    assert await left() > 800
    connected = await e2b.http.post(f"/v2/sandboxes/{made}/connect", json={"timeout": 10})
    assert connected.status_code == 200
    assert await left() > 800


# -- pause


async def test_pause_and_connect(e2b: E2B) -> None:
    made = await e2b.create(timeout=60)
    path = f"/sandboxes/{made['sandboxID']}"
    assert (await e2b.http.post(f"{path}/pause", json={})).status_code == 204
    assert problem(await e2b.http.post(f"{path}/pause", json={})) == 409
    info = await e2b.info(made["sandboxID"])
    assert (info["state"], info["pauseMode"]) == ("paused", "full")
    assert problem(await e2b.http.post(f"{path}/timeout", json={"timeout": 5})) == 404
    answer = await e2b.http.post(f"{path}/connect", json={"timeout": 60})
    assert (answer.status_code, answer.json()) == (201, made)
    assert (await e2b.info(made["sandboxID"]))["state"] == "running"
    assert problem(await e2b.http.post(f"{path}/resume", json={"timeout": 60})) == 409


async def test_a_pause_of_files_only_lets_its_memory_go(e2b: E2B) -> None:
    made = (await e2b.create())["sandboxID"]
    await e2b.http.post(f"/sandboxes/{made}/pause", json={"memory": False})
    assert e2b.world.host.instances == {}
    assert (await e2b.info(made))["pauseMode"] == "filesystem"
    assert (await e2b.http.post(f"/sandboxes/{made}/resume", json={})).status_code == 201


async def test_connecting_by_a_reboot_leaves_the_memory_behind(e2b: E2B) -> None:
    made = (await e2b.create())["sandboxID"]
    (before,) = e2b.world.host.instances
    await e2b.http.post(f"/sandboxes/{made}/pause", json={})
    await e2b.http.post(f"/sandboxes/{made}/connect", json={"timeout": 60, "memory": False})
    (after,) = e2b.world.host.instances
    assert after != before


async def test_what_happens_at_the_timeout_is_the_clients_choice(e2b: E2B) -> None:
    kept = (await e2b.create(autoPause=True, autoResume={"enabled": True}))["sandboxID"]
    assert (await e2b.info(kept))["lifecycle"] == {"onTimeout": "pause", "autoResume": True}
    other = (await e2b.create())["sandboxID"]
    assert (await e2b.info(other))["lifecycle"] == {"onTimeout": "kill", "autoResume": False}
    files = (await e2b.create(autoPause=True, autoPauseMemory=False))["sandboxID"]
    assert (await e2b.info(files))["lifecycle"] == {"onTimeout": "pause", "autoResume": False}
    resumes = {"templateID": "base", "autoResume": {"enabled": True}}
    for wrong in (resumes, {**resumes, "autoPause": True, "autoPauseMemory": False}):
        assert problem(await e2b.http.post("/v2/sandboxes", json=wrong)) == 400


# -- lists


async def test_lists_have_pages_the_newest_first(e2b: E2B) -> None:
    made = [(await e2b.create())["sandboxID"] for _ in range(5)]
    seen: list[str] = []
    token = ""
    while True:
        answer = await e2b.http.get("/v2/sandboxes", params={"limit": 2, **({"nextToken": token} if token else {})})
        seen += [each["sandboxID"] for each in answer.json()]
        token = answer.headers.get("x-next-token", "")
        if not token:
            break
    assert seen == made[::-1]
    oldest = await e2b.http.get("/v2/sandboxes", params={"order": "asc"})
    assert [each["sandboxID"] for each in oldest.json()] == made


async def test_lists_are_narrowed_by_state_and_by_metadata(e2b: E2B) -> None:
    one = (await e2b.create(metadata={"a b": "x&y", "n": "1"}))["sandboxID"]
    two = (await e2b.create(metadata={"n": "1"}))["sandboxID"]
    await e2b.http.post(f"/sandboxes/{two}/pause", json={})

    async def listed(path: str = "/v2/sandboxes", **params: str) -> set[str]:
        answer = await e2b.http.get(path, params=params)
        assert answer.status_code == 200, answer.text
        return {each["sandboxID"] for each in answer.json()}

    # As clients write it: quoted, and quoted again as a query.
    assert await listed(metadata=urlencode({quote("a b"): quote("x&y")})) == {one}
    assert await listed(metadata="n=1") == {one, two}
    assert await listed(metadata="n=1", state="paused") == {two}
    assert await listed(state="running") == {one}
    assert await listed(state="running,paused") == {one, two}
    assert await listed("/sandboxes", metadata="n=1") == {one}
    assert await listed(template="base") == {one, two}
    assert await listed(template="other") == set()
    assert await listed(startedAfter="2999-01-01T00:00:00Z") == set()
    assert problem(await e2b.http.get("/v2/sandboxes", params={"state": "lost"})) == 400
    assert problem(await e2b.http.get("/v2/sandboxes", params={"nextToken": "x"})) == 400


# -- network


@pytest.mark.parametrize(
    ("fields", "policy"),
    [
        ({}, None),
        ({"allowInternetAccess": True}, NetworkPolicy()),
        ({"allowInternetAccess": False}, NetworkPolicy(internet=False)),
        ({"network": {"denyOut": ["0.0.0.0/0"]}}, NetworkPolicy(internet=False)),
        (
            {"network": {"denyOut": ["0.0.0.0/0"], "allowOut": ["1.1.1.1"]}},
            NetworkPolicy(internet=False, allow_cidrs=("1.1.1.1",)),
        ),
        ({"network": {"denyOut": ["8.8.8.8"]}}, NetworkPolicy(deny_cidrs=("8.8.8.8",))),
        ({"network": {"denyOut": ["8.8.8.8"], "allowOut": ["0.0.0.0/0"]}}, NetworkPolicy()),
    ],
)
async def test_what_it_may_reach_is_a_policy(e2b: E2B, fields: dict[str, object], policy: NetworkPolicy | None) -> None:
    made = await e2b.create(**fields)
    assert (await e2b.world.sessions.by_slug(made["sandboxID"])).network == policy


async def test_what_it_may_reach_changes_while_it_runs(e2b: E2B) -> None:
    made = (await e2b.create())["sandboxID"]
    answer = await e2b.http.put(f"/sandboxes/{made}/network", json={"denyOut": ["8.8.8.8/32"]})
    assert answer.status_code == 204
    (instance,) = e2b.world.host.instances.values()
    assert instance.claim.network == NetworkPolicy(deny_cidrs=("8.8.8.8/32",))
    assert (await e2b.info(made))["network"] == {"allowOut": [], "denyOut": ["8.8.8.8/32"]}
    await e2b.http.put(f"/sandboxes/{made}/network", json={})
    assert instance.claim.network == NetworkPolicy()


# -- forks


async def test_forks_begin_with_the_files_of_their_original(e2b: E2B) -> None:
    made = (await e2b.create(metadata={"a": "1"}))["sandboxID"]
    source = await e2b.world.sessions.by_slug(made)
    await e2b.world.write(source, b"hello")
    answer = await e2b.http.post(f"/sandboxes/{made}/fork", json={"timeout": 60, "count": 2})
    assert answer.status_code == 201
    for each in answer.json():
        fork = await e2b.world.sessions.by_slug(each["sandbox"]["sandboxID"])
        assert await e2b.world.read(fork) == b"hello"
        assert fork.metadata == {"a": "1"}
        assert fork.token != source.token
    assert await e2b.world.store.tenant(e2b.world.tenant).snapshots.count() == 0


# -- snapshots


async def test_a_sandbox_begins_with_a_snapshot_by_id_or_by_name(e2b: E2B) -> None:
    made = (await e2b.create())["sandboxID"]
    await e2b.world.write(await e2b.world.sessions.by_slug(made), b"hello")
    answer = await e2b.http.post(f"/sandboxes/{made}/snapshots", json={"name": "mine"})
    assert answer.status_code == 201
    snapshot = answer.json()
    assert snapshot["names"] == ["mine:default"]
    await e2b.http.delete(f"/sandboxes/{made}")
    for name in (snapshot["snapshotID"], "mine", "mine:default"):
        again = await e2b.world.sessions.by_slug((await e2b.create(templateID=name, timeout=60))["sandboxID"])
        assert await e2b.world.read(again) == b"hello"
    answer = await e2b.stranger.post("/v2/sandboxes", json={"templateID": snapshot["snapshotID"]})
    assert problem(answer) == 404
    assert problem(await e2b.http.post(f"/sandboxes/{made}/snapshots", json={})) == 404


async def test_a_snapshot_of_memory_is_refused(e2b: E2B) -> None:
    made = (await e2b.create())["sandboxID"]
    assert problem(await e2b.http.post(f"/sandboxes/{made}/snapshots", json={"memory": True})) == 501


async def test_snapshots_are_listed_in_pages(e2b: E2B) -> None:
    made = [(await e2b.create())["sandboxID"] for _ in range(2)]
    taken = [
        (await e2b.http.post(f"/sandboxes/{one}/snapshots", json={"name": name})).json()["snapshotID"]
        for one in made
        for name in ("a", "b")
    ]
    await e2b.http.delete(f"/sandboxes/{made[0]}")

    async def listed(**params: str | int) -> tuple[list[str], str | None]:
        answer = await e2b.http.get("/snapshots", params=params)
        assert answer.status_code == 200, answer.text
        return [each["snapshotID"] for each in answer.json()], answer.headers.get("x-next-token")

    assert await listed() == (taken[::-1], None)
    assert await listed(sandboxID=made[0]) == (taken[1::-1], None)
    assert await listed(name="b") == ([taken[3], taken[1]], None)
    page, token = await listed(limit=3)
    assert page == taken[:0:-1]
    assert token is not None
    assert await listed(limit=3, nextToken=token) == ([taken[0]], None)
    assert await listed(sandboxID="nobody") == ([], None)
    assert (await e2b.stranger.get("/snapshots")).json() == []
    assert (await e2b.stranger.get("/snapshots", params={"sandboxID": made[1]})).json() == []


# -- metrics


async def test_metrics_of_one_and_of_many(e2b: E2B) -> None:
    one, two = [(await e2b.create())["sandboxID"] for _ in range(2)]
    theirs = (await e2b.stranger.post("/v2/sandboxes", json={"templateID": "base"})).json()["sandboxID"]
    (sample,) = (await e2b.http.get(f"/sandboxes/{one}/metrics")).json()
    assert (sample["cpuCount"], sample["memUsed"], sample["memTotal"]) == (1, 4096, 1 << 30)
    assert (await e2b.http.get(f"/sandboxes/{one}/metrics", params={"end": 0})).json() == []
    many = await e2b.http.get("/sandboxes/metrics", params={"sandbox_ids": f"{one},{two},{theirs},nobody"})
    assert set(many.json()["sandboxes"]) == {one, two}
