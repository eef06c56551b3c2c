"""The MCP tools: the real client of the protocol, over HTTP, on the real API with rooms in memory."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from dovecote.control.sandboxes import CommandStatus, Dropped, Event, Exited, Output, Port, Stat
from dovecote.errors import NoCapacity, NotFound
from dovecote.mcp.bounded import BoundedText
from dovecote.mcp.calls import MOST_OF_A_KEY, CallName, Calls
from dovecote.mcp.http import Endpoint
from dovecote.mcp.origins import is_own
from dovecote.mcp.server import build_server
from dovecote.model.ids import new_id, random_text
from dovecote.sdk._async.transport import AsyncVia
from tests.unit.context_guest import Line, Program
from tests.unit.fake_rooms import KEY, NOW, OTHER_KEY, FakeSandboxes, Rooms
from tests.unit.serving import served

PAGE = Path(__file__).parents[2] / "docs/how-to/use-from-mcp-clients.md"
MODES = ("legacy", "2026-07-28")


class Sandboxes(FakeSandboxes):
    """`is_read` says that somebody reads a command that ends by a signal only, `is_forgotten` that it is forgotten."""

    def __init__(self) -> None:
        super().__init__()
        self.is_read = threading.Event()
        self.is_forgotten = threading.Event()
        self.signalled: asyncio.Event | None = None
        self.listed: list[CommandStatus] = []
        self.listening: list[Port] = []

    async def attach(self, tenant_id: str, session_id: str, number: int, *, offset: int = 0) -> AsyncIterator[Event]:
        self.calls.append({"number": number, "offset": offset})
        async for event in self._play():
            yield event
        if not self.events or not isinstance(self.events[-1], Exited):
            self.signalled = self.signalled or asyncio.Event()
            self.is_read.set()
            await self.signalled.wait()
            yield Exited(None, 15, False, 0)

    async def signal(self, tenant_id: str, session_id: str, number: int, signo: int) -> None:
        await super().signal(tenant_id, session_id, number, signo)
        if self.signalled is not None:
            self.signalled.set()

    async def release(self, tenant_id: str, session_id: str, number: int) -> None:
        await super().release(tenant_id, session_id, number)
        self.is_forgotten.set()

    async def commands(self, tenant_id: str, session_id: str) -> list[CommandStatus]:
        return self.listed

    async def ports(self, tenant_id: str, session_id: str) -> list[Port]:
        return self.listening

    async def stat(self, tenant_id: str, session_id: str, path: str, **_: Any) -> Stat:
        if path not in self.files:
            raise NotFound(f"no file {path}", code="file_not_found")
        return Stat("file", 0o644, 1000, 1000, len(self.files[path]), 0, "")

    async def read_file(self, tenant_id: str, session_id: str, path: str, **asked: Any) -> AsyncIterator[bytes]:
        yield self.files[path][asked["offset"] :][: asked["length"]]


class World:
    def __init__(self) -> None:
        self.rooms = Rooms()
        self.sandboxes = self.rooms.sandboxes = Sandboxes()
        self.url = ""
        self.endpoint = Endpoint(
            domain="dovecote.example", transport=lambda: AsyncVia(httpx.URL(self.url)), new_id=random_text
        )

    @asynccontextmanager
    async def client(self, mode: str = "2026-07-28", key: str = KEY) -> AsyncIterator[Client]:
        async with (
            httpx2.AsyncClient(headers={"authorization": f"Bearer {key}"}, timeout=30) as http,
            Client(streamable_http_client(f"{self.url}/mcp", http_client=http), mode=mode) as client,
        ):
            yield client

    def asked(self, name: str) -> list[Any]:
        return [call[name] for call in self.sandboxes.calls if name in call]


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    with served(made.rooms.api(made.endpoint)) as url:
        made.url = url
        yield made


async def call(client: Client, name: str, **arguments: Any) -> Any:
    answer = await client.call_tool(name, arguments)
    assert not answer.is_error, answer.content
    return answer.structured_content


async def refused(client: Client, name: str, **arguments: Any) -> dict[str, str]:
    """The error that a call is answered with."""
    answer = await client.call_tool(name, arguments)
    assert answer.is_error
    assert answer.structured_content is None  # clients check it against the schema of what succeeds
    (content,) = answer.content
    assert content.type == "text"
    error: dict[str, str] = json.loads(content.text)["error"]
    assert set(error) == {"code", "message", "hint"}
    return error


# -- tools, in both families of revisions


@pytest.mark.anyio
@pytest.mark.parametrize("mode", MODES)
async def test_a_sandbox_from_its_making_to_its_end(world: World, mode: str) -> None:
    world.sandboxes.events = [Output("stdout", 0, b"hi\n"), Output("stderr", 3, b"oh\n"), Exited(3, None, False, 6)]
    async with world.client(mode) as client:
        made = await call(client, "create_sandbox", key="mine", env={"A": "b"})
        assert (made["key"], made["state"], made["id"][:4]) == ("mine", "ready", "ses_")
        ran = await call(client, "run_command", sandbox=made["id"], command=["make", "it"], stdin="in", cwd="/tmp")
        assert (ran["stdout"], ran["stderr"], ran["exit_code"], ran["is_running"]) == ("hi\n", "oh\n", 3, False)
        assert world.asked("argv") == [("make", "it")]
        assert world.asked("timeout") == [60.0]
        assert world.asked("data") == [b"in"]
        assert world.asked("released") == [True]
        assert [each["id"] for each in (await call(client, "list_sandboxes"))["sandboxes"]] == [made["id"]]
        assert (await call(client, "get_sandbox", sandbox=made["id"]))["port_address"].startswith("http://{port}-")
        await call(client, "delete_sandbox", sandbox=made["id"])
        assert (await call(client, "list_sandboxes"))["sandboxes"] == []


@pytest.mark.anyio
@pytest.mark.parametrize("mode", MODES)
async def test_what_goes_wrong_is_an_answer_with_code_message_and_hint(world: World, mode: str) -> None:
    async with world.client(mode) as client:
        unknown = new_id("ses")
        assert (await refused(client, "get_sandbox", sandbox=unknown))["code"] == "no_such_session"
        lacking = await refused(client, "run_command", sandbox=unknown)
        assert (lacking["code"], lacking["message"]) == ("invalid", "command: Field required")
        assert (await refused(client, "get_sandbox", sandbox="../../keys"))["code"] == "invalid"
        made = await call(client, "create_sandbox", key="mine")
        assert (await refused(client, "create_sandbox", key="mine"))["code"] == "exists"
        bad = await refused(client, "write_file", sandbox=made["id"], path="a", content="?", encoding="base64")
        assert bad["code"] == "invalid"
        world.rooms.sessions.failure = RuntimeError("of ours")
        assert (await refused(client, "get_sandbox", sandbox=made["id"]))["code"] == "internal"


@pytest.mark.anyio
@pytest.mark.parametrize("mode", MODES)
async def test_the_sandboxes_of_another_tenant_are_not_there(world: World, mode: str) -> None:
    async with world.client(mode) as mine, world.client(mode, OTHER_KEY) as theirs:
        made = await call(mine, "create_sandbox")
        assert (await call(theirs, "list_sandboxes"))["sandboxes"] == []
        for tool, more in (("get_sandbox", {}), ("run_command", {"command": "id"}), ("delete_sandbox", {})):
            assert (await refused(theirs, tool, sandbox=made["id"], **more))["code"] == "no_such_session"
        assert (await call(mine, "get_sandbox", sandbox=made["id"]))["state"] == "ready"


@pytest.mark.anyio
@pytest.mark.parametrize("mode", MODES)
async def test_a_call_that_is_taken_back_ends_its_command(world: World, mode: str) -> None:
    async with world.client(mode) as client:
        sandbox = (await call(client, "create_sandbox"))["id"]
        async with anyio.create_task_group() as calls:
            calls.start_soon(lambda: client.call_tool("run_command", {"sandbox": sandbox, "command": "sleep 99"}))
            assert await anyio.to_thread.run_sync(world.sandboxes.is_read.wait, 10)
            calls.cancel_scope.cancel()
        assert await anyio.to_thread.run_sync(world.sandboxes.is_forgotten.wait, 10)
        assert world.asked("signo") == [15]


@pytest.mark.anyio
async def test_a_long_command_tells_of_its_progress(world: World) -> None:
    told = threading.Event()
    said: list[tuple[float, float | None, str | None]] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        said.append((progress, total, message))
        if len(said) == 2:
            told.set()

    async def end_it() -> None:
        assert await anyio.to_thread.run_sync(told.wait, 20)
        await call(client, "stop_command", sandbox=sandbox, number=7)

    world.sandboxes.events = [Output("stdout", 0, b"one\ntwo\n")]
    async with world.client() as client, anyio.create_task_group() as tasks:
        sandbox = (await call(client, "create_sandbox"))["id"]
        tasks.start_soon(end_it)
        asked = {"sandbox": sandbox, "command": "x", "timeout_seconds": 90}
        ran = await client.call_tool("run_command", asked, progress_callback=hear)
    assert ran.structured_content is not None
    assert ran.structured_content["signal"] == 15
    assert [(total, message) for _, total, message in said[:2]] == [(90.0, "two")] * 2
    assert said[0][0] < said[1][0]


@pytest.mark.anyio
async def test_output_of_a_background_command_is_read_in_pieces(world: World) -> None:
    sandboxes = world.sandboxes
    status = CommandStatus(7, "", 1, True, None, None, False, NOW, 8)
    async with world.client() as client:
        sandbox = (await call(client, "create_sandbox"))["id"]
        begun = await call(client, "run_command", sandbox=sandbox, command="serve", background=True)
        assert (begun["number"], begun["is_running"]) == (7, True)
        assert world.asked("timeout") == [None]
        assert world.asked("stdin") == [False]
        sandboxes.listed = [status]
        sandboxes.events = [Dropped(2), Output("stdout", 2, "é".encode() * 3)]
        read = await call(client, "command_output", sandbox=sandbox, number=7)
        assert (read["stdout"], read["dropped_bytes"], read["next_offset"]) == ("ééé", 2, 8)
        assert (read["is_running"], read["has_more"]) == (True, False)
        sandboxes.events = [Output("stdout", 8, b"x" * 100), Exited(0, None, False, 108)]
        read = await call(
            client, "command_output", sandbox=sandbox, number=7, offset=8, wait_seconds=30, max_output=100
        )
        assert (read["stdout"], read["exit_code"], read["next_offset"]) == ("x" * 100, None, 108)  # full before its end
        read = await call(client, "command_output", sandbox=sandbox, number=7, offset=8, wait_seconds=9, max_output=500)
        assert (read["is_running"], read["exit_code"]) == (False, 0)
        assert (await refused(client, "command_output", sandbox=sandbox, number=8))["code"] == "no_such_command"


@pytest.mark.anyio
async def test_long_output_keeps_its_ends_around_a_marker(world: World) -> None:
    world.sandboxes.events = [
        *(Output("stdout", n * 1000, b"%03d" % n * 333 + b"\n") for n in range(100)),
        Exited(0, None, False, 100_000),
    ]
    async with world.client() as client:
        sandbox = (await call(client, "create_sandbox"))["id"]
        ran = await call(client, "run_command", sandbox=sandbox, command="x", max_output=200)
    begin, marker, end = re.split(r"\n(\[\.\.\. .* \.\.\.\])\n", ran["stdout"])
    assert begin == ("000" * 333)[:100]
    assert end == ("099" * 333 + "\n")[-100:]
    assert marker == f"[... {ran['left_out']} characters left out ...]"
    assert ran["left_out"] == 100_000 - 200


@pytest.mark.anyio
async def test_code_answers_values_pictures_and_errors(world: World) -> None:
    def show(program: Program, request: Line) -> None:
        name = request["id"]
        program.say(type="queued", id=name)
        program.say(type="began", id=name)
        program.say(type="stdout", id=name, text="printed\n")
        drawn = {"image/png": "aGk=", "text/plain": "<Figure>", "text/html": "x" * 500}
        program.say(type="result", id=name, data=drawn, is_main=False, omitted=["application/pdf"])
        program.say(type="error", id=name, name="ValueError", value="no", traceback=["\x1b[31mValueError\x1b[0m: no"])
        program.say(type="done", id=name, status="error", count=1, dropped=0)

    world.sandboxes.guest.script = show
    async with world.client() as client:
        sandbox = (await call(client, "create_sandbox"))["id"]
        answer = await client.call_tool("run_code", {"sandbox": sandbox, "code": "x", "max_output": 400})
        made = await call(client, "create_context", sandbox=sandbox, language="javascript")
        again = await call(client, "run_code", sandbox=sandbox, code="x", context=made["context"])
    ran = answer.structured_content
    assert ran is not None
    assert not answer.is_error  # the call went well; the code did not
    assert (ran["status"], ran["stdout"], ran["error"]) == ("error", "printed\n", "ValueError: no")
    (shown,) = ran["results"]
    assert (shown["data"], shown["pictures"]) == ({"text/plain": "<Figure>"}, 1)
    assert shown["left_out"] == ["application/pdf", "text/html"]
    assert [(each.type, getattr(each, "data", None)) for each in answer.content] == [("text", None), ("image", "aGk=")]
    assert (again["context"], made["language"]) == (made["context"], "javascript")


@pytest.mark.anyio
@pytest.mark.parametrize("mode", MODES)
async def test_code_that_is_taken_back_is_interrupted(world: World, mode: str) -> None:
    begun, interrupted = threading.Event(), threading.Event()

    def hang(program: Program, request: Line) -> None:
        if request["op"] == "execute":
            program.say(type="queued", id=request["id"])
            program.say(type="began", id=request["id"])
            begun.set()
        elif request["op"] == "interrupt":
            interrupted.set()

    world.sandboxes.guest.script = hang
    async with world.client(mode) as client:
        sandbox = (await call(client, "create_sandbox"))["id"]
        async with anyio.create_task_group() as calls:
            calls.start_soon(lambda: client.call_tool("run_code", {"sandbox": sandbox, "code": "while True: pass"}))
            assert await anyio.to_thread.run_sync(begun.wait, 10)
            calls.cancel_scope.cancel()
        assert await anyio.to_thread.run_sync(interrupted.wait, 10)


@pytest.mark.anyio
async def test_files_of_text_and_of_bytes(world: World) -> None:
    async with world.client() as client:
        sandbox = (await call(client, "create_sandbox"))["id"]
        await call(client, "write_file", sandbox=sandbox, path="a", content="aé" * 4)
        assert world.sandboxes.files["a"] == ("aé" * 4).encode()
        pieces, offset = [], 0
        while offset is not None:
            read = await call(client, "read_file", sandbox=sandbox, path="a", offset=offset, max_bytes=5)
            pieces.append(read["content"])
            offset = read["next_offset"]
        assert pieces == ["aéa", "éaé", "aé"]  # no character is cut
        data = base64.b64encode(bytes(range(256))).decode()
        await call(client, "write_file", sandbox=sandbox, path="b", content=data, encoding="base64")
        read = await call(client, "read_file", sandbox=sandbox, path="b", encoding="base64")
        assert (read["content"], read["size"], read["next_offset"]) == (data, 256, None)
        assert (await call(client, "stat_file", sandbox=sandbox, path="b"))["mode"] == "0644"
        await call(client, "remove_file", sandbox=sandbox, path="b")
        assert (await refused(client, "read_file", sandbox=sandbox, path="b"))["code"] == "file_not_found"


@pytest.mark.anyio
async def test_a_port_says_whether_somebody_answers_there(world: World) -> None:
    world.sandboxes.listening = [Port(3000, False), Port(4000, True)]
    async with world.client() as client:
        sandbox = (await call(client, "create_sandbox"))["id"]
        notes = []
        for port in (3000, 4000, 5000):
            found = await call(client, "expose_port", sandbox=sandbox, port=port)
            assert found["address"].startswith(f"http://{port}-")
            assert found["is_reachable"] == (not found["note"])
            notes.append(found["note"])
        assert notes[0] == ""
        assert "127.0.0.1" in notes[1]
        assert "nothing listens" in notes[2]


# -- the edge


def test_a_key_is_asked_for_before_anything_else(world: World) -> None:
    for headers in ({}, {"authorization": "Bearer dvc_bad"}):
        answer = httpx.post(f"{world.url}/mcp", json={}, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthenticated")
    assert httpx.get(f"{world.url}/mcp", headers={"x-dovecote-key": KEY}).status_code == 405
    long = httpx.post(f"{world.url}/mcp", content=b" " * (4 << 20) + b"{}", headers={"x-dovecote-key": KEY})
    assert (long.status_code, long.json()["error"]["code"]) == (413, "too_large")
    assert "in pieces" in long.json()["error"]["hint"]


def test_pages_of_other_sites_are_refused(world: World) -> None:
    headers = {"x-dovecote-key": KEY, "origin": "http://evil.example", "host": "evil.example"}
    answer = httpx.post(f"{world.url}/mcp", json={}, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "foreign_origin")


@pytest.mark.parametrize(
    ("origin", "host", "is_ours"),
    [
        ("http://localhost:6274", "localhost:8080", True),
        ("https://dovecote.example", "dovecote.example", True),
        ("http://10.1.2.3:8080", "10.1.2.3:8080", True),
        ("http://[::1]:8080", "[::1]:8080", True),
        ("http://evil.example:8080", "evil.example:8080", False),
        ("http://10.1.2.3", "10.1.2.3:8080", False),
        ("http://5173-abc.box.localhost:8080", "localhost:8080", False),
        ("http://shop.app.dovecote.example", "dovecote.example", False),
        ("null", "localhost:8080", False),
        ("file://", "localhost:8080", False),
        ("http://[", "localhost:8080", False),
    ],
)
def test_whose_page_it_is(origin: str, host: str, is_ours: bool) -> None:
    assert is_own(origin, host, "dovecote.example") is is_ours


def test_a_key_has_so_many_calls_at_once() -> None:
    calls = Calls()
    with pytest.raises(NoCapacity) as refusal:
        _nested(calls, MOST_OF_A_KEY + 1)
    assert refusal.value.code == "too_many"
    _nested(calls, MOST_OF_A_KEY)


def _nested(calls: Calls, depth: int) -> None:
    if depth:
        with calls.counted("one"):
            _nested(calls, depth - 1)
    else:
        with calls.counted("another"):
            pass


@pytest.mark.anyio
async def test_a_call_is_taken_back_by_whoever_made_it_only() -> None:
    calls = Calls()
    mine = CallName("key", "session", "1")
    with calls.cancellable(mine) as scope:
        for other in (
            CallName("other", "session", "1"),
            CallName("key", "other", "1"),
            CallName("key", "session", '"1"'),
        ):
            calls.cancel(other)
        assert not scope.cancel_called
        calls.cancel(mine)
        assert scope.cancel_called
    calls.cancel(mine)  # it has ended; no error


@given(st.lists(st.text(max_size=30), max_size=30), st.integers(2, 60))
def test_bounded_text_loses_nothing_but_its_middle(pieces: list[str], most: int) -> None:
    bounded, whole = BoundedText(most), "".join(pieces)
    for piece in pieces:
        bounded.add(piece)
    if len(whole) <= most:
        assert (bounded.text(), bounded.left_out) == (whole, 0)
    else:
        marker = f"\n[... {len(whole) - most} characters left out ...]\n"
        assert bounded.text() == whole[: most // 2] + marker + whole[len(whole) - (most - most // 2) :]


# -- what it costs, and what is written about it


def test_a_server_without_such_clients_does_not_load_the_library() -> None:
    code = "import sys, dovecote.main; assert 'dovecote.mcp.http' in sys.modules; assert 'mcp' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def unused(_: Any) -> Any:
    raise AssertionError


@pytest.mark.anyio
async def test_the_page_lists_the_tools_in_their_order() -> None:
    listed = re.findall(r"^\| `(\w+)` \|", PAGE.read_text("utf-8"), re.MULTILINE)
    tools = await build_server(unused).list_tools()
    assert listed == [tool.name for tool in tools]
    assert [tool.name for tool in tools if not tool.description or tool.output_schema is None] == []
    undescribed = {
        (tool.name, name)
        for tool in tools
        for name, schema in tool.input_schema["properties"].items()
        if name not in OBVIOUS and "description" not in schema
    }
    assert undescribed == set()


OBVIOUS = {
    "port",
    "content",
    "text",
    "signal",
    "label",
    "depth",
    "max_bytes",
    "max_entries",
    "env",
    "user",
    "most",
    "cwd",
}
