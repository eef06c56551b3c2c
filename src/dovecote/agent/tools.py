"""What the agent can do: everything through the public client, everything in its session."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

import httpx
from pydantic_ai import RunContext
from typing_extensions import TypedDict  # pydantic wants this one below Python 3.12

from dovecote.agent.events import PlanUpdated, Show, Step, ToolAnswered, ToolCalled
from dovecote.sdk import AsyncDovecote, AsyncSession, DovecoteError

LONGEST_ANSWER = 20_000  # characters of a tool's answer that a model is given
LONGEST_COMMAND = 600.0  # seconds
SERVER_TAG = "start"  # of the command that a recorded start runs as
STOP_SECONDS = 10.0

Answer = TypeVar("Answer", bound="ToolAnswer")


class ToolAnswer(TypedDict):
    ok: bool


class RunAnswer(ToolAnswer):
    exit_code: int | None
    output: str


class FetchAnswer(ToolAnswer):
    status: int
    content_type: str
    body: str


class ServerAnswer(ToolAnswer):
    address: str
    error: str


class TextAnswer(ToolAnswer):
    text: str


@dataclass
class Workbench:
    """What the tools of one turn share."""

    client: AsyncDovecote
    session: AsyncSession
    show: Show
    plan: tuple[Step, ...] = field(default=())


Context = RunContext[Workbench]


async def plan(context: Context, steps: list[Step]) -> TextAnswer:
    """Show the plan, or show it again with the states changed. Give all steps each time.

    A step's state is one of todo, doing, done, failed.
    """
    context.deps.plan = tuple(steps)
    context.deps.show(PlanUpdated(context.deps.plan))
    return {"ok": True, "text": "shown"}


async def write_file(context: Context, path: str, content: str) -> TextAnswer:
    """Write a text file; directories are made. Relative paths start in the home directory."""

    async def act() -> tuple[TextAnswer, str]:
        await context.deps.session.files.write(path, content)
        return {"ok": True, "text": f"wrote {len(content)} characters"}, f"{len(content)} characters"

    return await _shown(context, "write_file", path, act, _text_failed)


async def read_file(context: Context, path: str) -> TextAnswer:
    """Read a text file."""

    async def act() -> tuple[TextAnswer, str]:
        text = (await context.deps.session.files.read(path, length=LONGEST_ANSWER)).decode("utf-8", "replace")
        return {"ok": True, "text": text}, f"{len(text)} characters"

    return await _shown(context, "read_file", path, act, _text_failed)


async def run(context: Context, command: str, cwd: str = "", timeout: float = 120) -> RunAnswer:
    """Run a shell command in the sandbox and wait for it. `timeout` is in seconds, at most 600.

    Servers go through start_server, not through this.
    """

    async def act() -> tuple[RunAnswer, str]:
        done = await context.deps.session.run(command, cwd=cwd or None, timeout=min(timeout, LONGEST_COMMAND))
        said = (done.stdout + done.stderr).strip()
        end = "timed out" if done.timed_out else f"exit code {done.exit_code}"
        lines = said.splitlines()
        answer: RunAnswer = {"ok": done.is_ok, "exit_code": done.exit_code, "output": said[-LONGEST_ANSWER:]}
        return answer, f"{end}; {lines[-1][:100]}" if lines else end

    return await _shown(context, "run", command, act, lambda text: {"ok": False, "exit_code": None, "output": text})


async def start_server(context: Context, command: str, port: int, cwd: str) -> ServerAnswer:
    """Record how the project's server is started and start it, waiting until its port is open.

    The server must listen on 0.0.0.0, read its port from $PORT if it can, and stay in the foreground.
    Call it again after a change: the old server is stopped first.
    """

    async def act() -> tuple[ServerAnswer, str]:
        session = context.deps.session
        await _stop_server(session)
        await session.set_start(command, port, cwd, {"PORT": str(port)})
        await session.wake()
        address = session.url(port)
        return {"ok": True, "address": address, "error": ""}, address

    return await _shown(
        context,
        "start_server",
        f"{command} on port {port}",
        act,
        lambda text: {"ok": False, "address": "", "error": text},
    )


async def fetch(context: Context, port: int, path: str = "/", method: str = "GET", body: str = "") -> FetchAnswer:
    """Ask the project's server through its public preview address, as a browser would. `body` is JSON text."""

    async def act() -> tuple[FetchAnswer, str]:
        session = context.deps.session
        headers = {"content-type": "application/json"} if body else {}
        async with context.deps.client.http_for(session.url(port)) as http:
            response = await http.request(method, path, content=body or None, headers=headers)
        text = response.text[:LONGEST_ANSWER]
        answer: FetchAnswer = {
            "ok": response.is_success,
            "status": response.status_code,
            "content_type": response.headers.get("content-type", ""),
            "body": text,
        }
        return answer, f"status {response.status_code}, {len(response.content)} bytes"

    return await _shown(
        context,
        "fetch",
        f"{method} {path}",
        act,
        lambda text: {"ok": False, "status": 0, "content_type": "", "body": text},
    )


async def publish(context: Context, name: str = "") -> ServerAnswer:
    """Publish the project as an app with an address of its own. Only when the user asked for it."""

    async def act() -> tuple[ServerAnswer, str]:
        app = await context.deps.client.apps.publish(context.deps.session, name=name or None)
        return {"ok": True, "address": app.address, "error": ""}, app.address

    return await _shown(
        context, "publish", name or "unnamed", act, lambda text: {"ok": False, "address": "", "error": text}
    )


TOOLS = (plan, write_file, read_file, run, start_server, fetch, publish)


async def _stop_server(session: AsyncSession) -> None:
    """Ends the server that waking started before; there is none the first time."""
    for command in await session.commands():
        if command.tag == SERVER_TAG and command.is_running:
            server = session.command(command.number)
            await server.signal("SIGTERM")
            try:
                await asyncio.wait_for(server.wait(), STOP_SECONDS)
            except TimeoutError:
                await server.signal("SIGKILL")
                await asyncio.wait_for(server.wait(), STOP_SECONDS)


async def _shown(
    context: Context,
    name: str,
    summary: str,
    act: Callable[[], Awaitable[tuple[Answer, str]]],
    failed: Callable[[str], Answer],
) -> Answer:
    """Does it and shows it. What goes wrong is an answer too: the model is to read it."""
    context.deps.show(ToolCalled(name, summary))
    started = time.monotonic()
    try:
        answer, outcome = await act()
    except (DovecoteError, httpx.HTTPError) as error:
        answer, outcome = failed(str(error)), str(error)
    context.deps.show(ToolAnswered(name, outcome[:200], answer["ok"], time.monotonic() - started))
    return answer


def _text_failed(text: str) -> TextAnswer:
    return {"ok": False, "text": text}
