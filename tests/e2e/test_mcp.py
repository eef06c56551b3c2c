"""The MCP tools as clients have them: the real client over HTTP through the gateway, and over stdio."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import httpx2
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp_types import ImageContent

from dovecote.sdk import Dovecote
from tests.e2e.installation import Installation, running, until

pytestmark = pytest.mark.e2e

PAGE = Path(__file__).parents[2] / "docs/how-to/use-from-mcp-clients.md"
WAYS = [(how, mode) for how in ("http", "stdio") for mode in ("legacy", "auto")]
REVISIONS = {"legacy": "2025-11-25", "auto": "2026-07-28"}


def configurations() -> list[dict[str, Any]]:
    """What the page tells clients to write into their files."""
    blocks = re.findall(r"```json\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    return [json.loads(block)["mcpServers"]["dovecote"] for block in blocks]


def filled(text: str, installation: Installation, key: str) -> str:
    return text.replace("${DOVECOTE_API_KEY}", key).replace("http://localhost:8080", installation.url)


@asynccontextmanager
async def connected(installation: Installation, how: str, mode: str, key: str = "") -> AsyncIterator[Client]:
    """As the page says, with this installation's address and key."""
    over_http, over_stdio = configurations()
    key = key or installation.api_key
    if how == "http":
        headers = {name: filled(value, installation, key) for name, value in over_http["headers"].items()}
        async with (
            httpx2.AsyncClient(headers=headers, timeout=60) as http,
            Client(
                streamable_http_client(filled(over_http["url"], installation, key), http_client=http), mode=mode
            ) as client,
        ):
            yield client
    else:
        command = str(Path(sys.executable).with_name(over_stdio["command"]))
        env = {name: filled(value, installation, key) for name, value in over_stdio["env"].items()}
        server = StdioServerParameters(command=command, args=over_stdio["args"], env=env)
        async with Client(server, mode=mode) as client:
            yield client


@pytest.fixture(scope="module")
def neighbour(installation: Installation) -> str:
    """The key of another tenant."""
    made = installation.command("tenant", "create", "neighbour-with-tools")
    key = re.search(r"dvc_\w+", made.stdout)
    assert key, made.stderr
    return key[0]


async def call(client: Client, name: str, /, **arguments: Any) -> Any:
    answer = await client.call_tool(name, arguments)
    assert not answer.is_error, answer.content
    return answer.structured_content


async def code_of(client: Client, name: str, /, **arguments: Any) -> str:
    answer = await client.call_tool(name, arguments)
    assert answer.is_error
    return str(json.loads(answer.content[0].text)["error"]["code"])  # type: ignore[union-attr]


@pytest.mark.anyio
@pytest.mark.parametrize(("how", "mode"), WAYS)
async def test_an_assistant_works_in_a_sandbox(installation: Installation, how: str, mode: str) -> None:
    async with connected(installation, how, mode) as client:
        assert client.protocol_version == REVISIONS[mode]
        sandbox = (await call(client, "create_sandbox", env={"GREETING": "hello"}))["id"]
        ran = await call(
            client, "run_command", sandbox=sandbox, command="echo $GREETING; cat; pwd; exit 4", stdin="in\n"
        )
        assert (ran["stdout"], ran["exit_code"]) == ("hello\nin\n/home/user\n", 4)
        await call(client, "write_file", sandbox=sandbox, path="app/page.html", content="<h1>é</h1>")
        assert (await call(client, "stat_file", sandbox=sandbox, path="app/page.html"))["size"] == 11
        listed = await call(client, "list_files", sandbox=sandbox, path="app")
        assert [entry["kind"] for entry in listed["entries"]] == ["file"]
        served = await call(
            client, "start_server", sandbox=sandbox, command="python3 -u -m http.server $PORT", port=8000, cwd="app"
        )
        with installation.client() as dovecote, dovecote.http_for(served["address"]) as web:
            assert web.get("/page.html").text == "<h1>é</h1>"
        ports = await call(client, "list_ports", sandbox=sandbox)
        assert [port["port"] for port in ports["ports"] if port["is_reachable"]] == [8000]
        assert (await call(client, "pause_sandbox", sandbox=sandbox))["is_paused"]
        assert await code_of(client, "pause_sandbox", sandbox=sandbox) == "paused"
        assert (await call(client, "list_ports", sandbox=sandbox))["ports"]  # used again, it goes on
        assert not (await call(client, "get_sandbox", sandbox=sandbox))["is_paused"]
        taken = await call(client, "snapshot_sandbox", sandbox=sandbox, label="before")
        await call(client, "remove_file", sandbox=sandbox, path="app", recursive=True)
        assert await code_of(client, "read_file", sandbox=sandbox, path="app/page.html") == "file_not_found"
        copy = (await call(client, "fork_sandbox", sandbox=sandbox, snapshot=taken["id"]))["id"]
        assert (await call(client, "read_file", sandbox=copy, path="app/page.html"))["content"] == "<h1>é</h1>"
        for each in (sandbox, copy):
            await call(client, "delete_sandbox", sandbox=each)


