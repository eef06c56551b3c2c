"""The host's side of a guest: one method an operation, one connection a call."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncGenerator
from dataclasses import replace
from signal import SIGKILL

from dovecote.errors import DeadlineExceeded, DovecoteError, Failed
from dovecote.host.guest import protocol
from dovecote.host.guest.calls import ANSWER_WITHIN, answer, fits, receive
from dovecote.host.guest.connection import Connection, unreachable
from dovecote.host.guest.file_calls import FileCalls
from dovecote.host.guest.protocol import (
    Command,
    CommandStatus,
    Dropped,
    Event,
    Exited,
    Finished,
    Hello,
    Kind,
    Output,
    Port,
    PortState,
    Started,
    garbage,
    render_frame,
    render_start,
)

LAST_EVENT_WITHIN = 60.0  # seconds after a command's own timeout
KILL_WITHIN = 2.0  # seconds, for a command whose caller has gone


class Guest(FileCalls):
    """Talks to the guest behind a socket: commands, files (FileCalls), ports.

    Raises what the guest refuses (see refusals.py), Failed `guest_unreachable` when it does not answer, and Failed
    `guest_protocol` when what it answers makes no sense.
    """

    async def hello(self, *, timeout: float = 2) -> Hello:
        return protocol.parse_hello(await self._ask(Kind.HELLO, Kind.IS_HELLO, subject="hello", timeout=timeout))

    # -- commands

    async def start(self, command: Command) -> Started:
        """Starts it and lets it go on by itself. Its output is kept for `attach`."""
        async with self._open() as connection:
            await connection.send(render_start(command, detach=True))
            return protocol.parse_started(await answer(connection, Kind.STARTED, _name(command)))

    async def attach(self, number: int, *, offset: int = 0) -> AsyncGenerator[Output | Dropped | Exited, None]:
        """Its output from `offset` on, until it has ended. Leaving early changes nothing for the command."""
        request = struct.pack("<IQ", fits(number, 32), fits(offset, 64))
        async with self._open() as connection:
            await connection.send(render_frame(Kind.ATTACH, request))
            async for event in _events(connection, f"command {number}", None):
                yield event

    async def stream(self, command: Command) -> AsyncGenerator[Event, None]:
        """Starts it and gives what happens. Leaving early detaches; the command goes on."""
        async with self._open() as connection:
            await connection.send(render_start(command))
            yield protocol.parse_started(await answer(connection, Kind.STARTED, _name(command)))
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
                    return await self._finish(connection, command, max_output)
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
        """To its process group; SIGKILL to all that it started. One that has ended already is no error."""
        request = struct.pack("<II", fits(number, 32), fits(signo, 32))
        await self._ask(Kind.SIGNAL, Kind.DONE, request, subject=f"command {number}")

    async def write_stdin(self, number: int, data: bytes, *, timeout: float = ANSWER_WITHIN) -> None:
        """Returns when the command's pipe has taken it all. Raises DeadlineExceeded `stdin_blocked`."""
        await self._stdin(number, data, Kind.END, timeout)

    async def close_stdin(self, number: int) -> None:
        """A terminal gets the key for the end of input."""
        await self._stdin(number, b"", Kind.CLOSE, ANSWER_WITHIN)

    async def resize(self, number: int, rows: int, cols: int) -> None:
        request = struct.pack("<IHH", fits(number, 32), fits(rows, 16), fits(cols, 16))
        await self._ask(Kind.RESIZE, Kind.DONE, request, subject=f"command {number}")

    async def release(self, number: int) -> None:
        """Forgets an ended command and its output."""
        await self._ask(Kind.RELEASE, Kind.DONE, struct.pack("<I", fits(number, 32)), subject=f"command {number}")

    # -- the sandbox

    async def ports(self) -> list[Port]:
        found = protocol.parse_ports(await self._ask(Kind.PORTS, Kind.IS_PORTS, subject="ports"))
        return sorted(found, key=lambda port: port.port)

    async def wait_port(self, port: int, timeout: float) -> PortState:
        """Answers as soon as the port listens, a moment later if it stays on loopback, or after `timeout` seconds."""
        wait = protocol.milliseconds(timeout) if timeout > 0 else 0
        request = struct.pack("<HI", fits(port, 16), wait)
        data = await self._ask(
            Kind.WAIT_PORT, Kind.IS_PORT, request, subject=f"port {port}", timeout=timeout + ANSWER_WITHIN
        )
        return protocol.parse_port_state(data)

    async def sync(self, *, timeout: float = 120) -> None:
        """What was written is on the disk of the sandbox's root."""
        await self._ask(Kind.SYNC, Kind.DONE, subject="sync", timeout=timeout)

    async def suspend(self, *, timeout: float = 10) -> None:
        """Closes all connections, this one too, and its socket, and binds it again as soon as it can.

        As it returns nothing of it leads out of the sandbox. Attached clients see a guest that closed; commands go on.
        """
        async with self._open() as connection:
            await connection.send(render_frame(Kind.SUSPEND))
            await answer(connection, Kind.DONE, "suspend", timeout=timeout)
            if not await connection.closed(timeout):
                raise DeadlineExceeded("the guest did not close its socket in time", code="guest_unreachable")

    async def shutdown(self, grace: float) -> None:
        """SIGTERM to all, SIGKILL after `grace` seconds. As it returns, the guest is ending."""
        async with self._open() as connection:
            await connection.send(render_frame(Kind.SHUTDOWN, protocol.milliseconds(grace).to_bytes(4, "little")))
            await answer(connection, Kind.DONE, "shutdown")
            if not await connection.closed(grace + 5):
                raise DeadlineExceeded("the guest did not end in time", code="guest_unreachable")

    async def _finish(self, connection: Connection, command: Command, max_output: int) -> Finished:
        """Bounded as a whole: a guest may go on talking."""
        events = _events(connection, _name(command), None)
        patience = None if command.timeout is None else command.timeout + LAST_EVENT_WITHIN
        try:
            async with asyncio.timeout(patience):
                return await _collect(events, max_output)
        except TimeoutError:
            raise unreachable("a command goes on after its end") from None

    async def _stdin(self, number: int, data: bytes, last: Kind, timeout: float) -> None:
        async with self._open() as connection:
            await connection.send(render_frame(Kind.STDIN, struct.pack("<I", fits(number, 32))))
            try:
                async with asyncio.timeout(timeout):
                    with contextlib.suppress(Failed):  # closed early: its answer says why
                        await connection.send_data(data)
                        await connection.send(render_frame(last))
                    await answer(connection, Kind.DONE, f"command {number}", timeout=timeout + 1)
            except TimeoutError:
                raise DeadlineExceeded(
                    f"command {number} does not read its input", code="stdin_blocked", hint="it took a part, or nothing"
                ) from None

    async def _give_up(self, number: int) -> None:
        with contextlib.suppress(DovecoteError, TimeoutError):
            async with asyncio.timeout(KILL_WITHIN):
                await self.signal(number, SIGKILL)


async def _begin(connection: Connection, command: Command) -> Started:
    await connection.send(render_start(command, forget=True))
    return protocol.parse_started(await answer(connection, Kind.STARTED, _name(command)))


async def _events(
    connection: Connection, subject: str, timeout: float | None
) -> AsyncGenerator[Output | Dropped | Exited, None]:
    patience = None if timeout is None else timeout + LAST_EVENT_WITHIN
    while True:
        event = protocol.parse_event(*await receive(connection, subject, patience))
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


def _name(command: Command) -> str:
    return command.argv[0][:200]
