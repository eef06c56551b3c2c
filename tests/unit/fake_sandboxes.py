"""Commands and files in memory, for tests of the edges."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from dovecote.control.sandboxes import (
    CommandStatus,
    Contexts,
    Entry,
    Event,
    Exited,
    FileChange,
    Finished,
    Listing,
    Started,
    Stat,
    Watchers,
)
from dovecote.errors import DeadlineExceeded, Failed, Invalid, NotFound
from tests.unit.context_guest import ContextGuest, contexts_of
from tests.unit.fake_tenancy import NOW

Statuses: TypeAlias = list[CommandStatus]


class EchoConnection:
    """To a server that sends back what it is sent, to the end of it; `is_deaf`: it takes nothing."""

    def __init__(self, *, is_deaf: bool = False) -> None:
        self.is_deaf = is_deaf
        self.took = b""
        self.sends = 0
        self.has_ended = self.is_closed = False
        self.failure: Exception | None = None
        self._echoes: asyncio.Queue[bytes] = asyncio.Queue()

    async def receive(self) -> bytes:
        data = await self._echoes.get()
        if self.failure is not None:
            raise self.failure
        return data

    async def send(self, data: bytes) -> None:
        while self.is_deaf:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        self.took += data
        self.sends += 1
        self._echoes.put_nowait(data)

    def end(self) -> None:
        self.has_ended = True
        self._echoes.put_nowait(b"")

    def fail(self, failure: Exception) -> None:
        self.failure = failure
        self._echoes.put_nowait(b"")

    def close(self) -> None:
        self.is_closed = True


@dataclass
class FakeSandboxes:
    """Commands do what `script` says; files are a dictionary."""

    calls: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    events: list[Event | Exception] = field(default_factory=list)
    finish: Callable[[tuple[str, ...]], Finished] = field(
        default=lambda argv: Finished(" ".join(argv).encode(), b"", 0, None, False, False)
    )
    entry: Stat = field(default=Stat("link", 0o777, 1000, 7, 3, 0, "to", "bird", "", {"a": "b"}))
    entries: int = 1
    changes: list[FileChange] = field(
        default_factory=lambda: [FileChange("watching", is_directory=True), FileChange("rename", "a", "b")]
    )
    is_detached: bool = False
    goes_on: bool = False  # after its events a command goes on, until `over`
    over: asyncio.Event = field(default_factory=asyncio.Event)
    over_when: dict[str, object] | None = None  # that call ends it
    statuses: list[CommandStatus] = field(default_factory=list)
    has_no_terminal: bool = False
    is_deaf: bool = False
    largest_piece: int = 0
    guest: ContextGuest = field(default_factory=ContextGuest)
    received: int = 0
    is_deaf_inside: bool = False
    open_ports: frozenset[int] = frozenset({8000})
    connections: list[EchoConnection] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.watchers = Watchers(self._begin)

    @property
    def contexts(self) -> Contexts:
        return contexts_of(self.guest)

    @asynccontextmanager
    async def dial(self, tenant_id: str, session_id: str, port: int) -> AsyncGenerator[EchoConnection, None]:
        if port not in self.open_ports:
            raise Failed(f"nothing listens on port {port}", code="port_closed", hint="start a server there")
        connection = EchoConnection(is_deaf=self.is_deaf_inside)
        self.connections.append(connection)
        try:
            yield connection
        finally:
            connection.close()

    async def run(self, tenant_id: str, session_id: str, **arguments: Any) -> Finished:
        self.calls.append(arguments)
        return self.finish(arguments["argv"])

    async def start(self, tenant_id: str, session_id: str, **arguments: Any) -> Started:
        self.calls.append(arguments)
        return Started(7, 1234, NOW)

    async def stream(self, tenant_id: str, session_id: str, **arguments: Any) -> AsyncIterator[Event]:
        self.calls.append(arguments)
        async for event in self._play():
            yield event

    async def attach(self, tenant_id: str, session_id: str, number: int, *, offset: int = 0) -> AsyncIterator[Event]:
        self.calls.append({"number": number, "offset": offset})
        async for event in self._play():
            yield event

    async def _play(self) -> AsyncIterator[Event]:
        try:
            for event in self.events:
                if isinstance(event, Exception):
                    raise event
                yield event
            if self.goes_on:
                await self.over.wait()
                yield Exited(0, None, False, 0)
        except (GeneratorExit, asyncio.CancelledError):
            self.is_detached = True
            raise

    async def signal(self, tenant_id: str, session_id: str, number: int, signo: int) -> None:
        self.calls.append({"number": number, "signo": signo})

    async def resize(self, tenant_id: str, session_id: str, number: int, rows: int, cols: int) -> None:
        if self.has_no_terminal:
            raise Invalid(f"no terminal for command {number}", code="no_terminal")
        self.calls.append({"number": number, "size": (rows, cols)})

    async def write_stdin(
        self, tenant_id: str, session_id: str, number: int, data: bytes, *, timeout: float = 30
    ) -> None:
        if self.is_deaf:
            raise DeadlineExceeded(f"command {number} does not read its input", code="stdin_blocked")
        self.calls.append({"number": number, "data": data})

    async def close_stdin(self, tenant_id: str, session_id: str, number: int) -> None:
        self.calls.append({"number": number, "closed": True})
        if self.over_when in self.calls:
            self.over.set()

    async def commands(self, tenant_id: str, session_id: str) -> Statuses:
        return self.statuses

    async def release(self, tenant_id: str, session_id: str, number: int) -> None:
        self.calls.append({"number": number, "released": True})

    async def stat(self, tenant_id: str, session_id: str, path: str, **how: Any) -> Stat:
        self.calls.append(how)
        if not how.get("follow", True):
            return self.entry
        if any(name.startswith(path.rstrip("/") + "/") for name in self.files):
            return Stat("directory", 0o755, 1000, 1000, 0, 0, "")
        if path not in self.files:
            raise NotFound(f"no file {path}", code="file_not_found")
        return Stat("file", 0o640, 1000, 1000, len(self.files[path]), 0, "")

    async def read_file(self, tenant_id: str, session_id: str, path: str, **_: Any) -> AsyncIterator[bytes]:
        if path not in self.files:
            raise NotFound(f"no file {path}", code="file_not_found")
        content = self.files[path]
        for at in range(0, len(content), 1 << 16):
            yield content[at : at + (1 << 16)]

    async def write_file(
        self, tenant_id: str, session_id: str, path: str, chunks: AsyncIterator[bytes], **how: Any
    ) -> None:
        self.calls.append(how)
        content = bytearray()
        async for chunk in chunks:
            self.largest_piece = max(self.largest_piece, len(chunk))
            self.received += len(chunk)
            content = (content + chunk)[: 1 << 20]
        self.files[path] = bytes(content)

    async def remove(self, tenant_id: str, session_id: str, path: str, **_: Any) -> None:
        self.files.pop(path)

    async def rename(self, tenant_id: str, session_id: str, source: str, target: str, **_: Any) -> None:
        self.files[target] = self.files.pop(source)

    async def alter(self, tenant_id: str, session_id: str, path: str, **how: Any) -> Stat:
        self.calls.append(how)
        return self.entry

    async def list_dir(self, tenant_id: str, session_id: str, path: str, **how: Any) -> Listing:
        self.calls.append(how)
        return Listing([Entry(f"{i}", self.entry) for i in range(self.entries)], self.entries > how["most"])

    async def make_dir(self, tenant_id: str, session_id: str, path: str, **_: Any) -> bool:
        return path not in self.files

    async def make_link(self, tenant_id: str, session_id: str, path: str, target: str, **_: Any) -> None:
        self.files[path] = target.encode()

    async def watch(self, tenant_id: str, session_id: str, path: str, **how: Any) -> AsyncGenerator[FileChange, None]:
        self.calls.append(how)
        for change in self.changes:
            yield change

    async def _begin(self, tenant_id: str, session_id: str, path: str, recursive: bool, user: str | None) -> Any:
        changes = self.watch(tenant_id, session_id, path, recursive=recursive)
        await anext(changes)
        return changes
