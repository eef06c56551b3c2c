"""The API's routes of sessions, and of what is made of and around them: apps, chats, keys and templates."""

from __future__ import annotations

import json

import httpx
import pytest

from dovecote.errors import Failed
from tests.unit.api_answers import opened, problem
from tests.unit.fake_rooms import OTHER_KEY, Rooms

pytestmark = pytest.mark.anyio


async def test_a_session_is_made_changed_and_ended(http: httpx.AsyncClient) -> None:
    session = await opened(http, key="u1:c1", idle_after_seconds=30)
    found = (await http.get(f"/v1/sessions/{session}")).json()
    assert (found["key"], found["state"], found["idle_after_seconds"]) == ("u1:c1", "ready", 30)
    assert found["port_address"] == f"http://{{port}}-{found['slug']}.box.localhost:8080"
    assert found["address"] is None
    assert problem(await http.post("/v1/sessions", json={"key": "u1:c1"})) == (409, "exists")
    changed = await http.patch(f"/v1/sessions/{session}", json={"idle_after_seconds": 60})
    assert changed.json()["idle_after_seconds"] == 60
    started = await http.put(f"/v1/sessions/{session}/start", json={"command": "node .", "port": 3000})
    assert started.json()["address"] == f"http://3000-{found['slug']}.box.localhost:8080"
    for verb, state in (("freeze", "frozen"), ("park", "parked"), ("wake", "ready"), ("save", "ready")):
        assert (await http.post(f"/v1/sessions/{session}:{verb}")).json()["state"] == state
    assert (await http.get(f"/v1/sessions/{session}/instance")).json()["pid"] == 4242
    ended = await http.delete(f"/v1/sessions/{session}")
    assert (ended.status_code, ended.content) == (204, b"")


async def test_sessions_are_listed_in_pages_and_only_to_their_tenant(http: httpx.AsyncClient) -> None:
    made = [await opened(http, wake=False) for _ in range(5)]
    seen: list[str] = []
    after = ""
    for _ in range(10):
        page = (await http.get(f"/v1/sessions?limit=2&after={after}" if after else "/v1/sessions?limit=2")).json()
        seen += [each["id"] for each in page["items"]]
        if page["next"] is None:
            break
        after = page["next"]
    assert seen == made
    other = {"authorization": f"Bearer {OTHER_KEY}"}
    assert (await http.get("/v1/sessions", headers=other)).json()["items"] == []
    assert problem(await http.get(f"/v1/sessions/{made[0]}", headers=other)) == (404, "no_such_session")


async def test_leases_and_why_it_is_awake(http: httpx.AsyncClient) -> None:
    path = f"/v1/sessions/{await opened(http)}"
    assert (await http.post(f"{path}/lease", json={"seconds": 60})).json()["awake_until"] is not None
    assert (await http.delete(f"{path}/lease")).status_code == 200
    for refused in ({"seconds": 0}, {"seconds": 86401}, {}):
        assert (await http.post(f"{path}/lease", json=refused)).status_code == 400
    found = (await http.get(f"{path}/activity")).json()
    assert found["reasons"][0]["text"] == "`npm run dev` runs"
    assert found["next"][0]["move"] == "end"
    assert found["hooks"][0]["reason"] == "it answered 500"
    assert (found["breaches"], found["last_breach"]["reason"]) == (1, "its processes were killed")


async def test_an_app_is_published_changed_and_unpublished(http: httpx.AsyncClient) -> None:
    session = await opened(http)
    made = await http.post("/v1/apps", json={"session_id": session, "name": "post", "idle_after_seconds": 5})
    assert (made.status_code, made.json()["address"]) == (201, "http://post.app.localhost:8080")
    changed = await http.patch("/v1/apps/post", json={"maximum": 9})
    assert (changed.json()["maximum"], changed.json()["idle_after_seconds"]) == (9, 5)
    assert (await http.get("/v1/apps/post/instances")).json() == {"items": [], "next": None}
    assert (await http.delete("/v1/apps/post")).status_code == 204
    assert problem(await http.get("/v1/apps/post")) == (404, "no_such_app")
    assert problem(await http.get("/v1/apps/Post")) == (400, "malformed_name")


async def test_chats_keys_and_tiers(http: httpx.AsyncClient) -> None:
    chat = (await http.post("/v1/chats", json={"session_id": await opened(http), "title": "t"})).json()
    turn = await http.post(f"/v1/chats/{chat['id']}/turns", json={"messages": [{"role": "user"}]})
    assert (turn.status_code, turn.json()["number"]) == (201, 1)
    assert (await http.get(f"/v1/chats/{chat['id']}/turns")).json()["items"][0]["messages"] == [{"role": "user"}]
    key = (await http.post("/v1/keys", json={"name": "ci"})).json()
    assert key["secret"].startswith("dvc_")
    listed = (await http.get("/v1/keys")).json()["items"]
    assert [each["name"] for each in listed] == ["ci"]
    assert "secret" not in listed[0]
    assert (await http.delete(f"/v1/keys/{key['id']}")).status_code == 204
    assert (await http.put("/v1/users/u 42", json={"tier": "vip"})).json()["tier"] == "vip"
    assert (await http.get("/v1/users/u 42")).json()["tier"] == "vip"
    assert problem(await http.get("/v1/users/nobody")) == (404, "not_found")
    assert [each["name"] for each in (await http.get("/v1/users")).json()["items"]] == ["u 42"]
    tiers = {each["name"]: each for each in (await http.get("/v1/tiers")).json()["items"]}
    assert (tiers["default"]["is_promised"], tiers["vip"]["is_promised"]) == (False, True)


async def test_making_a_template_tells_how_it_goes_on(http: httpx.AsyncClient, rooms: Rooms) -> None:
    archive = b" " * (2 << 20)
    uploaded = await http.post("/v1/templates:upload", params={"name": "new"}, content=archive)
    lines = [json.loads(line) for line in uploaded.text.splitlines()]
    assert [line["type"] for line in lines] == ["step", "output", "ready"]
    assert lines[-1]["template"]["user"] == "root"
    assert rooms.templates.received == len(archive)
    rooms.templates.failure = Failed("no such image", code="image_unreachable")
    failed = await http.post("/v1/templates", json={"name": "new", "reference": "a/b"})
    lines = [json.loads(line) for line in failed.text.splitlines()]
    assert [line["type"] for line in lines] == ["step", "error"]
    assert lines[-1]["error"]["code"] == "image_unreachable"
