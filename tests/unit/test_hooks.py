"""Hooks: what is called inside an instance at its turns, and what is said of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest

from dovecote.control.fleet import Command
from dovecote.control.sessions.hooks import INITIALIZE, PRE_FREEZE, PRE_STOP, Inside, run_hook
from dovecote.errors import Failed
from dovecote.host.guest import Finished, Guest
from dovecote.model.past import HookRun
from dovecote.model.records import Revision, Start
from dovecote.model.serving import Hook, Hooks
from dovecote.model.sizes import NetworkPolicy
from dovecote.model.trees import Inside as Template
from tests.unit.memory_instance import NOW

pytestmark = pytest.mark.anyio
SHORT = timedelta(milliseconds=200)


class OneCommand(Guest):
    """Runs a command as it is told to end."""

    def __init__(self, end: Callable[[], Awaitable[Finished]]) -> None:
        self.end = end
        self.ran: list[Command] = []

    async def run(self, command: Command, *, stdin: bytes | None = None, max_output: int = 1 << 20) -> Finished:
        self.ran.append(command)
        return await self.end()


def _inside(hook: Hook, *, name: str, guest: Guest | None = None, port: int = 0) -> Inside:
    revision = Revision(
        id="rev_1",
        tenant_id="ten_1",
        function_id="fun_1",
        number=1,
        template="digest",
        template_name="base",
        tree=None,
        spec="small",
        level="crun",
        network=NetworkPolicy(),
        start=Start("serve", port) if port else None,
        env={},
        created_at=NOW,
        hooks=Hooks(**{name: hook}),
        pinned=Template("user", "/home/user", False, {}),
    )
    guest = guest or OneCommand(_never)
    return Inside("ins_1", "127.0.0.1", guest, revision, revision.start, {"A": "b"})


async def _never() -> Finished:
    await asyncio.Event().wait()
    raise AssertionError


def _ended(code: int | None, **changes: Any) -> Callable[[], Awaitable[Finished]]:
    fields = {"stdout": b"", "stderr": b"", "signal": None, "timed_out": False, "truncated": False, **changes}

    async def end() -> Finished:
        return Finished(exit_code=code, **fields)

    return end


@asynccontextmanager
async def _server(answer: bytes | None, *, heard: list[bytes], closes: bool = True) -> AsyncIterator[int]:
    done = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readuntil(b"\r\n\r\n"))
        if answer is not None:
            writer.write(answer)
            await writer.drain()
        if not closes:
            await done.wait()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        done.set()
        server.close()


async def _asked(answer: bytes | None, name: str = INITIALIZE, **server: Any) -> tuple[HookRun, list[bytes]]:
    heard: list[bytes] = []
    async with _server(answer, heard=heard, **server) as port:
        run = await run_hook(_inside(Hook(path="/turn", timeout=SHORT), name=name, port=port), name)
    assert run is not None
    return run, heard


async def test_a_function_without_the_hook_has_no_run() -> None:
    assert await run_hook(_inside(Hook(command="true"), name=PRE_STOP), PRE_FREEZE) is None


@pytest.mark.parametrize(("name", "method"), [(INITIALIZE, b"POST"), (PRE_FREEZE, b"GET"), (PRE_STOP, b"GET")])
async def test_a_path_is_asked_by_its_method(name: str, method: bytes) -> None:
    run, [request] = await _asked(b"HTTP/1.1 204 No Content\r\n\r\n", name)
    assert run.is_ok
    assert run.hook == name
    assert request.startswith(method + b" /turn HTTP/1.1\r\n")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 500 Oops\r\n\r\n", "it answered 500"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/\r\n\r\n", "it answered 302"),
        (b"SSH-2.0-x\r\n", "not HTTP"),
        (b"", "without an answer"),
        (b"x" * 300_000, "without an answer"),
    ],
)
async def test_any_other_answer_is_a_failure_with_its_reason(answer: bytes, reason: str) -> None:
    run, _ = await _asked(answer)
    assert not run.is_ok
    assert reason in run.reason


async def test_a_server_that_keeps_the_connection_has_answered_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dovecote.control.sessions.hooks.CLOSES_WITHIN", SHORT.total_seconds())
    heard: list[bytes] = []
    async with _server(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", heard=heard, closes=False) as port:
        hook = Hook(path="/turn", timeout=timedelta(seconds=30))
        run = await run_hook(_inside(hook, name=INITIALIZE, port=port), INITIALIZE)
    assert run is not None
    assert run.is_ok


async def test_a_server_that_has_answered_may_take_its_time_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dovecote.control.sessions.hooks.CLOSES_WITHIN", 2 * SHORT.total_seconds())
    run, _ = await _asked(b"HTTP/1.1 200 OK\r\n", closes=False)
    assert run.is_ok


async def test_a_server_that_never_answers_takes_no_longer_than_it_may() -> None:
    run, _ = await _asked(None, closes=False)
    assert "did not end within" in run.reason


async def test_nobody_listens() -> None:
    async with _server(b"", heard=[]) as port:
        pass
    run = await run_hook(_inside(Hook(path="/turn", timeout=SHORT), name=PRE_STOP, port=port), PRE_STOP)
    assert run is not None
    assert not run.is_ok


async def test_a_path_without_a_server_is_a_failure() -> None:
    run = await run_hook(_inside(Hook(path="/turn"), name=PRE_STOP), PRE_STOP)
    assert run is not None
    assert "no server" in run.reason


async def test_a_command_runs_as_the_user_of_the_template() -> None:
    guest = OneCommand(_ended(0))
    run = await run_hook(_inside(Hook(command="save all", timeout=SHORT), name=PRE_STOP, guest=guest), PRE_STOP)
    assert run is not None
    assert run.is_ok
    [command] = guest.ran
    assert command.argv == ("/bin/sh", "-c", "save all")
    assert (command.user, command.env["A"], command.timeout) == ("user", "b", SHORT.total_seconds())


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (_ended(3, stderr=b"no \x1b[1m room"), "exit code 3: no  [1m room"),
        (_ended(None, signal=9), "killed by signal 9"),
        (_ended(None, timed_out=True), "did not end within"),
    ],
)
async def test_a_command_that_fails_says_how(end: Callable[[], Awaitable[Finished]], reason: str) -> None:
    guest = OneCommand(end)
    run = await run_hook(_inside(Hook(command="x", timeout=SHORT), name=PRE_STOP, guest=guest), PRE_STOP)
    assert run is not None
    assert not run.is_ok
    assert reason in run.reason


async def test_a_guest_that_is_gone_is_a_failure_and_no_error() -> None:
    async def gone() -> Finished:
        raise Failed("the guest does not answer", code="guest_unreachable")

    guest = OneCommand(gone)
    run = await run_hook(_inside(Hook(command="x", timeout=SHORT), name=PRE_FREEZE, guest=guest), PRE_FREEZE)
    assert run is not None
    assert run.reason == "the guest does not answer"


async def test_a_guest_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dovecote.control.sessions.hooks.GIVES_UP_WITHIN", 0.05)
    run = await run_hook(_inside(Hook(command="x", timeout=SHORT), name=PRE_FREEZE), PRE_FREEZE)
    assert run is not None
    assert "did not end within" in run.reason
