"""Functions over the wire, on the real rooms: all that is said of one is kept, shown and changed by parts."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from dovecote.api.app import build
from dovecote.api.rooms import Rooms
from dovecote.control.fleet import Fleet
from dovecote.control.metering import Metering
from dovecote.control.snapshots import Snapshots
from dovecote.control.templates import Building, Ground, Recipe
from dovecote.control.volumes import Contents, Volumes
from dovecote.errors import Conflict, Failed
from dovecote.model.addresses import Addresses
from dovecote.model.serving import Hook, Hooks
from dovecote.model.states import SessionState
from dovecote.sdk import AsyncDovecote, Network, Revision, Rules, Start
from tests.unit.control_world import HOST_ID, START, World, world_on
from tests.unit.memory_host import Clock, MemoryHost

pytestmark = pytest.mark.anyio

SHOP: dict[str, Any] = {
    "name": "shop",
    "start": {"command": "python3 shop.py", "port": 8000},
    "affinity": {
        "modes": ["header", "cookie", "mcp-http"],
        "header": "X-Shop-Session",
        "sse_path": "/events",
        "ttl": 3600,
        "idle_after": 90.5,
        "refuses_reuse": True,
        "strict_ids": True,
    },
    "sharing": {"sessions": 20, "requests": 10, "instances": 5},
    "hooks": {"initialize": {"path": "/initialize", "timeout": 60}, "pre_stop": {"command": "sync"}},
    "invoking": {
        "retries": 5,
        "max_age": 60,
        "at_once": 7,
        "on_failure": {"to": "webhook", "target": "https://shop.example/failed"},
    },
    "public": True,
}


@dataclass
class Api:
    world: World
    http: httpx.AsyncClient
    other: httpx.AsyncClient
    key: str
    dovecote: AsyncDovecote

    async def made(self, **fields: Any) -> dict[str, Any]:
        answer = await self.http.post("/v1/functions", json=SHOP | fields)
        assert answer.status_code == 201, answer.text
        return cast(dict[str, Any], answer.json())

    async def changed(self, **fields: Any) -> dict[str, Any]:
        answer = await self.http.patch("/v1/functions/shop", json=fields)
        assert answer.status_code == 200, answer.text
        return cast(dict[str, Any], answer.json())

    async def refused(self, method: str, path: str, json: Any = None) -> str:
        answer = await self.http.request(method, path, json=json)
        assert answer.status_code >= 400, answer.text
        return cast(str, answer.json()["error"]["code"])


@asynccontextmanager
async def api_on(world: World) -> AsyncIterator[Api]:
    volumes = Volumes(world.store, Fleet({HOST_ID: world.host}), world.tenancy, world.sessions)
    rooms = Rooms(
        tenancy=world.tenancy,
        sessions=world.sessions,
        sandboxes=world.sandboxes,
        apps=world.apps,
        functions=world.functions,
        chats=cast(Any, None),
        snapshots=Snapshots(world.store, world.sessions, world.functions),
        addresses=Addresses("localhost", 8080),
        volumes=volumes,
        contents=Contents(world.store, world.sessions, volumes),
        invocations=cast(Any, None),
        webhook_secrets=cast(Any, None),
        templates=world.templates,
        metering=Metering(world.sessions),
        deployments=world.deployments,
    )
    transport = httpx.ASGITransport(build(rooms, tools=cast(Any, None), is_ready=lambda: True, version="0.0.0"))
    keys = [(await world.tenancy.create_key(tenant, "a key")).secret for tenant in (world.tenant, world.other)]
    clients = [
        httpx.AsyncClient(transport=transport, base_url="http://localhost", headers={"authorization": f"Bearer {key}"})
        for key in keys
    ]
    sdk = AsyncDovecote(keys[0], "http://localhost", transport=transport)
    yield Api(world, clients[0], clients[1], keys[0], sdk)
    for client in clients:
        await client.aclose()


@pytest.fixture
async def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Api]:
    async with world_on(MemoryHost(Clock()), tmp_path, monkeypatch) as world, api_on(world) as api:
        yield api


async def test_all_that_is_said_of_a_function_is_shown(api: Api) -> None:
    await api.made()
    shown = (await api.http.get("/v1/functions/shop")).json()
    assert shown["affinity"] == SHOP["affinity"] | {"header": "x-shop-session"}
    assert shown["invoking"] == SHOP["invoking"] | {"on_success": None}
    assert shown["revision"]["sharing"] == SHOP["sharing"]
    assert shown["revision"]["hooks"] == {
        "initialize": {"path": "/initialize", "command": "", "timeout": 60},
        "pre_freeze": None,
        "pre_stop": {"path": "", "command": "sync", "timeout": 30},
    }
    assert shown["address"] == "http://shop.fn.localhost:8080"
    assert shown["path_address"] == "http://localhost:8080/fn/shop/"
    slug = (await api.world.functions.get(api.world.tenant, "shop")).slug
    assert shown["public_address"] == f"http://{slug}.fn.localhost:8080"
    listed = (await api.http.get("/v1/functions")).json()["items"]
    assert [each for each in listed if each["name"] == "shop"] == [shown]


async def test_the_client_says_what_a_function_is_and_changes_what_it_names(api: Api) -> None:
    functions = api.dovecote.functions
    network, rules = Network(False, ["10.1.0.0/16"]), Rules(["node_modules/"], ["*.sqlite"], "make deps")
    made = await functions.create("shop", network=network, rules=rules, start=Start("serve", 80))
    assert (made.revision.network, made.revision.rules) == (network, rules)
    same = await functions.update("shop", env={"A": "1"})
    assert (same.revision.start, same.revision.rules) == (made.revision.start, rules)
    cleared = await functions.update("shop", start=None)
    assert (cleared.revision.start, cleared.revision.rules, cleared.revision.number) == (None, rules, 3)
    changed = await functions.update("shop", rules=Rules(["dist/"]), network=Network())
    assert (changed.revision.rules, changed.revision.network) == (Rules(["dist/"]), Network())
    assert (changed.revision.start, changed.revision.env) == (None, {"A": "1"})


async def test_a_header_alone_is_short_for_affinity_with_it(api: Api) -> None:
    fields = {"affinity": {}, "affinity_header": "X-Chat"}
    made = await api.made(**fields)
    assert (made["affinity"]["header"], made["affinity"]["modes"]) == ("x-chat", ["header"])
    assert made["affinity_header"] == "x-chat"
    two = SHOP | {"name": "two", "affinity": {"header": "x-one"}, "affinity_header": "x-two"}
    assert await api.refused("POST", "/v1/functions", two) == "invalid"


@pytest.mark.parametrize(
    "fields",
    [
        {"affinity": {"modes": ["none", "cookie"]}},
        {"affinity": {"modes": ["magic"]}},
        {"affinity": {"ttl": -1}},
        {"affinity": {"header": "authorization"}},
        {"sharing": {"sessions": 201}},
        {"hooks": {"pre_stop": {"path": "/a", "command": "b"}}},
        {"hooks": {"initialize": {"path": "/a", "timeout": 301}}},
        {"invoking": {"retries": 9}},
        {"invoking": {"on_success": {"to": "pigeon", "target": "x"}}},
        {"sharings": {}},
    ],
)
async def test_what_cannot_be_is_refused_and_changes_nothing(api: Api, fields: dict[str, Any]) -> None:
    assert await api.refused("POST", "/v1/functions", SHOP | fields) in ("invalid", "malformed_header")
    await api.made()
    before = (await api.http.get("/v1/functions/shop")).json()
    await api.refused("PATCH", "/v1/functions/shop", fields)
    assert (await api.http.get("/v1/functions/shop")).json() == before


async def test_how_it_serves_changes_by_parts_and_at_once(api: Api) -> None:
    made = await api.made()
    changed = await api.changed(affinity={"ttl": None, "idle_after": 5}, invoking={"retries": 0}, public=False)
    assert changed["affinity"] == made["affinity"] | {"ttl": None, "idle_after": 5}
    assert changed["invoking"] == made["invoking"] | {"retries": 0}
    assert changed["public_address"] is None
    assert changed["revision_id"] == made["revision_id"]


async def test_what_it_runs_changes_as_a_new_revision_for_new_sessions(api: Api) -> None:
    made = await api.made()
    world = api.world
    old = await world.sessions.create(world.tenant, function="shop", wake=False)
    changed = await api.changed(env={"A": "1"}, sharing={"sessions": 3}, hooks={"initialize": None}, spec="nano")
    revision = changed["revision"]
    assert (revision["number"], revision["env"], revision["spec"]) == (2, {"A": "1"}, "nano")
    assert revision["sharing"] == SHOP["sharing"] | {"sessions": 3}
    assert revision["hooks"]["initialize"] is None
    assert revision["hooks"]["pre_stop"] == made["revision"]["hooks"]["pre_stop"]
    assert revision["start"] == made["revision"]["start"]
    new = await world.sessions.create(world.tenant, function="shop", wake=False)
    assert (await world.record(old)).revision_id == made["revision_id"]
    assert new.revision_id == changed["revision_id"]


async def test_a_change_that_changes_nothing_makes_no_revision(api: Api) -> None:
    made = await api.made()
    assert (await api.changed(env={}, sharing={"sessions": 20}))["revision_id"] == made["revision_id"]
    assert (await api.changed())["revision_id"] == made["revision_id"]


async def test_revisions_are_listed_and_each_can_be_gone_back_to(api: Api) -> None:
    first = await api.made()
    await api.changed(env={"A": "1"})
    third = await api.changed(env={"A": "2"})
    listed = (await api.http.get("/v1/functions/shop/revisions", params={"limit": 2})).json()
    assert [(each["number"], each["is_current"]) for each in listed["items"]] == [(3, True), (2, False)]
    rest = (await api.http.get("/v1/functions/shop/revisions", params={"after": listed["next"]})).json()
    assert [each["number"] for each in rest["items"]] == [1]
    back = (await api.http.post("/v1/functions/shop/rollback", json={"revision": 1})).json()
    assert back["revision_id"] == first["revision_id"]
    assert (await api.changed(env={"A": "3"}))["revision"]["number"] == 4
    forward = (await api.http.post("/v1/functions/shop/rollback", json={"revision": 3})).json()
    assert forward["revision_id"] == third["revision_id"]
    assert await api.refused("POST", "/v1/functions/shop/rollback", {"revision": 9}) == "no_such_revision"


async def test_what_is_removed_ends_with_its_sessions_and_its_name_is_free(api: Api) -> None:
    await api.made(sharing={"sessions": 1})
    world = api.world
    awake = await world.sessions.create(world.tenant, function="shop")
    resting = await world.sessions.create(world.tenant, function="shop", wake=False)
    bystander = await world.sessions.create(world.tenant)
    assert (await api.http.delete("/v1/functions/shop")).status_code == 204
    for session in (awake, resting):
        record = await world.record(session)
        assert record.state is SessionState.ENDED
        assert record.reason == "the function shop was removed"
    assert [seen.owner for seen in await world.host.observe()] == [bystander.id]
    assert await api.refused("GET", "/v1/functions/shop") == "no_such_function"
    assert await api.refused("DELETE", "/v1/functions/shop") == "no_such_function"
    await api.made()


async def test_sandboxes_and_functions_of_apps_are_not_removed_like_this(api: Api) -> None:
    assert await api.refused("DELETE", "/v1/functions/sandbox") == "is_built_in"
    assert await api.refused("PATCH", "/v1/functions/sandbox", {"sharing": {"sessions": 2}}) == "invalid"
    world = api.world
    session = await world.sessions.create(world.tenant)
    start = {"command": "python3 app.py", "port": 8000}
    await api.http.post("/v1/apps", json={"session_id": session.id, "name": "blog", "start": start})
    (name,) = [
        each["name"]
        for each in (await api.http.get("/v1/functions")).json()["items"]
        if each["name"].startswith("app-")
    ]
    for method, path, body in (
        ("DELETE", "", None),
        ("PATCH", "", {"env": {"A": "1"}}),
        ("POST", "/rollback", {"revision": 1}),
    ):
        assert await api.refused(method, f"/v1/functions/{name}{path}", body) == "belongs_to_app"


async def test_nobody_sees_or_changes_what_another_tenant_has(api: Api) -> None:
    await api.made()
    for method, path, body in (
        ("GET", "", None),
        ("GET", "/revisions", None),
        ("PATCH", "", {"public": False}),
        ("POST", "/rollback", {"revision": 1}),
        ("DELETE", "", None),
    ):
        answer = await api.other.request(method, f"/v1/functions/shop{path}", json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "no_such_function")
    assert (await api.http.get("/v1/functions/shop")).status_code == 200


async def test_two_changes_from_one_look_are_not_both_made(api: Api) -> None:
    await api.made()
    functions = api.world.functions
    seen = await functions.get(api.world.tenant, "shop")
    await functions.update(seen, env={"A": "1"})
    with pytest.raises(Conflict) as caught:
        await functions.update(seen, env={"A": "2"})
    assert caught.value.code == "stale"
    _, revisions = await functions.revisions(api.world.tenant, "shop")
    assert [each.env for each in revisions] == [{"A": "1"}, {}]


async def test_how_hooks_went_is_shown_of_functions_and_apps(api: Api) -> None:
    world = api.world
    await world.functions.create(world.tenant, "served", start=START, hooks=Hooks(initialize=Hook(command="begin")))
    session = await world.sessions.create(world.tenant, function="served")
    await world.sessions.wake(world.tenant, session.id)
    await world.apps.publish(world.tenant, session.id, name="site", start=START)
    world.host.exits["begin"] = 3
    with pytest.raises(Failed):
        await world.apps.route("site")
    [ran] = (await api.http.get("/v1/functions/served/hooks")).json()["items"]
    assert (ran["hook"], ran["is_ok"]) == ("initialize", True)
    [failed] = (await api.http.get("/v1/apps/site/hooks")).json()["items"]
    assert (failed["is_ok"], failed["instance_id"] != ran["instance_id"]) == (False, True)
    assert "exit code 3" in failed["reason"]
    assert (await api.other.get("/v1/functions/served/hooks")).status_code == 404
    assert (await api.other.get("/v1/apps/site/hooks")).status_code == 404


async def test_a_client_hears_how_much_of_its_files_has_left(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def built(building: Building, recipe: Recipe, ground: Ground) -> Ground:
        return ground  # trees in memory hold no directories

    monkeypatch.setattr(Building, "run", built)
    await api.made()
    (tmp_path / "large").write_bytes(os.urandom(700_000))
    client = AsyncDovecote(api.key, "http://localhost", transport=api.http._transport)
    told: list[tuple[int, int]] = []
    *_, revision = [
        event
        async for event in client.functions.put_files(
            "shop", tmp_path, current=False, on_sent=lambda done, total: told.append((done, total))
        )
    ]
    assert isinstance(revision, Revision)
    assert (revision.number, revision.is_current) == (2, False)
    (total,) = {total for _, total in told}
    assert len(told) > 2
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert told[-1][0] == total > 700_000
    await client.aclose()
