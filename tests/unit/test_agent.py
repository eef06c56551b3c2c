"""The agent with its scripted model: it follows what really happened, and stops where it does not understand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import httpx
import pytest

from dovecote.agent.events import AgentEvent, PlanUpdated, Said, ToolAnswered, ToolCalled
from dovecote.agent.models import ModelChoice
from dovecote.agent.scripted import CWD, DIRECTORY, INSTALL, project_files
from dovecote.agent.turns import ChatAgent
from dovecote.sdk import AsyncDovecote, AsyncSession, Chat, Finished, ServerFailed, Turn

pytestmark = pytest.mark.anyio
IMPORT = "import { formatDistanceToNow } from 'date-fns/formatDistanceToNow'\n"
SERVER = f"{DIRECTORY}/server.js"


@dataclass
class CommandRow:
    number: int
    tag: str
    is_running: bool


@dataclass
class FakeCommand:
    machine: Machine

    async def signal(self, signal: str) -> None:
        self.machine.running = None

    async def wait(self) -> None:
        assert self.machine.running is None


@dataclass
class Files:
    content: dict[str, str] = field(default_factory=dict)
    change: Callable[[str, str], str] = field(default=lambda path, text: text)

    async def write(self, path: str, content: str) -> None:
        self.content[path] = self.change(path, content)

    async def read(self, path: str, *, length: int) -> bytes:
        return self.content[path].encode()[:length]


@dataclass
class Machine:
    """A sandbox whose server behaves as the files that were there when it was started."""

    files: Files = field(default_factory=Files)
    failing: dict[str, str] = field(default_factory=dict)  # command -> its output
    error: str = "ReferenceError: formatDistanceToNow is not defined<br> &nbsp;at file://{cwd}/server.js:42:13"
    running: str | None = None
    starts: int = 0
    commands_run: list[str] = field(default_factory=list)

    # the session's side of the client

    async def run(self, command: str, *, cwd: str | None, timeout: float) -> Finished:
        self.commands_run.append(command)
        output = self.failing.get(command)
        return Finished(output or "done\n", "", 0 if output is None else 1, None, False, False)

    async def commands(self) -> list[CommandRow]:
        return [CommandRow(1, "start", self.running is not None)]

    def command(self, number: int) -> FakeCommand:
        return FakeCommand(self)

    async def set_start(self, command: str, port: int, cwd: str, env: dict[str, str]) -> None:
        assert (cwd, env) == (CWD, {"PORT": str(port)})

    async def wake(self) -> None:
        if "start" in self.failing:
            raise ServerFailed(self.failing["start"], code="start_failed")
        assert self.running is None, "the old server still runs"
        self.running = self.files.content[SERVER]
        self.starts += 1

    def url(self, port: int) -> str:
        return f"http://{port}-abc.box.localhost"

    def answer(self, request: httpx.Request) -> httpx.Response:
        if request.url.path != "/api/messages":
            return httpx.Response(200, html="<html><title>Pigeon Post</title></html>")
        if self.running is not None and self.running.startswith(IMPORT):
            return httpx.Response(200, json={"messages": []})
        return httpx.Response(500, html=f"<pre>{self.error.format(cwd=CWD)}</pre>")


@dataclass
class Client:
    machine: Machine
    kept: list[Turn] = field(default_factory=list)

    @property
    def chats(self) -> Client:
        return self

    @property
    def apps(self) -> Client:
        return self

    def http_for(self, url: str) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.MockTransport(self.machine.answer), base_url=url)

    async def turns(self, chat_id: str) -> list[Turn]:
        return self.kept

    async def add_turn(self, chat_id: str, messages: list[dict[str, Any]]) -> None:
        self.kept.append(Turn("trn", chat_id, len(self.kept) + 1, messages, cast(Any, None)))

    async def publish(self, session: object, *, name: str | None) -> Any:
        @dataclass
        class Published:
            address: str = f"http://{name}.app.localhost"

        return Published()


class Talk:
    """A chat on a machine; `events` is what a user would see."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.client = Client(machine)
        self.agent = ChatAgent(cast(AsyncDovecote, self.client), ModelChoice())
        self.events: list[AgentEvent] = []
        self.session = cast(AsyncSession, machine)

    async def say(self, prompt: str) -> str:
        chat = Chat("cha", "ses", "usr", "", cast(Any, None))
        return await self.agent.turn(chat, self.session, prompt, self.events.append)

    def called(self, name: str) -> list[str]:
        return [each.summary for each in self.events if isinstance(each, ToolCalled) and each.name == name]