@pytest.mark.anyio
@pytest.mark.parametrize(("how", "mode"), WAYS)
async def test_a_call_that_is_taken_back_leaves_no_command(installation: Installation, how: str, mode: str) -> None:
    async with connected(installation, how, mode) as client:
        sandbox = (await call(client, "create_sandbox"))["id"]

        async def running_now() -> list[int]:
            commands = (await call(client, "list_commands", sandbox=sandbox))["commands"]
            return [command["number"] for command in commands if command["is_running"]]

        async with anyio.create_task_group() as tasks:
            asked = {"sandbox": sandbox, "command": "trap '' TERM; sleep 300"}  # it takes no hint
            tasks.start_soon(lambda: client.call_tool("run_command", asked))
            with anyio.fail_after(20):
                while not await running_now():
                    pass
            tasks.cancel_scope.cancel()
        with anyio.fail_after(20):
            while await running_now():
                pass
        await call(client, "delete_sandbox", sandbox=sandbox)


@pytest.mark.anyio
@pytest.mark.parametrize(("how", "mode"), [("http", "auto"), ("stdio", "legacy")])
async def test_code_knows_what_was_run_before(installation: Installation, how: str, mode: str) -> None:
    async with connected(installation, how, mode) as client:
        sandbox = (await call(client, "create_sandbox"))["id"]
        await call(client, "run_code", sandbox=sandbox, code="let many = 41", language="javascript")
        async with anyio.create_task_group() as tasks:
            code = "many += 1; (await import('fs')).writeFileSync('/tmp/begun', ''); for (;;) {}"
            asked = {"sandbox": sandbox, "code": code, "language": "javascript"}
            tasks.start_soon(lambda: client.call_tool("run_code", asked))
            with anyio.fail_after(20):
                while (await client.call_tool("stat_file", {"sandbox": sandbox, "path": "/tmp/begun"})).is_error:
                    pass
            tasks.cancel_scope.cancel()
        ran = await call(client, "run_code", sandbox=sandbox, code="many", language="javascript", timeout_seconds=30)
        assert ran["status"] == "ok"
        assert [shown["data"]["text/plain"] for shown in ran["results"]] == ["42"]
        assert await code_of(client, "run_code", sandbox=sandbox, code="x", language="cobol") == "no_kernel"
        await call(client, "delete_sandbox", sandbox=sandbox)


@pytest.fixture
def code(dovecote: Dovecote) -> None:
    """The template for code is there."""
    for _ in dovecote.templates.prepare("code"):
        pass


PLOT = """
import matplotlib.pyplot as plt, pandas
plt.plot([1, 2, 4]); plt.title("grows"); plt.show()
print("said"); kept = pandas.DataFrame({"a": [1, 2]}); kept
"""


@pytest.mark.anyio
@pytest.mark.usefixtures("code")
@pytest.mark.parametrize(("how", "mode"), [("http", "legacy"), ("stdio", "auto")])
async def test_a_kernel_shows_pictures_tables_and_errors(installation: Installation, how: str, mode: str) -> None:
    async with connected(installation, how, mode) as client:
        sandbox = (await call(client, "create_sandbox", template="code"))["id"]
        answer = await client.call_tool("run_code", {"sandbox": sandbox, "code": PLOT})
        assert not answer.is_error
        ran: Any = answer.structured_content
        assert (ran["status"], ran["stdout"], ran["error"]) == ("ok", "said\n", None)
        (picture,) = [each for each in answer.content if isinstance(each, ImageContent)]
        assert base64.b64decode(picture.data).startswith(b"\x89PNG")
        assert sum(shown["pictures"] for shown in ran["results"]) == 1
        (table,) = [shown for shown in ran["results"] if shown["is_main"]]
        assert table["data"]["application/vnd.dovecote.table+json"]["rows"] == [[1], [2]]
        failed = await call(client, "run_code", sandbox=sandbox, code="len(kept) / 0")
        assert failed["status"] == "error"
        assert "ZeroDivisionError" in failed["error"]
        apart = (await call(client, "create_context", sandbox=sandbox, cwd="/tmp"))["context"]
        code = "import os; own = os.getcwd(); own"
        own = await call(client, "run_code", sandbox=sandbox, code=code, context=apart)
        assert own["results"][0]["data"]["text/plain"] == "'/tmp'"
        assert (await call(client, "run_code", sandbox=sandbox, code="own"))["status"] == "error"
        await call(client, "restart_context", sandbox=sandbox, context=apart)
        assert (await call(client, "run_code", sandbox=sandbox, code="own", context=apart))["status"] == "error"
        await call(client, "delete_sandbox", sandbox=sandbox)


