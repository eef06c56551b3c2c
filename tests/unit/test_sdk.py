"""The client against the real API over a real socket, with rooms in memory."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from starlette.types import Receive, Scope, Send

from dovecote import errors, sdk
from dovecote.control.sandboxes import Dropped, Exited, FileChange, Finished, Output, Started
from dovecote.sdk import AsyncDovecote, Dovecote, Printed, Start, Step, Template
from dovecote.sdk._errors import error_from
from dovecote.sdk._settings import find_access
from dovecote.sdk.generate import stale, sync_source
from tests.unit.context_guest import Line, Program
from tests.unit.fake_rooms import KEY, NOW, Rooms
from tests.unit.serving import served


@pytest.fixture
def client(url: str) -> Iterator[Dovecote]:
    with Dovecote(KEY, url) as made:
        yield made


def test_the_blocking_client_is_current() -> None:
    assert stale() == []


def test_generation_changes_words_only() -> None:
    text = (
        "async def f(self) -> AsyncGenerator[Event, None]:\n    async with aclosing(x) as y:\n        return await y\n"
    )
    assert sync_source(text) == (
        "def f(self) -> Generator[Event, None, None]:\n    with closing(x) as y:\n        return y\n"
    )


def test_a_session_through_the_blocking_client(client: Dovecote, rooms: Rooms) -> None:
    rooms.sandboxes.finish = lambda argv: Finished(b"hi\n", b"", 0, None, False, False)
    mounts = [sdk.Mount("work", "/home/user/work", "anna", read_only=True)]
    with client.sessions.create(key="u:c", idle_after=30, user="u", mounts=mounts) as session:
        assert (session.key, session.state, session.view.idle_after_seconds) == ("u:c", "ready", 30)
        assert [vars(mount) for mount in rooms.sessions.all[session.id].mounts] == [vars(mount) for mount in mounts]
        assert session.run("echo hi").stdout == "hi\n"
        assert session.run(["echo", "hi"]).is_ok
        view = session.set_start("node server.js", 3000, "/home/user/app", {"A": "b"})
        assert view.start == sdk.Start("node server.js", 3000, "/home/user/app", {"A": "b"})
        assert view.address == session.url(3000)
        assert [session.freeze().state, session.park().state, session.wake().state] == ["frozen", "parked", "ready"]
        assert session.instance().usage == {"memory_bytes": 1 << 20}
        assert [each.id for each in client.sessions.list()] == [session.id]
    assert client.sessions.get(session.id).state == "ended"


def test_lists_go_over_all_pages(client: Dovecote) -> None:
    made = [client.sessions.create(wake=False).id for _ in range(102)]
    assert [each.id for each in client.sessions.list()] == made


def test_events_come_as_values_and_a_break_as_an_error(client: Dovecote, rooms: Rooms) -> None:
    session = client.sessions.create()
    rooms.sandboxes.events = [Started(3, 9, NOW), Output("stdout", 0, b"x"), Exited(0, None, False, 0)]
    assert list(session.stream("x")) == [
        sdk.Started(3, 9),
        sdk.Output("stdout", "x", 0, 1),
        sdk.Exited(0, None, False),
    ]
    finished = session.start("x").wait()
    assert (finished.stdout, finished.exit_code) == ("x", 0)
    rooms.sandboxes.events = [Started(3, 9, NOW), errors.Failed("it died", code="instance_died")]
    with pytest.raises(sdk.ServerFailed) as raised:
        list(session.stream("x"))
    assert raised.value.code == "instance_died"


def test_a_command_that_must_succeed_says_what_it_printed(client: Dovecote, rooms: Rooms) -> None:
    rooms.sandboxes.finish = lambda argv: Finished(b"", b"no such file\n", 2, None, False, False)
    with pytest.raises(sdk.CommandFailed) as raised:
        client.sessions.create().run("cat x", check=True)
    assert (raised.value.code, raised.value.hint) == ("command_failed", "no such file")


def test_files_go_both_ways(client: Dovecote) -> None:
    files = client.sessions.create().files
    files.write("a.txt", "é")
    assert files.read_text("a.txt") == "é"
    files.write("big", (b"x" * 100_000 for _ in range(3)))
    assert b"".join(files.download("big")) == b"x" * 300_000
    files.rename("big", "bigger")
    with pytest.raises(sdk.NotFound) as raised:
        files.read("big")
    assert (raised.value.code, raised.value.status) == ("file_not_found", 404)
    assert raised.value.request_id.startswith("req_")


def test_code_is_collected_or_streamed(client: Dovecote, rooms: Rooms) -> None:
    session = client.sessions.create()
    done = session.execute("1 + 1", check=True)
    assert (done.text, done.status, done.count, done.is_ok) == ("1 + 1", "ok", 1, True)
    with session.contexts.create("js", cwd="/srv", env={"A": "1"}) as context:
        assert (context.view.language, context.view.cwd, context.view.is_default) == ("javascript", "/srv", False)
        *_, result, ended = context.stream("2")
        assert (result, ended) == (sdk.Result({"text/plain": "2"}, True, []), sdk.Ended("ok", 1, 0))
        assert [each.id for each in session.contexts.list()] == [done.context_id, context.id]
        context.interrupt()
        context.restart()
        with pytest.raises(sdk.NotFound) as raised:
            list(context.follow(done.id))
        assert raised.value.code == "no_such_execution"
    assert [each.id for each in session.contexts.list()] == [done.context_id]


def test_code_that_must_succeed_says_why_it_did_not(client: Dovecote, rooms: Rooms) -> None:
    def fail(program: Program, request: Line) -> None:
        name = request["id"]
        program.say(type="queued", id=name)
        program.say(type="began", id=name)
        program.say(type="stdout", id=name, text="out")
        program.say(type="error", id=name, name="ValueError", value="no", traceback=["line 1", "line 2"])
        program.say(type="done", id=name, status="error", count=1, dropped=0)

    rooms.sandboxes.guest.script = fail
    session = client.sessions.create()
    with pytest.raises(sdk.CommandFailed) as raised:
        session.execute("int('x')", check=True)
    assert (raised.value.code, raised.value.hint) == ("code_failed", "line 1\nline 2")
    done = session.execute("int('x')")
    assert (done.stdout, done.fault) == ("out", sdk.Fault("ValueError", "no", ["line 1", "line 2"]))


def test_what_is_shown_is_read_by_its_kind() -> None:
    shown = sdk.Result({"image/png": "aGk=", "text/html": "<b>", "application/json": [1], "text/latex": "$x$"})
    assert (shown.png, shown.html, shown.json, shown.latex) == (b"hi", "<b>", [1], "$x$")
    assert (shown.text, shown.jpeg, shown.pdf, shown.svg, shown.markdown, shown.table, shown.chart) == (None,) * 7


def test_an_execution_in_a_template_without_a_kernel_is_an_error_and_no_stream(client: Dovecote, rooms: Rooms) -> None:
    rooms.sandboxes.guest.begin = lambda program: program.end(97)
    with pytest.raises(sdk.NotFound) as raised:
        client.sessions.create().execute("1")
    assert (raised.value.code, raised.value.status) == ("no_kernel", 404)


def test_apps_chats_functions_and_keys(client: Dovecote) -> None:
    session = client.sessions.create()
    app = client.apps.publish(session, name="post", idle_after=5)
    assert (app.name, app.session_id, app.idle_after_seconds) == ("post", session.id, 5)
    assert client.apps.update("post", maximum=2).maximum == 2
    assert client.apps.instances("post") == []
    client.apps.unpublish("post")
    assert client.apps.list() == []
    chat = client.chats.create(session, title="t")
    client.chats.add_turn(chat.id, [{"a": 1}])
    assert [turn.messages for turn in client.chats.turns(chat.id)] == [[{"a": 1}]]
    client.chats.add_turn(chat.id, [{"a": 2}])
    assert client.chats.rewind(chat.id, 1).number == 1
    assert [turn.number for turn in client.chats.turns(chat.id)] == [1]
    assert client.chats.turns(chat.id, rewound=True)[1].rewound_at is not None
    assert client.chats.fork(chat.id, 1, key="mine", wake=False).title == "1 mine False"
    assert client.functions.get("sandbox").affinity_header == "x-dovecote-session"
    assert client.functions.templates() == ["base", "code", "alpine"]
    *steps, made = client.templates.pull("host/image:1", name="new")
    assert steps == [Step("fetching", 1, 2), Printed("hello\n")]
    assert isinstance(made, Template)
    assert (made.name, made.source, made.start) == ("new", "host/image:1", Start("run", 80))
    assert [each.name for each in client.templates.list()] == ["base", "code", "alpine", "new"]
    assert client.templates.get("new").user == "root"
    client.templates.delete("new")
    key = client.keys.create("ci")
    assert key.secret
    assert [each.secret for each in client.keys.list()] == [None]
    assert client.users.set_tier("u", "vip").tier == "vip"
    assert (client.users.get("u").tier, [each.name for each in client.users.list()]) == ("vip", ["u"])
    assert "svip" in [each.name for each in client.users.tiers()]


def test_files_are_listed_changed_and_watched(client: Dovecote, rooms: Rooms) -> None:
    files = client.sessions.create().files
    rooms.sandboxes.entries = 3
    found = files.list("x", limit=2)
    assert (len(found), found.truncated, found[0].owner, found[0].metadata) == (3, True, "bird", {"a": "b"})
    assert not files.list("x").truncated
    files.write("a", b"", metadata={"x": "é:"}, mode=0o600)
    assert rooms.sandboxes.calls[-1] == {"user": None, "mode": 0o600, "metadata": {"x": "é:"}}
    files.write("a", b"", metadata={})
    assert rooms.sandboxes.calls[-1]["metadata"] == {}
    assert files.chmod("a", 0o600).permissions == "lrwxrwxrwx"
    assert files.set_metadata("a", {"k": "v"}).metadata == {"a": "b"}
    assert (files.make_dir("a"), files.make_dir("new")) == (False, True)
    files.make_link("l", "a")
    rooms.sandboxes.changes.append(FileChange("create", "\u2028\x85\r"))
    told = [(change.type, change.path, change.target) for change in files.watch("x", recursive=True)]
    assert told == [("watching", "", None), ("rename", "a", "b"), ("create", "\u2028\x85\r", None)]
    watcher = files.watcher("x")
    taken: list[str] = []
    while len(taken) < 2:
        taken += [change.path for change in watcher.take()]
    assert taken == ["a", "\u2028\x85\r"]
    with pytest.raises(sdk.NotFound):
        watcher.take()
    with files.watcher("x"):
        pass


def test_output_with_line_separators_of_unicode_is_no_end_of_a_line(client: Dovecote, rooms: Rooms) -> None:
    session = client.sessions.create()
    said = "a\u2028b\x85c\x0bd\u2029"
    rooms.sandboxes.events = [Started(3, 9, NOW), Output("stdout", 0, said.encode()), Exited(0, None, False, 0)]
    assert session.start("x").wait().stdout == said


def test_what_was_dropped_is_not_hidden_by_waiting(client: Dovecote, rooms: Rooms) -> None:
    rooms.sandboxes.events = [Dropped(7), Output("stdout", 7, b"end"), Exited(0, None, False, 10)]
    finished = client.sessions.create().start("x").wait()
    assert (finished.stdout, finished.truncated) == ("end", True)


@pytest.mark.anyio
async def test_the_same_for_asyncio(url: str, rooms: Rooms) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"a"
        yield b"b"

    async with AsyncDovecote(KEY, url) as client:
        assert await client.is_ready()
        async with await client.sessions.create() as session:
            await session.files.write("x", pieces())
            assert await session.files.read("x") == b"ab"
            rooms.sandboxes.events = [Started(3, 9, NOW), Exited(None, 9, True, 0)]
            assert [each async for each in session.stream("x")] == [sdk.Started(3, 9), sdk.Exited(None, 9, True)]
        assert (await session.refresh()).state == "ended"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, sdk.BadRequest),
        (401, sdk.Unauthenticated),
        (404, sdk.NotFound),
        (409, sdk.Conflict),
        (413, sdk.BadRequest),
        (429, sdk.TooMany),
        (500, sdk.ServerFailed),
        (501, sdk.Unsupported),
        (502, sdk.Unavailable),
        (504, sdk.TimedOut),
        (507, sdk.StorageFull),
    ],
)
def test_a_status_has_its_class(status: int, kind: type[sdk.DovecoteError]) -> None:
    body = json.dumps({"error": {"code": "c", "message": "m", "hint": "h", "request_id": "r"}}).encode()
    error = error_from(status, body, "7")
    assert type(error) is kind
    assert (error.code, error.hint, error.request_id, error.retry_after) == ("c", "h", "r", 7)
    foreign = error_from(status, b"<html>upstream</html>")
    assert (type(foreign), foreign.code) == (kind, f"http_{status}")


def test_no_server_is_one_clear_error() -> None:
    with Dovecote("k", "http://127.0.0.1:9") as client, pytest.raises(sdk.Unreachable) as raised:
        client.sessions.list()
    assert raised.value.code == "unreachable"


def test_the_key_is_found_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DOVECOTE_API_KEY", "DOVECOTE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOVECOTE_CONFIG_DIR", str(tmp_path))
    with pytest.raises(sdk.Unauthenticated, match="no_key"):
        find_access(None, None)
    (tmp_path / "credentials.json").write_text(json.dumps({"url": "http://file:1/", "api_key": "from-file"}))
    assert (find_access(None, None).url, find_access(None, None).api_key) == ("http://file:1", "from-file")
    monkeypatch.setenv("DOVECOTE_API_KEY", "from-env")
    assert find_access(None, None).api_key == "from-env"
    assert find_access("given", "http://x").api_key == "given"


def test_an_address_below_localhost_needs_no_resolver() -> None:
    """The connection goes to the server, the request names the host that was asked for."""

    async def host(scope: Scope, receive: Receive, send: Send) -> None:
        name = dict(scope["headers"])[b"host"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": name})

    address = "http://5173-abc.box.example.invalid:8080"
    with served(host) as url, Dovecote("k", url) as client, client.http_for(address) as http:
        assert http.get("/x").text == "5173-abc.box.example.invalid:8080"
        assert "authorization" not in http.get("/x").request.headers