async def test_it_builds_sees_the_error_and_repairs_it() -> None:
    talk = Talk(Machine())
    said = await talk.say("Build pigeon post")
    machine = talk.machine
    assert "http://3000-abc.box.localhost" in said
    assert "fixed 1 error" in said
    assert machine.files.content[SERVER] == IMPORT + project_files()["server.js"]
    assert machine.starts == 2
    assert talk.called("fetch") == ["GET /api/messages", "GET /api/messages", "GET /"]
    assert machine.commands_run == [INSTALL, "npm run build"]
    plans = [each for each in talk.events if isinstance(each, PlanUpdated)]
    assert {step.state for step in plans[-1].steps} == {"done"}
    assert any("ReferenceError" in step.title for plan in plans for step in plan.steps)


async def test_without_the_bug_it_repairs_nothing() -> None:
    """So it is the real answer that it reacts to, and not a play that runs off."""
    machine = Machine(Files(change=lambda path, text: IMPORT + text if path == SERVER else text))
    talk = Talk(machine)
    said = await talk.say("Build pigeon post")
    assert "fixed" not in said
    assert machine.starts == 1
    assert talk.called("read_file") == []


@pytest.mark.parametrize("failing", [INSTALL, "npm run build"])
async def test_a_step_that_fails_is_reported_and_ends_it(failing: str) -> None:
    talk = Talk(Machine(failing={failing: "npm error ENOTFOUND the registry"}))
    said = await talk.say("Build pigeon post")
    assert said.startswith("I stop here")
    assert "ENOTFOUND" in said
    assert talk.machine.commands_run[-1] == failing
    assert talk.machine.starts == 0
    assert any(step.state == "failed" for step in [e for e in talk.events if isinstance(e, PlanUpdated)][-1].steps)


async def test_a_server_that_does_not_start_is_reported() -> None:
    talk = Talk(Machine(failing={"start": "the start command ended"}))
    assert "the start command ended" in await talk.say("Build pigeon post")


async def test_an_error_that_it_does_not_understand_ends_it() -> None:
    talk = Talk(Machine(error="TypeError: store is null"))
    said = await talk.say("Build pigeon post")
    assert "do not understand" in said
    assert "TypeError: store is null" in said
    assert talk.machine.starts == 1


async def test_a_repair_that_does_not_help_is_not_repeated_for_ever() -> None:
    talk = Talk(Machine(error="ReferenceError: z is not defined at file://{cwd}/server.js:1:1"))
    assert "after 3 repairs it still fails" in await talk.say("Build pigeon post")
    assert talk.machine.starts == 4


async def test_turns_are_kept_and_the_next_one_reads_them() -> None:
    talk = Talk(Machine())
    await talk.say("Build pigeon post")
    assert await talk.say("publish it as my-post") == "It is live at http://my-post.app.localhost."
    assert [turn.number for turn in talk.client.kept] == [1, 2]
    assert talk.called("publish") == ["my-post"]
    assert await talk.say("what is the weather?") == [e for e in talk.events if isinstance(e, Said)][-1].text


async def test_what_is_shown_says_that_it_is_a_script() -> None:
    assert "scripted" in Talk(Machine()).agent.label
    assert ModelChoice("http://x", "m").label == "m"


async def test_a_tool_that_fails_is_shown_as_failed() -> None:
    talk = Talk(Machine(failing={INSTALL: "no"}))
    await talk.say("Build pigeon post")
    answers = [each for each in talk.events if isinstance(each, ToolAnswered)]
    assert [each.is_ok for each in answers if each.name == "run"] == [False]
    assert all(each.is_ok for each in answers if each.name == "write_file")