@pytest.mark.anyio
@pytest.mark.parametrize(("how", "mode"), [("http", "auto"), ("stdio", "legacy")])
async def test_what_a_sandbox_serves_becomes_an_app(installation: Installation, how: str, mode: str) -> None:
    async with connected(installation, how, mode) as client:
        sandbox = (await call(client, "create_sandbox"))["id"]
        await call(client, "write_file", sandbox=sandbox, path="app/index.html", content="first")
        assert await code_of(client, "publish_app", sandbox=sandbox) == "no_start"
        closed = await call(client, "expose_port", sandbox=sandbox, port=8000)
        assert (closed["is_reachable"], "nothing listens" in closed["note"]) == (False, True)
        server = "python3 -u -m http.server --bind 127.0.0.1 9100"
        await call(client, "run_command", sandbox=sandbox, command=server, background=True)
        with anyio.fail_after(20):
            while "127.0.0.1 only" not in (await call(client, "expose_port", sandbox=sandbox, port=9100))["note"]:
                pass
        await call(
            client, "start_server", sandbox=sandbox, command="exec python3 -m http.server $PORT", port=8000, cwd="app"
        )
        opened = await call(client, "expose_port", sandbox=sandbox, port=8000)
        published = await call(client, "publish_app", sandbox=sandbox, name=f"tools-{how}")
        with installation.client() as dovecote:
            with dovecote.http_for(opened["address"]) as web:
                assert web.get("/index.html").text == "first"
            with dovecote.http_for(published["address"]) as web:
                assert web.get("/index.html").text == "first"
            await call(client, "write_file", sandbox=sandbox, path="app/index.html", content="second")
            again = await call(client, "publish_app", sandbox=sandbox, name=f"tools-{how}")
            assert again["address"] == published["address"]
            with dovecote.http_for(published["address"]) as web:
                until(lambda: web.get("/index.html").text == "second", "the new revision is served")
            dovecote.apps.unpublish(f"tools-{how}")
        await call(client, "delete_sandbox", sandbox=sandbox)


@pytest.mark.anyio
@pytest.mark.parametrize(("how", "mode"), [("http", "legacy"), ("stdio", "auto")])
async def test_files_are_read_in_pieces_and_keep_what_is_not_changed(
    installation: Installation, how: str, mode: str
) -> None:
    async with connected(installation, how, mode) as client:
        sandbox = (await call(client, "create_sandbox"))["id"]
        raw = base64.b64encode(bytes(range(256))).decode()
        await call(client, "write_file", sandbox=sandbox, path="raw", content=raw, encoding="base64")
        assert (await call(client, "read_file", sandbox=sandbox, path="raw", encoding="base64"))["content"] == raw
        assert (
            await code_of(client, "write_file", sandbox=sandbox, path="x", content="?", encoding="base64") == "invalid"
        )
        await call(client, "write_file", sandbox=sandbox, path="deep/run.sh", content="#!/bin/sh\necho one", mode="755")
        await call(client, "write_file", sandbox=sandbox, path="deep/run.sh", content="#!/bin/sh\necho two")
        assert (await call(client, "stat_file", sandbox=sandbox, path="deep/run.sh"))["mode"] == "0755"
        assert (await call(client, "run_command", sandbox=sandbox, command="deep/run.sh"))["stdout"] == "two\n"
        listed = await call(client, "list_files", sandbox=sandbox, depth=2, max_entries=2)
        assert (len(listed["entries"]), listed["left_out"] > 0) == (2, True)
        assert await code_of(client, "remove_file", sandbox=sandbox, path="deep") == "directory_not_empty"
        text = "é漢" * 1000
        await call(client, "write_file", sandbox=sandbox, path="long", content=text)
        version = (await call(client, "run_command", sandbox=sandbox, command="cat /proc/version"))["stdout"]
        assert await in_pieces(client, sandbox, "long", 1024) == text
        assert await in_pieces(client, sandbox, "/proc/version", 32) == version  # it says no size
        await call(client, "delete_sandbox", sandbox=sandbox)


