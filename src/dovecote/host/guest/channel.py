"""The host's side of a guest: one method an operation, one connection a call."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from pathlib import Path
from signal import SIGKILL

from dovecote.errors import DeadlineExceeded, DovecoteError, Failed, Invalid
from dovecote.host.guest import protocol
from dovecote.host.guest.connection import Connection
from dovecote.host.guest.protocol import (
    Command,
    CommandStatus,
    Dropped,
    Entry,
    Event,
    Exited,
    Finished,
    Hello,
    Kind,
    Output,
    Port,
    PortState,
    Started,
    Stat,
    garbage,
    render_frame,
    render_start,
    text,
)
from dovecote.host.guest.refusals import parse_refusal

ANSWER_WITHIN = 30.0  # seconds
LAST_EVENT_WITHIN = 60.0  # seconds after a command's own timeout
KILL_WITHIN = 2.0  # seconds, for a command whose caller has gone
MOST_DEPTH = 64
MOST_ENTRIES = 100_000
MOST_ENTRY_BYTES = 64 << 20


class Guest:
    """Talks to the guest behind a socket; holds nothing between calls, so it may be made anew at any time.

    Raises what the guest refuses (see refusals.py), Failed `guest_unreachable` when it does not answer, and Failed
    `guest_protocol` when what it answers makes no sense.
    """

    def __init__(self, socket_path: Path) -> None:
        self._path = socket_path

    async def hello(self, *, timeout: float = 2) -> Hello:
        return protocol.parse_hello(await self._ask(Kind.HELLO, Kind.IS_HELLO, subject="hello", timeout=timeout))

    # -- commands

    async def start(self, command: Command) -> Started:
        """Starts it and lets it go on by itself. Its output is kept for `attach`."""
        async with self._open() as connection:
            await connection.send(render_start(command, detach=True))
            return protocol.parse_started(await _answer(connection, Kind.STARTED, _name(command)))

    async def attach(self, number: int, *, offset: int = 0) -> AsyncGenerator[Output | Dropped | Exited, None]:
        """Its output from `offset` on, until it has ended. Leaving early changes nothing for the command."""
        request = struct.pack("<IQ", _fits(number, 32), _fits(offset, 64))
        async with self._open() as connection:
            await connection.send(render_frame(Kind.ATTACH, request))
            async for event in _events(connection, f"command {number}", None):
                yield event

    async def stream(self, command: Command) -> AsyncGenerator[Event, None]:
        """Starts it and gives what happens. Leaving early detaches; the command goes on."""
        async with self._open() as connection:
            await connection.send(render_start(command))
            yield protocol.parse_started(await _answer(connection, Kind.STARTED, _name(command)))
            async for event in _events(connection, _name(command), command.timeout):
                yield event

    async def run(self, command: Command, *, stdin: bytes | None = None, max_output: int = 1 << 20) -> Finished:
        """Runs it to its end and forgets it. Output beyond `max_output` bytes (of both streams) is dropped.

        Nobody else knows of such a command: it is killed when the caller is cancelled.
        """
        if stdin is not None:
            command = replace(command, stdin=True)
        async with self._open() as connection:
            beginning = asyncio.ensure_future(_begin(connection, command))
            try:
                started = await asyncio.shield(beginning)
            except asyncio.CancelledError:
                # It may run already, and nobody could name it: its number is waited for.
                with contextlib.suppress(DovecoteError):
                    await asyncio.shield(self._give_up((await beginning).number))
                raise
            feeding = asyncio.ensure_future(_feed(connection, stdin)) if stdin is not None else None
            try:
                try:
                    return await _collect(_events(connection, _name(command), command.timeout), max_output)
                finally:
                    if feeding is not None:
                        feeding.cancel()
                        await asyncio.wait([feeding])
            except BaseException:
                await asyncio.shield(self._give_up(started.number))
                raise

    async def list_commands(self) -> list[CommandStatus]:
        return protocol.parse_commands(await self._ask(Kind.LIST, Kind.COMMANDS, subject="commands"))

    async def signal(self, number: int, signo: int) -> None:
        """To its process group. One that has ended already is no error."""
        request = struct.pack("<II", _fits(number, 32), _fits(signo, 32))
        await self._ask(Kind.SIGNAL, Kind.DONE, request, subject=f"command {number}")

    async def write_stdin(self, number: int, data: bytes, *, timeout: float = ANSWER_WITHIN) -> None:
        """Returns when the command's pipe has taken it all. Raises DeadlineExceeded `stdin_blocked`."""
        await self._stdin(number, data, Kind.END, timeout)

    async def close_stdin(self, number: int) -> None:
        """A terminal gets the key for the end of input."""
        await self._stdin(number, b"", Kind.CLOSE, ANSWER_WITHIN)

    async def resize(self, number: int, rows: int, cols: int) -> None:
        request = struct.pack("<IHH", _fits(number, 32), _fits(rows, 16), _fits(cols, 16))
        await self._ask(Kind.RESIZE, Kind.DONE, request, subject=f"command {number}")

    async def release(self, number: int) -> None:
        """Forgets an ended command and its output."""
        await self._ask(Kind.RELEASE, Kind.DONE, struct.pack("<I", _fits(number, 32)), subject=f"command {number}")

    # -- files; paths begin with /

    async def read_file(
        self, path: str, *, user: str, offset: int = 0, length: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        most = 2**64 - 1 if length is None else _fits(length, 64)
        request = text(user) + text(_absolute(path)) + struct.pack("<QQ", _fits(offset, 63), most)
        async with self._open() as connection:
            await connection.send(render_frame(Kind.READ, request))
            left = most
            while (data := await _next(connection, Kind.CONTENT, Kind.CONTENT_END, path)) is not None:
                left -= len(data)
                if left < 0:
                    raise garbage("more of a file than was asked for")
                yield data

    async def write_file(
        self,
        path: str,
        chunks: AsyncIterator[bytes] | bytes,
        *,
        user: str,
        mode: int = 0o644,
        make_parents: bool = True,
        fsync: bool = False,
    ) -> None:
        """Atomic: readers see the old file or the whole new one. Nothing is left if `chunks` raises."""
        flags = protocol.WRITE_PARENTS * make_parents + protocol.WRITE_FSYNC * fsync
        request = text(user) + text(_absolute(path)) + struct.pack("<IB", mode & 0o7777, flags)
        async with self._open() as connection:
            await connection.send(render_frame(Kind.WRITE, request))
            await _send_content(connection, chunks)
            await _answer(connection, Kind.DONE, path, timeout=10 * ANSWER_WITHIN if fsync else ANSWER_WITHIN)

    async def stat(self, path: str, *, user: str, follow: bool = True) -> Stat:
        request = text(user) + text(_absolute(path)) + bytes([follow])
        entries = protocol.parse_entries(await self._ask(Kind.STAT, Kind.ENTRIES, request, subject=path))
        if len(entries) != 1:
            raise garbage("not one file where one was asked for")
        return entries[0].stat

    async def list_dir(self, path: str, *, user: str, depth: int = 1, most: int = MOST_ENTRIES) -> list[Entry]:
        """By path; links are not followed. Raises Invalid `too_many_entries`."""
        if not 0 < depth <= MOST_DEPTH or not 0 < most <= MOST_ENTRIES:
            raise Invalid(f"depth is from 1 to {MOST_DEPTH}, and entries at most {MOST_ENTRIES}")
        request = text(user) + text(_absolute(path)) + struct.pack("<HI", depth, most)
        found: list[Entry] = []
        received = 0
        async with self._open() as connection:
            await connection.send(render_frame(Kind.LIST_DIR, request))
            while True:
                kind, data = await _receive(connection, path)
                received += len(data)
                if kind == Kind.CONTENT_END and len(data) == 1:
                    break
                if kind != Kind.ENTRIES or not data:
                    raise garbage(f"a message of kind {kind} in a listing")
                found += protocol.parse_entries(data)
                if len(found) > most or received > MOST_ENTRY_BYTES:
                    raise garbage("more entries than were asked for")
        if data != b"\0":
            raise Invalid(
                f"{path} holds more than {most} entries", code="too_many_entries", hint="list fewer levels at once"
            )
        return sorted(found, key=lambda entry: entry.path)

    async def make_dir(self, path: str, *, user: str, mode: int = 0o755) -> None:
        """With those above it. One that exists is no error."""
        request = text(user) + text(_absolute(path)) + (mode & 0o7777).to_bytes(4, "little")
        await self._ask(Kind.MAKE_DIR, Kind.DONE, request, subject=path)

    async def remove(self, path: str, *, user: str, recursive: bool = False, timeout: float = 300) -> None:
        """A link is removed, not what it names. A directory that holds something only if `recursive`."""
        request = text(user) + text(_absolute(path)) + bytes([recursive])
        await self._ask(Kind.REMOVE, Kind.DONE, request, subject=path, timeout=timeout)

    async def rename(self, source: str, target: str, *, user: str) -> None:
        request = text(user) + text(_absolute(source)) + text(_absolute(target))
        await self._ask(Kind.RENAME, Kind.DONE, request, subject=f"{source} to {target}")

    # -- the sandbox

    async def ports(self) -> list[Port]:
        found = protocol.parse_ports(await self._ask(Kind.PORTS, Kind.IS_PORTS, subject="ports"))
        return sorted(found, key=lambda port: port.port)

    async def wait_port(self, port: int, timeout: float) -> PortState:
        """Answers as soon as the port listens, a moment later if it stays on loopback, or after `timeout` seconds."""
        wait = protocol.milliseconds(timeout) if timeout > 0 else 0
        request = struct.pack("<HI", _fits(port, 16), wait)
        data = await self._ask(
            Kind.WAIT_PORT, Kind.IS_PORT, request, subject=f"port {port}", timeout=timeout + ANSWER_WITHIN
        )
        return protocol.parse_port_state(data)

    async def sync(self, *, timeout: float = 120) -> None:
        """What was written is on the disk of the sandbox's root."""
        await self._ask(Kind.SYNC, Kind.DONE, subject="sync", timeout=timeout)

    async def shutdown(self, grace: float) -> None:
        """SIGTERM to all, SIGKILL after `grace` seconds. As it returns, the guest is ending."""
        async with self._open() as connection:
            await connection.send(render_frame(Kind.SHUTDOWN, protocol.milliseconds(grace).to_bytes(4, "little")))
            await _answer(connection, Kind.DONE, "shutdown")
            if not await connection.closed(grace + 5):
                raise DeadlineExceeded("the guest did not end in time", code="guest_unreachable")

    # -- inside

    @contextlib.asynccontextmanager
    async def _open(self) -> AsyncIterator[Connection]:
        connection = await Connection.open(self._path)
        try:
            yield connection
        finally:
            connection.close()

    async def _ask(
        self, kind: Kind, expected: Kind, request: bytes = b"", *, subject: str, timeout: float = ANSWER_WITHIN
    ) -> bytes:
        async with self._open() as connection:
            await connection.send(render_frame(kind, request))
            return await _answer(connection, expected, subject, timeout=timeout)

    async def _stdin(self, number: int, data: bytes, last: Kind, timeout: float) -> None:
        async with self._open() as connection:
            await connection.send(render_frame(Kind.STDIN, struct.pack("<I", _fits(number, 32))))
            try:
                async with asyncio.timeout(timeout):
                    with contextlib.suppress(Failed):  # closed early: its answer says why
                        await connection.send_data(data)
                        await connection.send(render_frame(last))
                    await _answer(connection, Kind.DONE, f"command {number}", timeout=timeout + 1)
            except TimeoutError:
                raise DeadlineExceeded(
                    f"command {number} does not read its input", code="stdin_blocked", hint="it took a part, or nothing"
                ) from None

    async def _give_up(self, number: int) -> None:
        with contextlib.suppress(DovecoteError, TimeoutError):
            async with asyncio.timeout(KILL_WITHIN):
                await self.signal(number, SIGKILL)


async def _receive(connection: Connection, subject: str, timeout: float | None = ANSWER_WITHIN) -> tuple[int, bytes]:
    kind, data = await connection.receive(timeout)
    if kind == Kind.FAILED:
        raise parse_refusal(data, subject)
    return kind, data


async def _begin(connection: Connection, command: Command) -> Started:
    await connection.send(render_start(command, forget=True))
    return protocol.parse_started(await _answer(connection, Kind.STARTED, _name(command)))


async def _answer(connection: Connection, expected: Kind, subject: str, *, timeout: float = ANSWER_WITHIN) -> bytes:
    kind, data = await _receive(connection, subject, timeout)
    if kind != expected:
        raise garbage(f"an answer of kind {kind} where {expected.name} was due")
    return data


async def _next(connection: Connection, item: Kind, end: Kind, subject: str) -> bytes | None:
    kind, data = await _receive(connection, subject)
    if kind == end and not data:
        return None
    if kind != item or not data:
        raise garbage(f"a message of kind {kind} where {item.name} was due")
    return data


async def _events(
    connection: Connection, subject: str, timeout: float | None
) -> AsyncGenerator[Output | Dropped | Exited, None]:
    patience = None if timeout is None else timeout + LAST_EVENT_WITHIN
    while True:
        event = protocol.parse_event(*await _receive(connection, subject, patience))
        yield event
        if isinstance(event, Exited):
            return


async def _collect(events: AsyncGenerator[Output | Dropped | Exited, None], most: int) -> Finished:
    output = {"stdout": bytearray(), "stderr": bytearray()}
    room, truncated = most, False
    async with contextlib.aclosing(events):
        async for event in events:
            if isinstance(event, Output):
                truncated = truncated or len(event.data) > room
                output[event.stream] += event.data[:room]
                room = max(0, room - len(event.data))
            elif isinstance(event, Dropped):
                truncated = True
            else:
                return Finished(
                    bytes(output["stdout"]),
                    bytes(output["stderr"]),
                    event.exit_code,
                    event.signal,
                    event.timed_out,
                    truncated,
                )
    raise garbage("a command without an end")


async def _feed(connection: Connection, data: bytes) -> None:
    with contextlib.suppress(Failed):  # it may end, or close its input, before it has read all
        await connection.send_data(data)
        await connection.send(render_frame(Kind.CLOSE))


async def _send_content(connection: Connection, chunks: AsyncIterator[bytes] | bytes) -> None:
    """Stops early when the guest has refused or closed: its answer says why."""
    if isinstance(chunks, bytes):
        going = await _sent(connection, chunks)
    else:
        going = True
        async for chunk in chunks:
            if connection.has_answer() or not await _sent(connection, chunk):
                going = False
                break
    if going:
        with contextlib.suppress(Failed):
            await connection.send(render_frame(Kind.END))


async def _sent(connection: Connection, data: bytes) -> bool:
    try:
        await connection.send_data(data)
    except Failed:
        return False
    return True


def _absolute(path: str) -> str:
    if not path.startswith("/"):
        raise Invalid(f"not an absolute path: {path[:200]!r}", code="malformed_path", hint="begin it with /")
    return path


def _fits(value: int, bits: int) -> int:
    if not 0 <= value < 1 << bits:
        raise Invalid(f"out of range: {value}")
    return value


def _name(command: Command) -> str:
    return command.argv[0][:200]
