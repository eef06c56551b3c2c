"""MCP clients of the `mcp` package that call a tool in one session after the other, each as long as it lasts."""

from __future__ import annotations

import asyncio
import logging
import tempfile
import threading
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx2
from mcp import ClientSession
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from tests.e2e.packages import copy_packages

from dovecote.sdk import Affinity, Dovecote, Function, Sharing, Start

logging.getLogger("mcp").setLevel(logging.CRITICAL)  # it tells of each cut connection, at length
ANSWERS_WITHIN = 60.0  # seconds
PAUSE = 0.5
LONGEST_SESSION = 40  # calls

# Counts the calls of each name, in memory: a session that goes over to another process begins again at one.
SERVER = """
import os, uuid
import uvicorn
from mcp.server import MCPServer
from starlette.applications import Starlette
me, calls = uuid.uuid4().hex, {}
server = MCPServer("counter")
@server.tool()
def count(name: str) -> str:
    calls[name] = calls.get(name, 0) + 1
    return f"{me} {calls[name]}"
http, sse = server.streamable_http_app(host="0.0.0.0"), server.sse_app(host="0.0.0.0")
app = Starlette(routes=[*http.routes, *sse.routes], lifespan=http.router.lifespan_context)
uvicorn.run(app, host="0.0.0.0", port=int(os.environ["PORT"]), log_level="warning")
"""


def deploy(dovecote: Dovecote, name: str) -> Function:
    start = Start("exec python3 -u server.py", 9000, env={"PYTHONPATH": "packages"})
    made = dovecote.functions.create(
        name, start=start, affinity=Affinity(["mcp-http", "mcp-sse"]), sharing=Sharing(sessions=2)
    )
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "server.py").write_text(SERVER)
        copy_packages("mcp", Path(directory) / "packages")
        list(dovecote.functions.put_files(name, Path(directory)))
    return made


class ToolUser:
    """`sessions` were begun, `calls` answered; `cut` counts what sessions ended by."""

    def __init__(self, name: str, address: str, headers: dict[str, str], *, is_sse: bool) -> None:
        self.name = name
        self._address, self._headers, self._is_sse = address, headers, is_sse
        self._over = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._work()), daemon=True)
        self.sessions = self.calls = 0
        self.cut: Counter[str] = Counter()
        self.faults: list[str] = []

    def begin(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join(3 * ANSWERS_WITHIN)
        assert not self._thread.is_alive(), "an MCP client never came back"

    async def _work(self) -> None:
        while not self._over.is_set():
            try:
                async with asyncio.timeout(2 * ANSWERS_WITHIN), self._session() as session:
                    self.sessions += 1
                    await self._call(session, f"{self.name}-{self.sessions}")
            except Exception as error:  # whatever its library makes of a cut connection
                self.cut[_innermost(error)] += 1
            await asyncio.sleep(PAUSE)

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[ClientSession]:
        async with AsyncExitStack() as held:
            if self._is_sse:
                opened = sse_client(self._address + "sse", headers=self._headers, timeout=ANSWERS_WITHIN)
            else:
                http = httpx2.AsyncClient(headers=self._headers, timeout=ANSWERS_WITHIN)
                await held.enter_async_context(http)
                opened = streamable_http_client(self._address + "mcp", http_client=http)
            streams = await held.enter_async_context(opened)
            session = await held.enter_async_context(ClientSession(*streams))
            await asyncio.wait_for(session.initialize(), ANSWERS_WITHIN)
            yield session

    async def _call(self, session: ClientSession, name: str) -> None:
        """In one session all calls are answered by one process, and each is counted once."""
        first = None
        for number in range(1, LONGEST_SESSION + 1):
            if self._over.is_set():
                return
            result = await asyncio.wait_for(session.call_tool("count", {"name": name}), ANSWERS_WITHIN)
            boot, _, count = str(getattr(result.content[0], "text", "")).partition(" ")
            self.calls += 1
            first = first or boot
            if (boot, count) != (first, str(number)):
                self.faults.append(f"{name}: call {number} was counted {count} by {boot}, the first by {first}")
                return
            await asyncio.sleep(0.1)


def _innermost(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return type(error).__name__
