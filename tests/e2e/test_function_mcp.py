"""MCP servers of the `mcp` package as functions, called by its own clients through the gateway."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import httpx2
import pytest
from mcp import ClientSession
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client

from dovecote.sdk import Affinity, Dovecote, Function, Sharing, Start
from tests.e2e.installation import Installation
from tests.e2e.packages import copy_packages

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.anyio,
    pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="packages of this Python are not the sandbox's"),
]

SERVER = """
import os, uuid
import uvicorn
from mcp.server import MCPServer
from starlette.applications import Starlette
me, calls = uuid.uuid4().hex, 0
server = MCPServer("counter")
@server.tool()
def count() -> str:
    global calls
    calls += 1
    return f"{me} {calls}"
http, sse = server.streamable_http_app(host="0.0.0.0"), server.sse_app(host="0.0.0.0")
app = Starlette(routes=[*http.routes, *sse.routes], lifespan=http.router.lifespan_context)
uvicorn.run(app, host="0.0.0.0", port=int(os.environ["PORT"]), log_level="warning")
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The server with the packages that these tests themselves have: a sandbox needs no index to run it."""
    directory = tmp_path_factory.mktemp("mcp-server")
    (directory / "server.py").write_text(SERVER)
    copy_packages("mcp", directory / "packages")
    return directory


@pytest.fixture(scope="module")
def counter(installation: Installation, project: Path) -> Iterator[Function]:
    with counting(installation, project, "mcp-counter") as function:
        yield function


@pytest.fixture(scope="module")
def shared(installation: Installation, project: Path) -> Iterator[Function]:
    with counting(installation, project, "mcp-shared", Sharing(sessions=2)) as function:
        yield function


@contextmanager
def counting(
    installation: Installation, project: Path, name: str, sharing: Sharing | None = None
) -> Iterator[Function]:
    start = Start("exec python3 -u server.py", 9000, env={"PYTHONPATH": "packages"})
    affinity = Affinity(["mcp-http", "mcp-sse", "header"])
    with installation.client() as dovecote:
        function = dovecote.functions.create(name, start=start, affinity=affinity, sharing=sharing)
        try:
            list(dovecote.functions.put_files(function.name, project))
            yield function
        finally:
            dovecote.functions.delete(function.name)


async def counted(session: ClientSession) -> tuple[str, int]:
    """The instance that answered, and how many calls it had."""
    result = await session.call_tool("count", {})
    instance, calls = str(getattr(result.content[0], "text", "")).split()
    return instance, int(calls)


async def test_streamable_http_clients_stay_each_with_an_instance(
    installation: Installation, counter: Function
) -> None:
    headers = {"x-dovecote-key": installation.api_key}
    seen = []
    for _ in range(2):
        async with (
            httpx2.AsyncClient(headers=headers, timeout=60) as http,
            streamable_http_client(counter.path_address + "mcp", http_client=http) as streams,
            ClientSession(*streams) as session,
        ):
            await session.initialize()
            first, second = await counted(session), await counted(session)
            assert (first[1], second) == (1, (first[0], 2))
            seen.append(first[0])
    assert len(set(seen)) == 2


async def test_sse_clients_of_old_stay_each_with_an_instance(installation: Installation, counter: Function) -> None:
    headers = {"x-dovecote-key": installation.api_key}
    seen = []
    for _ in range(2):
        async with (
            sse_client(counter.path_address + "sse", headers=headers, timeout=60) as streams,
            ClientSession(*streams) as session,
        ):
            await session.initialize()
            first, second = await counted(session), await counted(session)
            assert (first[1], second) == (1, (first[0], 2))
            seen.append(first[0])
    assert len(set(seen)) == 2


async def test_a_header_keeps_clients_of_2026_with_their_instance(
    installation: Installation, dovecote: Dovecote, counter: Function
) -> None:
    seen = []
    for chat in ("chat-1", "chat-2"):
        headers = {"x-dovecote-key": installation.api_key, counter.affinity.header: chat}
        answers = []
        for _ in range(2):  # each with connections of its own: nothing but the header says that they belong together
            async with (
                httpx2.AsyncClient(headers=headers, timeout=60) as http,
                streamable_http_client(counter.path_address + "mcp", http_client=http) as streams,
                ClientSession(*streams) as session,
            ):
                await session.discover()
                answers.append(await counted(session))
        assert answers == [(answers[0][0], 1), (answers[0][0], 2)]
        seen.append(answers[0][0])
    assert len(set(seen)) == 2
    assert {"chat-1", "chat-2"} <= {each.key for each in dovecote.sessions.list(function=counter.name)}


@pytest.mark.parametrize("is_sse", [False, True])
async def test_clients_of_shared_instances_stay_each_with_its_own(
    installation: Installation, shared: Function, is_sse: bool
) -> None:
    headers = {"x-dovecote-key": installation.api_key}
    async with AsyncExitStack() as held:
        sessions = []
        for _ in range(4):
            if is_sse:
                opened = sse_client(shared.path_address + "sse", headers=headers, timeout=60)
            else:
                http = await held.enter_async_context(httpx2.AsyncClient(headers=headers, timeout=60))
                opened = streamable_http_client(shared.path_address + "mcp", http_client=http)
            streams = await held.enter_async_context(opened)
            session = await held.enter_async_context(ClientSession(*streams))
            await session.initialize()
            sessions.append(session)
        instances: list[str] = []
        for session in sessions:
            answers = {(await counted(session))[0] for _ in range(3)}
            assert len(answers) == 1
            instances += answers
        assert sorted(Counter(instances).values()) == [2, 2]