async def in_pieces(client: Client, sandbox: str, path: str, size: int) -> str:
    found, offset = "", 0
    while offset is not None and len(found) < 100_000:
        read = await call(client, "read_file", sandbox=sandbox, path=path, offset=offset, max_bytes=size)
        found, offset = found + read["content"], read["next_offset"]
    return found


@pytest.mark.anyio
async def test_a_background_command_is_come_back_to_by_another_client(installation: Installation) -> None:
    async with connected(installation, "http", "auto") as client:
        sandbox = (await call(client, "create_sandbox"))["id"]
        begun = await call(
            client, "run_command", sandbox=sandbox, command="read a; echo got $a; read b; exit 5", background=True,
            keep_stdin_open=True,
        )  # fmt: skip
        await call(client, "write_stdin", sandbox=sandbox, number=begun["number"], text="one\n")
    async with connected(installation, "stdio", "legacy") as client:
        said, offset = "", 0
        with anyio.fail_after(20):
            while "got" not in said:
                read = await call(
                    client, "command_output", sandbox=sandbox, number=begun["number"], offset=offset, wait_seconds=1
                )
                said, offset = said + read["stdout"], read["next_offset"]
        assert (said, read["is_running"]) == ("got one\n", True)
        await call(client, "write_stdin", sandbox=sandbox, number=begun["number"], text="two\n", close=True)
        read = await call(
            client, "command_output", sandbox=sandbox, number=begun["number"], offset=offset, wait_seconds=20
        )
        assert (read["stdout"], read["is_running"], read["exit_code"]) == ("", False, 5)
        await call(client, "delete_sandbox", sandbox=sandbox)


@pytest.mark.anyio
@pytest.mark.parametrize(("how", "mode"), WAYS)
async def test_tenants_do_not_see_each_other(installation: Installation, neighbour: str, how: str, mode: str) -> None:
    async with connected(installation, how, mode) as mine, connected(installation, how, mode, neighbour) as theirs:
        sandbox = (await call(mine, "create_sandbox"))["id"]
        assert (await call(theirs, "list_sandboxes"))["sandboxes"] == []
        for name, more in (
            ("get_sandbox", {}),
            ("run_command", {"command": "id"}),
            ("read_file", {"path": "/etc/passwd"}),
            ("list_ports", {}),
            ("fork_sandbox", {}),
            ("publish_app", {}),
            ("delete_sandbox", {}),
        ):
            assert await code_of(theirs, name, sandbox=sandbox, **more) == "no_such_session", name
        await call(mine, "delete_sandbox", sandbox=sandbox)


@pytest.mark.anyio
async def test_clients_notice_nothing_of_a_restart() -> None:
    with running(tick=0.2) as installation:
        async with connected(installation, "http", "legacy") as older, connected(installation, "http", "auto") as newer:
            sandbox = (await call(older, "create_sandbox"))["id"]
            await call(newer, "run_command", sandbox=sandbox, command="echo kept > /dev/shm/here")
            await anyio.to_thread.run_sync(installation.stop)
            await anyio.to_thread.run_sync(installation.start)
            for client in (older, newer):
                ran = await call(client, "run_command", sandbox=sandbox, command="cat /dev/shm/here")
                assert ran["stdout"] == "kept\n"


def test_pages_of_sandboxes_are_refused_through_the_gateway(installation: Installation, dovecote: Dovecote) -> None:
    with dovecote.sessions.create(wake=False) as session:
        headers = {"authorization": f"Bearer {installation.api_key}", "origin": session.url(5173)}
        answer = httpx.post(f"{installation.url}/mcp", json={}, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "foreign_origin")


def test_without_a_key_stdio_says_so_at_once(installation: Installation, tmp_path: Path) -> None:
    env = {**installation.environ, "DOVECOTE_CONFIG_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "dovecote", "mcp"],
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "[no_key]" in done.stderr


def test_the_program_of_the_page_runs(installation: Installation) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    environ = installation.environ | {"DOVECOTE_URL": installation.url, "DOVECOTE_API_KEY": installation.api_key}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environ, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, "42\n\n"), done.stderr
