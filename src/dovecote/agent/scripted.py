"""The scripted model: no AI, needs no key. It knows one project, but reads what really happened before each step."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING, Any

from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    RetryPromptPart,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models.function import AgentInfo, FunctionModel

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

NAME = "scripted"
DIRECTORY = "pigeon-post"
CWD = f"/home/user/{DIRECTORY}"
PORT = 3000
START = "node server.js"
INSTALL = "npm install --no-audit --no-fund --loglevel=error"
BUILD = "npm run build"
MOST_REPAIRS = 3
STEPS = (
    "Write the project",
    "Install its dependencies",
    "Build the front end",
    "Start the server",
    "Check it as a visitor",
)

# What the script knows of libraries: which module gives a name that a program forgot to import. All of date-fns would
# do, too, but costs each start a second.
EXPORTED_BY = {"formatDistanceToNow": "date-fns/formatDistanceToNow", "express": "express", "z": "zod"}

UNDEFINED = re.compile(r"ReferenceError: (\w+) is not defined")
IN_FILE = re.compile(re.escape(CWD) + r"/([\w./-]+\.m?jsx?):\d+")


@dataclass(frozen=True)
class Done:
    """A tool that was called in this turn, and what it answered."""

    name: str
    arguments: Mapping[str, Any]
    answer: Mapping[str, Any]

    @property
    def is_ok(self) -> bool:
        return bool(self.answer.get("ok"))


@dataclass(frozen=True)
class Move:
    """What to do next: call tools, or say something and stop."""

    calls: tuple[tuple[str, dict[str, Any]], ...] = field(default=())
    text: str = ""


def scripted_model() -> FunctionModel:
    return FunctionModel(_answer, model_name=NAME)


def project_files() -> dict[str, str]:
    """The project, path below its directory -> text; one bug is in it on purpose."""
    return dict(sorted(_walk(resources.files("dovecote.agent").joinpath("project"), "")))


def next_move(prompt: str, done: Sequence[Done]) -> Move:
    """What the script does, given what it was asked and all that happened since. No clock, no I/O."""
    wish = prompt.lower()
    if "publish" in wish:
        return _publish(wish, done)
    if "pigeon" in wish or "message board" in wish:
        return _build(done)
    return Move(
        text="I am a script, not a model: I can build the message board 'pigeon post' and publish it, no more. "
        "Set DOVECOTE_MODEL_BASE_URL and DOVECOTE_MODEL_NAME to talk to a model."
    )


def _build(done: Sequence[Done]) -> Move:
    """Write, install, build, start, check; repair what the check finds, if the error is understood, and check again."""
    files = {f"{DIRECTORY}/{path}": text for path, text in project_files().items()}
    written = _all(done, "write_file")
    if not written:
        return _do(0, *(("write_file", {"path": path, "content": text}) for path, text in files.items()))
    if failed := next((each for each in written if not each.is_ok), None):
        return _give_up(done, 0, f"I could not write {failed.arguments['path']}: {failed.answer.get('text')}")
    for index, (command, timeout) in enumerate(((INSTALL, 300), (BUILD, 120)), start=1):
        ran = [each for each in _all(done, "run") if each.arguments["command"] == command]
        if not ran:
            return _do(index, ("run", {"command": command, "cwd": CWD, "timeout": timeout}))
        if not ran[-1].is_ok:
            return _give_up(done, index, f"`{command}` failed:\n{_end(ran[-1].answer.get('output'))}")
    started = _all(done, "start_server")
    if not started:
        return _do(3, ("start_server", {"command": START, "port": PORT, "cwd": CWD}))
    if not started[-1].is_ok:
        return _give_up(done, 3, f"the server did not start: {_end(started[-1].answer.get('error'))}")
    return _check(done)


def _check(done: Sequence[Done]) -> Move:
    since = _after_last(done, "start_server")
    api = [each for each in _all(since, "fetch") if each.arguments["path"] == "/api/messages"]
    if not api:
        return _do(4, ("fetch", {"port": PORT, "path": "/api/messages"}))
    if not api[-1].is_ok:
        return _repair(done, since, str(api[-1].answer.get("body", "")), int(api[-1].answer.get("status", 0)))
    page = [each for each in _all(since, "fetch") if each.arguments["path"] == "/"]
    if not page:
        return _do(4, ("fetch", {"port": PORT, "path": "/"}))
    if not page[-1].is_ok or "Pigeon Post" not in str(page[-1].answer.get("body")):
        return _give_up(done, 4, f"the page is not what it should be: status {page[-1].answer.get('status')}")
    if not _shows(done, "done"):
        return Move(calls=(_plan(len(STEPS)),))
    repairs = len(_repairs(done))
    address = _all(done, "start_server")[-1].answer.get("address")
    fixed = f" I found and fixed {repairs} error{'s' if repairs > 1 else ''} on the way." if repairs else ""
    return Move(text=f"Pigeon Post runs at {address}.{fixed}")


def _repair(done: Sequence[Done], since: Sequence[Done], error: str, status: int) -> Move:
    """From the error as the server printed it to a change of the file that it names."""
    name, place = UNDEFINED.search(error), IN_FILE.search(error)
    package = EXPORTED_BY.get(name[1]) if name else None
    if name is None or place is None or package is None:
        return _give_up(done, 4, f"/api/messages answers {status} and I do not understand why:\n{_end(error)}")
    path = f"{DIRECTORY}/{place[1]}"
    read = [each for each in _all(since, "read_file") if each.arguments["path"] == path]
    if not read and len(_repairs(done)) >= MOST_REPAIRS:
        return _give_up(done, 4, f"after {MOST_REPAIRS} repairs it still fails:\n{_end(error)}")
    if not read:
        return Move(calls=(_plan(4, f"Repair {place[1]}: {name[0]}"), ("read_file", {"path": path})))
    wrote = _all(since, "write_file")
    if not wrote and read[-1].is_ok:
        fixed = f"import {{ {name[1]} }} from '{package}'\n" + str(read[-1].answer["text"])
        return Move(calls=(("write_file", {"path": path, "content": fixed}),))
    if not wrote or not wrote[-1].is_ok:
        return _give_up(done, 4, f"I could not change {path}")
    return Move(calls=(("start_server", {"command": START, "port": PORT, "cwd": CWD}),))


def _publish(wish: str, done: Sequence[Done]) -> Move:
    published = _all(done, "publish")
    if not published:
        named = re.search(r"\bas ([a-z][a-z0-9-]*)", wish)
        return Move(calls=(("publish", {"name": named[1] if named else ""}),))
    answer = published[-1].answer
    return Move(
        text=f"It is live at {answer['address']}." if published[-1].is_ok else f"Not published: {answer['error']}"
    )


# -- reading what happened


def _all(done: Sequence[Done], name: str) -> list[Done]:
    return [each for each in done if each.name == name]


def _after_last(done: Sequence[Done], name: str) -> Sequence[Done]:
    last = max(index for index, each in enumerate(done) if each.name == name)
    return done[last + 1 :]


def _repairs(done: Sequence[Done]) -> list[Done]:
    """Files written after the server was first started."""
    first = next((index for index, each in enumerate(done) if each.name == "start_server"), len(done))
    return _all(done[first:], "write_file")


def _shows(done: Sequence[Done], state: str) -> bool:
    plans = _all(done, "plan")
    return bool(plans) and all(step["state"] == state for step in plans[-1].arguments["steps"])


def _end(text: object) -> str:
    return str(text or "nothing was printed").strip()[-1200:]


# -- making moves


def _do(step: int, *calls: tuple[str, dict[str, Any]]) -> Move:
    return Move(calls=(_plan(step), *calls))


def _plan(current: int, extra: str = "", state: str = "doing") -> tuple[str, dict[str, Any]]:
    def of(index: int) -> str:
        return "done" if index < current else state if index == current else "todo"

    steps = [{"title": title, "state": of(index)} for index, title in enumerate(STEPS)]
    if extra:
        steps.append({"title": extra, "state": state})
    return "plan", {"steps": steps}


def _give_up(done: Sequence[Done], step: int, why: str) -> Move:
    plans = _all(done, "plan")
    if plans and any(each["state"] == "failed" for each in plans[-1].arguments["steps"]):
        return Move(text=f"I stop here: {why}")
    return Move(calls=(_plan(step, state="failed"),))


# -- the model's side


async def _answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    prompt, done = read_history(messages)
    move = next_move(prompt, done)
    if not move.calls:
        return ModelResponse(parts=[TextPart(move.text)])
    return ModelResponse(parts=[ToolCallPart(name, arguments) for name, arguments in move.calls])


def read_history(messages: Sequence[ModelMessage]) -> tuple[str, list[Done]]:
    """The user's last wish, and the tools called since with their answers."""
    prompt = ""
    calls: dict[str, ToolCallPart] = {}
    done: list[Done] = []
    for message in messages:
        for part in message.parts:
            if isinstance(message, ModelRequest) and isinstance(part, UserPromptPart):
                prompt = part.content if isinstance(part.content, str) else " ".join(map(str, part.content))
                calls, done = {}, []
            elif isinstance(part, ToolCallPart):
                calls[part.tool_call_id] = part
            elif isinstance(part, ToolReturnPart | RetryPromptPart) and part.tool_call_id in calls:
                call = calls[part.tool_call_id]
                done.append(Done(call.tool_name, call.args_as_dict(), _answer_of(part)))
    return prompt, done


def _answer_of(part: ToolReturnPart | RetryPromptPart) -> Mapping[str, Any]:
    if isinstance(part, RetryPromptPart):
        said = part.model_response()
        return {"ok": False, "text": said, "output": said, "error": said, "body": said}
    content = part.content
    if isinstance(content, str):
        content = json.loads(content)
    return content if isinstance(content, Mapping) else {}


def _walk(directory: Traversable, prefix: str) -> Iterator[tuple[str, str]]:
    for entry in directory.iterdir():
        if entry.is_dir():
            yield from _walk(entry, f"{prefix}{entry.name}/")
        else:
            yield prefix + entry.name, entry.read_text("utf-8")
