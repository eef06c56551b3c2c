"""The API: what comes in is checked, what goes out has one shape."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from dovecote import errors
from dovecote.api.errors import STATUS, render
from dovecote.api.rest.commands import EventText
from dovecote.control.sandboxes import Dropped, Exited, Finished, Output, Started
from dovecote.errors import DovecoteError, Failed
from dovecote.model.ids import new_id
from tests.unit.fake_rooms import KEY, NOW, OTHER_KEY, Rooms

pytestmark = pytest.mark.anyio
DOCS = Path(__file__).parents[2] / "docs" / "reference" / "api.md"


@pytest.fixture
def rooms() -> Rooms:
    return Rooms()


@pytest.fixture
async def http(rooms: Rooms) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(rooms.api()), base_url="http://localhost", headers=headers
    ) as client:
        yield client


async def opened(http: httpx.AsyncClient, **fields: object) -> str:
    answer = await http.post("/v1/sessions", json=fields)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def problem(answer: httpx.Response) -> tuple[int, str]:
    """Status and code of an error, after a look at its shape."""
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"code", "message", "hint", "request_id"}
    assert body["error"]["request_id"].startswith("req_")
    assert answer.headers["x-request-id"] == body["error"]["request_id"]
    return answer.status_code, body["error"]["code"]


# -- errors


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.Invalid("no"), 400),
        (errors.Invalid("no", code="malformed_id"), 400),
        (errors.Unauthenticated("no"), 401),
        (errors.Forbidden("no"), 403),
        (errors.NotFound("no"), 404),
        (errors.Gone("no"), 410),
        (errors.Gone("no", code="session_expired"), 401),
        (errors.Conflict("no"), 409),
        (errors.NoCapacity("no", code="too_many"), 429),
        (errors.Failed("no"), 500),
        (errors.Failed("no", code="instance_died"), 502),
        (errors.Failed("no", code="port_closed"), 502),
        (errors.StorageFailed("no", code="disk_full"), 507),
        (errors.StorageFailed("no", code="store_unreachable"), 503),
        (errors.StorageFailed("no", code="store_denied"), 503),
        (errors.DeadlineExceeded("no", code="start_timeout"), 504),
        (errors.Unsupported("no"), 501),
        (DovecoteError("no"), 500),
    ],
)
def test_each_error_has_its_status(error: DovecoteError, status: int) -> None:
    assert render(error, "req_x")[0] == status


def test_every_class_of_the_tree_is_in_the_table() -> None:
    def below(kind: type[DovecoteError]) -> set[type[DovecoteError]]:
        return {kind}.union(*(below(each) for each in kind.__subclasses__() if each.__module__ == "dovecote.errors"))

    assert below(DovecoteError) == set(STATUS)


def test_no_capacity_says_when_to_come_back() -> None:
    assert render(errors.NoCapacity("no"), "r")[1]["retry-after"] == "1"
    assert render(errors.NoCapacity("no", retry_after=2.2), "r")[1]["retry-after"] == "3"
    assert "retry-after" not in render(errors.Invalid("no"), "r")[1]


async def test_a_route_under_v1_needs_a_key_even_if_it_does_not_exist(rooms: Rooms) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(rooms.api()), base_url="http://localhost") as http:
        for path in ("/v1/sessions", "/v1/nothing", f"/v1/sessions/{new_id('ses')}/commands"):
            answer = await http.get(path)
            assert problem(answer) == (401, "unauthenticated")
            assert answer.headers["www-authenticate"] == "Bearer"
        assert problem(await http.get("/v1/sessions", headers={"x-dovecote-key": "wrong"}))[0] == 401
        assert (await http.get("/v1/sessions", headers={"x-dovecote-key": KEY})).status_code == 200


async def test_unknown_routes_and_wrong_methods_have_the_same_shape(http: httpx.AsyncClient) -> None:
    assert problem(await http.get("/v1/nothing")) == (404, "no_such_route")
    assert problem(await http.get("/nothing")) == (404, "no_such_route")
    assert problem(await http.put("/v1/sessions")) == (405, "method_not_allowed")


async def test_a_wrong_field_is_named(http: httpx.AsyncClient) -> None:
    for body, field in (
        ({"idle_after_seconds": "soon"}, "idle_after_seconds"),
        ({"colour": "red"}, "colour"),
        ({"env": {"A": 1}}, "env.A"),
    ):
        answer = await http.post("/v1/sessions", json=body)
        assert problem(answer) == (400, "invalid")
        assert field in answer.json()["error"]["message"]
    is_json = {"content-type": "application/json"}
    for said, headers in (("not JSON: ", is_json), ("not declared as JSON", {})):
        answer = await http.post("/v1/sessions", content=b"{", headers=headers)
        assert problem(answer) == (400, "invalid")
        assert said in answer.json()["error"]["message"]
    assert problem(await http.get("/v1/sessions?limit=0")) == (400, "invalid")


async def test_a_malformed_id_is_refused_before_any_lookup(http: httpx.AsyncClient, rooms: Rooms) -> None:
    for path in ("/v1/sessions/x", "/v1/sessions/ses_ABC", f"/v1/sessions/{new_id('app')}", "/v1/chats/1/turns"):
        assert problem(await http.get(path)) == (400, "malformed_id")
    assert problem(await http.post("/v1/sessions/x/commands", json={"command": "true"})) == (400, "malformed_id")
    assert rooms.sessions.lookups == 0
    assert rooms.sandboxes.calls == []


async def test_an_unforeseen_error_is_logged_once_with_its_request(
    http: httpx.AsyncClient, rooms: Rooms, caplog: pytest.LogCaptureFixture
) -> None:
    rooms.sessions.failure = RuntimeError("secret detail")
    with caplog.at_level(logging.ERROR):
        answer = await http.get(f"/v1/sessions/{new_id('ses')}")
    assert problem(answer) == (500, "internal")
    assert "secret" not in answer.text
    assert len(caplog.records) == 1
    assert answer.json()["error"]["request_id"] in caplog.text


async def test_a_json_body_is_bounded(http: httpx.AsyncClient) -> None:
    session = await opened(http)

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b" " * (1 << 16)

    for path in ("/v1/sessions", f"/v1/sessions/{session}/commands", f"/v1/sessions/{session}/commands/1/stdin"):
        method = "PUT" if path.endswith("stdin") else "POST"
        whole = await http.request(method, path, content=b" " * (2 << 20))
        assert problem(whole) == (413, "too_large")
        # Only a session has files that may be sent instead.
        assert ("/files" in whole.json()["error"]["hint"]) == (path != "/v1/sessions")
        assert problem(await http.request(method, path, content=pieces())) == (413, "too_large")


@pytest.mark.parametrize("path", ["/v1/templates", "/v1/templates/files", "/v1/templates:upload/x", "/v1/x/files"])
async def test_only_routes_that_say_so_take_larger_bodies(http: httpx.AsyncClient, path: str) -> None:
    for method in ("POST", "PUT"):
        assert problem(await http.request(method, path, content=b" " * (2 << 20))) == (413, "too_large")


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


# -- sessions


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


# -- commands


async def test_a_line_goes_through_the_shell_and_words_do_not(http: httpx.AsyncClient, rooms: Rooms) -> None:
    path = f"/v1/sessions/{await opened(http)}/commands"
    answer = await http.post(path, json={"command": "echo hi", "timeout_seconds": 5})
    assert answer.json() == {
        "stdout": "/bin/sh -c echo hi",
        "stderr": "",
        "exit_code": 0,
        "signal": None,
        "timed_out": False,
        "truncated": False,
    }
    await http.post(path, json={"command": ["echo", "hi"], "stdin": "é"})
    first, second = rooms.sandboxes.calls
    assert (first["argv"], first["timeout"]) == (("/bin/sh", "-c", "echo hi"), 5)
    assert (second["argv"], second["timeout"], second["stdin"]) == (("echo", "hi"), 60, "é".encode())


async def test_output_that_is_not_text_survives_as_base64(http: httpx.AsyncClient, rooms: Rooms) -> None:
    rooms.sandboxes.finish = lambda argv: Finished(b"\xff\x00", b"", 0, None, False, True)
    path = f"/v1/sessions/{await opened(http)}/commands"
    assert (await http.post(path, json={"command": "x"})).json()["stdout"] == "�\x00"
    assert (await http.post(path, json={"command": "x", "encoding": "base64"})).json()["stdout"] == "/wA="


async def test_ways_to_run_that_exclude_each_other_are_refused(http: httpx.AsyncClient) -> None:
    path = f"/v1/sessions/{await opened(http)}/commands"
    wrongs: tuple[dict[str, object], ...] = (
        {"stream": True, "detach": True},
        {"stream": True, "stdin": "x"},
        {"pty": {"rows": 2, "cols": 2}},
        {"command": []},
        {"command": ""},
        {"timeout_seconds": 0},
    )
    for wrong in wrongs:
        assert problem(await http.post(path, json={"command": "x", **wrong})) == (400, "invalid")


async def test_a_stream_gives_events_as_lines(http: httpx.AsyncClient, rooms: Rooms) -> None:
    rooms.sandboxes.events = [
        Started(3, 99, NOW),
        Output("stdout", 0, b"a\xc3"),
        Dropped(5),
        Output("stdout", 2, b"\xa9\n"),
        Exited(1, None, False, 0),
    ]
    answer = await http.post(f"/v1/sessions/{await opened(http)}/commands", json={"command": "x", "stream": True})
    assert answer.headers["content-type"] == "application/x-ndjson"
    events = [json.loads(line) for line in answer.text.splitlines()]
    assert [each["type"] for each in events] == ["started", "output", "dropped", "output", "exited"]
    assert "".join(each["data"] for each in events if each["type"] == "output") == "aé\n"
    assert events[-1] == {"type": "exited", "exit_code": 1, "signal": None, "timed_out": False}


def test_a_cut_character_at_the_end_is_not_lost() -> None:
    text = EventText("utf-8")
    text.render(Output("stderr", 0, b"\xc3"))
    lines = [json.loads(line) for line in text.render(Exited(0, None, False, 0)).splitlines()]
    assert [(each["type"], each.get("data")) for each in lines] == [("output", "�"), ("exited", None)]


async def test_a_refusal_is_an_error_and_not_a_stream(http: httpx.AsyncClient, rooms: Rooms) -> None:
    session = await opened(http)
    rooms.sandboxes.events = [errors.NotFound("no such program", code="command_not_found")]
    answer = await http.post(f"/v1/sessions/{session}/commands", json={"command": "x", "stream": True})
    assert problem(answer) == (404, "command_not_found")
    assert problem(await http.get(f"/v1/sessions/{session}/commands/9/stream")) == (404, "command_not_found")


async def test_a_stream_that_breaks_says_why_in_its_last_line(http: httpx.AsyncClient, rooms: Rooms) -> None:
    rooms.sandboxes.events = [Started(3, 99, NOW), errors.Failed("it died", code="instance_died")]
    answer = await http.post(f"/v1/sessions/{await opened(http)}/commands", json={"command": "x", "stream": True})
    last = json.loads(answer.text.splitlines()[-1])
    assert (last["type"], last["error"]["code"]) == ("error", "instance_died")


async def test_a_client_that_leaves_a_stream_detaches(rooms: Rooms) -> None:
    """The events are closed, nothing is signalled."""
    from dovecote.api.rest.lines import _lines

    rooms.sandboxes.events = [Started(3, 99, NOW), Output("stdout", 0, b"x"), Exited(0, None, False, 0)]
    events = rooms.sandboxes._play()
    lines = _lines(await anext(events), events, EventText("utf-8").render, "req_x")
    await anext(lines)
    await anext(lines)
    await lines.aclose()
    assert rooms.sandboxes.is_detached
    assert rooms.sandboxes.calls == []


async def test_a_detached_command_is_found_by_its_number(http: httpx.AsyncClient, rooms: Rooms) -> None:
    path = f"/v1/sessions/{await opened(http)}/commands"
    answer = await http.post(path, json={"command": "x", "detach": True, "open_stdin": True})
    assert (answer.status_code, answer.json()) == (202, {"number": 7, "pid": 1234})
    assert (await http.post(f"{path}/7:signal", json={"signal": "SIGINT"})).status_code == 204
    assert (await http.put(f"{path}/7/stdin", content=b"\x00y")).status_code == 204
    assert (await http.delete(f"{path}/7/stdin")).status_code == 204
    assert (await http.delete(f"{path}/7")).status_code == 204
    assert rooms.sandboxes.calls[1:] == [
        {"number": 7, "signo": 2},
        {"number": 7, "data": b"\x00y"},
        {"number": 7, "closed": True},
        {"number": 7, "released": True},
    ]
    assert problem(await http.post(f"{path}/7:signal", json={"signal": "SIGNOPE"})) == (400, "invalid")
    assert problem(await http.delete(f"{path}/0")) == (400, "malformed_id")


# -- files


async def test_a_large_file_goes_in_piece_by_piece(http: httpx.AsyncClient, rooms: Rooms) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(128):
            yield b"x" * (1 << 18)

    path = f"/v1/sessions/{await opened(http)}/files"
    assert (await http.put(path, params={"path": "big"}, content=pieces())).status_code == 204
    assert rooms.sandboxes.received == 32 << 20
    assert rooms.sandboxes.largest_piece <= 1 << 18


async def test_files_are_read_renamed_and_removed(http: httpx.AsyncClient, rooms: Rooms) -> None:
    path = f"/v1/sessions/{await opened(http)}/files"
    content = bytes(range(256)) * 1000
    await http.put(path, params={"path": "a"}, content=content)
    assert (await http.get(path, params={"path": "a"})).content == content
    assert (await http.post(f"{path}/rename", json={"source": "a", "target": "b"})).status_code == 204
    assert problem(await http.get(path, params={"path": "a"})) == (404, "file_not_found")
    assert (await http.delete(path, params={"path": "b"})).status_code == 204
    assert rooms.sandboxes.files == {}
    assert problem(await http.get(path)) == (400, "invalid")


async def test_an_empty_file_is_read_as_empty(http: httpx.AsyncClient, rooms: Rooms) -> None:
    rooms.sandboxes.files["empty"] = b""
    answer = await http.get(f"/v1/sessions/{await opened(http)}/files", params={"path": "empty"})
    assert (answer.status_code, answer.content) == (200, b"")


async def test_what_is_at_a_path_is_told_in_full(http: httpx.AsyncClient, rooms: Rooms) -> None:
    path = f"/v1/sessions/{await opened(http)}/files"
    told = (await http.get(f"{path}/stat", params={"path": "x", "follow": "false"})).json()
    assert told == {
        "path": "x",
        "kind": "link",
        "size": 3,
        "mode": 0o777,
        "permissions": "lrwxrwxrwx",
        "uid": 1000,
        "gid": 7,
        "owner": "bird",
        "group": "7",
        "modified_at": "1970-01-01T00:00:00Z",
        "target": "to",
        "metadata": {"a": "b"},
    }
    assert rooms.sandboxes.calls[-1] == {"user": None, "follow": False}


async def test_a_listing_of_any_length_says_whether_it_was_cut(http: httpx.AsyncClient, rooms: Rooms) -> None:
    path = f"/v1/sessions/{await opened(http)}/files/list"
    for entries, cut in ((0, False), (500, False), (1201, True)):
        rooms.sandboxes.entries = entries
        answer = (await http.get(path, params={"path": "x", "limit": 1000})).json()
        assert ([each["path"] for each in answer["items"]], answer["truncated"]) == (
            [f"{i}" for i in range(entries)],
            cut,
        )
    assert problem(await http.get(path, params={"path": "x", "limit": 100_001})) == (400, "invalid")


async def test_modes_metadata_links_and_directories(http: httpx.AsyncClient, rooms: Rooms) -> None:
    path = f"/v1/sessions/{await opened(http)}/files"
    await http.put(path, params={"path": "a"}, content=b"")
    assert rooms.sandboxes.calls[-1] == {"user": None, "mode": None, "metadata": None}
    await http.put(path, params={"path": "a", "mode": 384, "metadata": ["x:1:2", "y:"]}, content=b"")
    assert rooms.sandboxes.calls[-1] == {"user": None, "mode": 0o600, "metadata": {"x": "1:2", "y": ""}}
    await http.put(path, params={"path": "a", "metadata": ""}, content=b"")
    assert rooms.sandboxes.calls[-1]["metadata"] == {}
    answer = await http.patch(path, json={"path": "a", "mode": 384, "metadata": {}})
    assert (answer.status_code, answer.json()["kind"]) == (200, "link")
    assert rooms.sandboxes.calls[-1] == {"user": None, "mode": 384, "metadata": {}}
    assert problem(await http.patch(path, json={"path": "a", "mode": 0o10000})) == (400, "invalid")
    assert (await http.post(f"{path}/mkdir", json={"path": "new"})).json() == {"created": True}
    assert (await http.post(f"{path}/mkdir", json={"path": "a"})).json() == {"created": False}
    assert (await http.post(f"{path}/link", json={"path": "l", "target": "../a"})).status_code == 204
    assert rooms.sandboxes.files["l"] == b"../a"


async def test_changes_are_told_as_they_happen_or_kept_until_they_are_taken(http: httpx.AsyncClient) -> None:
    path = f"/v1/sessions/{await opened(http)}/files"
    answer = await http.get(f"{path}/watch", params={"path": "x", "recursive": True})
    assert answer.headers["content-type"] == "application/x-ndjson"
    renamed = {"type": "rename", "path": "a", "target": "b", "is_directory": False}
    assert [json.loads(line) for line in answer.text.splitlines()] == [
        {"type": "watching", "path": "", "target": None, "is_directory": True},
        renamed,
    ]
    watcher = (await http.post(f"{path}/watchers", json={"path": "x"})).json()["id"]
    await asyncio.sleep(0)  # requests of this client do not let others have their turn
    assert (await http.post(f"{path}/watchers/{watcher}:take")).json() == {"items": [renamed]}
    assert problem(await http.post(f"{path}/watchers/{watcher}:take")) == (404, "no_such_watcher")  # it has ended
    watcher = (await http.post(f"{path}/watchers", json={"path": "x"})).json()["id"]
    assert (await http.delete(f"{path}/watchers/{watcher}")).status_code == 204
    assert problem(await http.delete(f"{path}/watchers/{watcher}")) == (404, "no_such_watcher")


async def test_a_silent_stream_is_kept_alive_by_blank_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    from dovecote.api.rest import lines

    monkeypatch.setattr(lines, "ALIVE_EVERY", 0.01)
    go_on, closed = asyncio.Event(), []

    async def events() -> AsyncIterator[str]:
        try:
            yield "first"
            await go_on.wait()
            yield "second"
            await asyncio.Event().wait()
        finally:
            closed.append(True)

    told = lines._lines("zeroth", events(), str.encode, "req_x")
    assert [await anext(told) for _ in range(4)] == [b"zeroth", b"first", b"\n", b"\n"]
    go_on.set()
    while (following := await anext(told)) == b"\n":
        pass
    assert following == b"second"
    assert await anext(told) == b"\n"
    await told.aclose()
    assert closed == [True]


# -- the rest


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


async def test_health_needs_no_key_and_readiness_is_told(rooms: Rooms) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(rooms.api()), base_url="http://localhost") as http:
        assert (await http.get("/healthz")).json() == {"status": "ok"}
        assert (await http.get("/readyz")).status_code == 200
        rooms.is_ready = False
        assert problem(await http.get("/readyz")) == (503, "not_ready")
        assert "dovecote_api_requests_total" in (await http.get("/metrics")).text


async def test_the_console_puts_nothing_in_as_markup(http: httpx.AsyncClient) -> None:
    page = await http.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write"):
        assert way not in page.text


async def test_the_description_has_every_route_and_only_our_error(http: httpx.AsyncClient) -> None:
    document = (await http.get("/v1/openapi.json")).json()
    commands = document["paths"]["/v1/sessions/{session_id}/commands"]["post"]
    assert commands["requestBody"]["content"]["application/json"]["schema"]["required"] == ["command"]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert "422" not in operation["responses"], path
            assert operation["summary"], path
            assert ("security" in operation) == (path.startswith("/v1/") and path != "/v1/openapi.json"), path


async def test_the_reference_page_has_every_route(http: httpx.AsyncClient) -> None:
    text = DOCS.read_text("utf-8")
    document = (await http.get("/v1/openapi.json")).json()
    wanted = {f"`{m.upper()} {path}`" for path, methods in document["paths"].items() for m in methods}
    assert {line for line in wanted if line not in text} == set()
