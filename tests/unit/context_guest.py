"""A guest whose contexts do what a script says, and one session in it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, Literal, cast

from dovecote.control.sandboxes import Contexts
from dovecote.errors import Conflict, NotFound
from dovecote.host.guest import Command, CommandStatus, Dropped, Exited, Output, Started

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
Line = dict[str, Any]
Stream = Literal["stdout", "stderr"]
Script = Callable[["Program", Line], None]


def obey(program: Program, request: Line) -> None:
    """Says the code back, as a value."""
    name = request["id"]
    if request["op"] == "execute":
        program.count += 1
        program.say(type="queued", id=name)
        program.say(type="began", id=name)
        program.say(type="result", id=name, data={"text/plain": request["code"]}, is_main=True, omitted=[])
        program.say(type="done", id=name, status="ok", count=program.count, dropped=0)
    else:
        program.say(type="answer", id=name, is_there=False)


@dataclass
class Program:
    """A command of the guest. It ends when its input ends, unless it is `is_stubborn`."""

    number: int
    command: Command
    script: Script
    output: list[tuple[Stream, bytes]] = field(default_factory=list)
    exit: Exited | None = None
    count: int = 0
    is_stubborn: bool = False
    requests: list[Line] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def say(self, **line: Any) -> None:
        self.write(json.dumps(line).encode() + b"\n")

    def write(self, data: bytes, stream: Stream = "stdout") -> None:
        self.output.append((stream, data))
        self._tell()

    def end(self, code: int | None = 0, signal: int | None = None) -> None:
        self.exit = Exited(code, signal, False, self.size)
        self._tell()

    @property
    def size(self) -> int:
        return sum(len(data) for _, data in self.output)

    def _tell(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


class ContextGuest:
    def __init__(self) -> None:
        self.programs: list[Program] = []
        self.files: dict[str, bytes] = {}
        self.released: list[int] = []
        self.signals: list[int] = []
        self.script: Script = obey
        self.begin: Callable[[Program], None] = lambda program: program.say(type="ready", kernel="python3")

    async def start(self, command: Command) -> Started:
        program = Program(len(self.programs) + 1, command, self.script)
        self.programs.append(program)
        self.begin(program)
        await asyncio.sleep(0)
        return Started(program.number, 100, NOW)

    async def list_commands(self) -> list[CommandStatus]:
        return [
            CommandStatus(
                each.number, each.command.tag, 100, each.exit is None, None, None, False, NOW, output_bytes=each.size
            )
            for each in self.programs
            if each.number not in self.released
        ]

    async def attach(self, number: int, *, offset: int = 0) -> AsyncGenerator[Output | Dropped | Exited, None]:
        program = self.programs[number - 1]
        if number in self.released:
            raise NotFound("no command", code="no_such_command")
        done = 0
        while True:
            changed = program.changed
            for stream, data in program.output[done:]:
                done += 1
                if offset < len(data):
                    yield Output(stream, 0, data[offset:])
                offset = max(0, offset - len(data))
            if program.exit is not None:
                yield program.exit
                return
            await changed.wait()

    async def write_stdin(self, number: int, data: bytes) -> None:
        program = self.programs[number - 1]
        if program.exit is not None:
            raise Conflict("its input is closed", code="stdin_closed")
        for line in data.splitlines():
            program.requests.append(json.loads(line))
            program.script(program, program.requests[-1])

    async def close_stdin(self, number: int) -> None:
        if not self.programs[number - 1].is_stubborn:
            self.programs[number - 1].end()

    async def signal(self, number: int, signo: int) -> None:
        self.signals.append(signo)
        self.programs[number - 1].end(None, signo)

    async def release(self, number: int) -> None:
        self.released.append(number)

    async def stat(self, path: str, *, user: str) -> object:
        if path not in self.files:
            raise NotFound(f"no {path}", code="file_not_found")
        return object()

    async def write_file(self, path: str, chunks: bytes, *, user: str, mode: int = 0o644) -> None:
        self.files[path] = chunks

    async def read_file(self, path: str, *, user: str, length: int) -> AsyncIterator[bytes]:
        await self.stat(path, user=user)
        yield self.files[path][:length]

    async def remove(self, path: str, *, user: str) -> None:
        self.files.pop(path, None)


class OneSession:
    """In place of the room of sessions: whoever asks, it is the one."""

    def __init__(self, guest: ContextGuest) -> None:
        self.guest = guest
        self.users = 0

    @asynccontextmanager
    async def use(self, tenant_id: str, session_id: str) -> AsyncIterator[Any]:
        self.users += 1
        try:
            yield SimpleNamespace(
                guest=self.guest,
                session=SimpleNamespace(id=session_id, created_at=NOW),
                environment={"LANG": "C.UTF-8"},
                default_user=("user", "/home/user"),
            )
        finally:
            self.users -= 1


def contexts_of(guest: ContextGuest) -> Contexts:
    return Contexts(cast(Any, OneSession(guest)))
