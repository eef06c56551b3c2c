"""E2B's code interpreter: our events as its clients read them, and what a client's leaving does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from dovecote.api.e2b.call import identity
from dovecote.api.e2b.interpreter import Interpreter, _tell, bodies_of, result_body
from dovecote.api.e2b.ports import Ports
from dovecote.control.sandboxes import Began, Ended, Fault, Printed, Result, Truncated
from dovecote.errors import Failed, NotFound
from dovecote.model.ids import new_id
from tests.unit.context_guest import ContextGuest, Line, Program, contexts_of

pytestmark = pytest.mark.anyio
SLUG = "abcdefghijkmnpqrstuvwxyz23"
SESSION = SimpleNamespace(
    tenant_id=new_id("ten"), id=new_id("ses"), slug=SLUG, env={}, needs_token=True, is_paused=False, token="secret"
)


@pytest.fixture
def guest() -> ContextGuest:
    return ContextGuest()


@pytest.fixture
def interpreter(guest: ContextGuest) -> Interpreter:
    return Interpreter(cast(Any, SimpleNamespace(contexts=contexts_of(guest))))


class Direct:
    """Hands requests to the interpreter, as the layer of ports does once it knows the sandbox."""

    def __init__(self, interpreter: Interpreter) -> None:
        self._interpreter = interpreter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._interpreter.serve(cast(Any, SESSION), scope, receive, send)


def client_of(interpreter: Interpreter) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(Direct(interpreter)), base_url="http://box")


def lines(answer: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line) for line in answer.text.splitlines()]


async def test_code_without_a_context_goes_to_the_default_one(interpreter: Interpreter, guest: ContextGuest) -> None:
    async with client_of(interpreter) as http:
        body = {"code": "1", "context_id": None, "language": None, "env_vars": {"A": "1"}}
        answer = await http.post("/execute", json=body)
        assert answer.status_code == 200
        assert lines(answer) == [
            {"type": "result", "is_main_result": True, "text": "1"},
            {"type": "number_of_executions", "execution_count": 1},
            {"type": "end_of_execution"},
        ]
        assert guest.programs[0].requests[0]["env"] == {"A": "1"}
        await http.post("/execute", json={"code": "2", "language": "js"})
        await http.post("/contexts", json={})
    assert [each.command.tag.split(":")[2] for each in guest.programs] == ["python", "javascript", "python"]
    assert all(each.command.env.items() >= identity(cast(Any, SESSION)).items() for each in guest.programs)


async def test_contexts_are_made_listed_restarted_and_removed(interpreter: Interpreter, guest: ContextGuest) -> None:
    async with client_of(interpreter) as http:
        made = (await http.post("/contexts", json={"cwd": "/tmp"})).json()
        assert (made["language"], made["cwd"], set(made)) == ("python", "/tmp", {"id", "language", "cwd"})
        assert (await http.get("/contexts")).json() == [made]
        assert (await http.post(f"/contexts/{made['id']}/restart")).is_success
        assert len(guest.programs) == 2
        assert (await http.delete(f"/contexts/{made['id']}")).is_success
        assert (await http.get("/contexts")).json() == []


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/execute", {"code": "1", "context_id": "no-such"}),
        ("POST", "/execute", {"code": "1", "context_id": new_id("ctx")}),
        ("DELETE", "/contexts/no-such", None),
        ("POST", "/contexts/..%2f..%2fx/restart", None),
        ("GET", "/nothing", None),
    ],
)
async def test_what_is_not_there_is_not_found(
    interpreter: Interpreter, method: str, path: str, body: dict[str, str] | None
) -> None:
    async with client_of(interpreter) as http:
        with pytest.raises(NotFound):
            await http.request(method, path, json=body)


async def test_a_client_that_leaves_ends_what_it_ran(interpreter: Interpreter, guest: ContextGuest) -> None:
    begun = asyncio.Event()

    def endless(program: Program, request: Line) -> None:
        if request["op"] == "execute":
            program.say(type="queued", id=request["id"])
            program.say(type="began", id=request["id"])
            program.say(type="stdout", id=request["id"], text="begun")

    guest.script = endless
    sent: list[Message] = [{"type": "http.request", "body": json.dumps({"code": "while True: pass"}).encode()}]

    async def receive() -> Message:
        if sent:
            return sent.pop()
        await begun.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message.get("body"):
            begun.set()

    scope = {"type": "http", "method": "POST", "path": "/execute", "headers": []}
    async with asyncio.timeout(10):
        await interpreter.serve(cast(Any, SESSION), scope, receive, send)
    execute, interrupt = guest.programs[0].requests
    assert (interrupt["op"], interrupt["execution"]) == ("interrupt", execute["id"])


@pytest.mark.parametrize(("code", "ends"), [("instance_died", False), ("guest_unreachable", False), ("changed", True)])
async def test_an_answer_whose_sandbox_is_gone_stays_unfinished(code: str, ends: bool) -> None:
    """Clients then ask whether it still runs, and say that it was killed."""

    async def events() -> AsyncGenerator[Any, None]:
        yield Printed("stdout", "x")
        raise Failed("no more", code=code)

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    with nullcontext() if ends else pytest.raises(Failed):
        await _tell(events(), send)
    assert (not sent[-1].get("more_body", False)) is ends
    assert any(b"no more" in each.get("body", b"") for each in sent) is ends


async def test_code_needs_the_token_and_contexts_do_not(interpreter: Interpreter) -> None:
    """Clients send it with code only."""

    async def by_slug(slug: str) -> object:
        return SESSION

    async def nothing(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError(scope["path"])

    ports = Ports(nothing, cast(Any, SimpleNamespace(by_slug=by_slug)), "localhost", {49999: interpreter})
    headers = {"e2b-sandbox-id": SLUG, "e2b-sandbox-port": "49999"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(ports), base_url="http://box", headers=headers) as http:
        assert (await http.get("/contexts")).status_code == 200
        assert (await http.post("/execute", json={"code": "1"})).status_code == 401
        allowed = await http.post("/execute", json={"code": "1"}, headers={"x-access-token": "secret"})
        assert allowed.status_code == 200


def test_events_have_the_names_of_the_wire() -> None:
    (printed,) = bodies_of(Printed("stderr", "x"))
    assert (printed["type"], printed["text"]) == ("stderr", "x")
    assert printed["timestamp"] > 1e18  # nanoseconds
    assert bodies_of(Fault("KernelDied", "it ended", ())) == [
        {"type": "error", "name": "KernelDied", "value": "it ended", "traceback": "KernelDied: it ended"}
    ]
    (cut,) = bodies_of(Truncated())
    assert "dropped" in cut["text"]
    assert bodies_of(Began()) == []
    assert bodies_of(Ended("died", None)) == [{"type": "end_of_execution"}]


def test_results_have_the_names_of_the_wire() -> None:
    table = {"columns": [{"name": "a"}, {"name": "b"}], "rows": [[1, "x"], [2, None], ["spoiled"]]}
    data = {"text/plain": "'it'", "image/png": "aGk=", "x/y": 1, "application/vnd.dovecote.table+json": table}
    assert result_body(Result(data, True)) == {
        "text": "it",
        "png": "aGk=",
        "data": {"a": [1, 2], "b": ["x", None]},
        "extra": {"x/y": 1},
    }
    for spoiled in ("text", {}, {"rows": 3}, {"rows": [], "columns": [3]}):
        result_body(Result({"application/vnd.dovecote.table+json": spoiled}, False))
