"""A port of a session on this machine: each connection to it is carried over a WebSocket of its own."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from dovecote.sdk._errors import BadRequest, DovecoteError, Unreachable, error_from
from dovecote.sdk._settings import Access, socket_address

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

OPEN_SECONDS = 120.0  # a connection may be held while an instance starts
WINDOW = 1 << 20  # bytes on their way to the server that it has not said it has taken
TELL_EVERY = WINDOW // 4  # bytes taken here
READ_AT_ONCE = 64 << 10
LONGEST_MESSAGE = 1 << 20
MOST_AT_ONCE = 500  # connections; more wait
ENDS_WITHIN = 10.0  # seconds
CLOSED_WELL = 1000  # code of a WebSocket
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: who connected is told that it broke

OnProblem = Callable[[DovecoteError], None]


class AsyncForward:
    """Listens from the beginning of the block to its end; `address` is where. A session that rests wakes for each
    connection and stays awake while it is open.

    A connection that cannot be carried is reset, and `on_problem` is told why: nobody listens there (`port_closed`),
    or what the session, the server or the network did.
    """

    def __init__(self, access: Access, path: str, host: str, port: int, on_problem: OnProblem | None) -> None:
        self._access = access
        self._path = path
        self._where = (host, port)
        self._on_problem = on_problem
        self._listener: asyncio.Server | None = None
        self._carrying: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(MOST_AT_ONCE)

    async def __aenter__(self) -> Self:
        """Raises BadRequest (address_taken): somebody listens there, or it is not an address of this machine."""
        try:
            where = await self._resolve()
            self._listener = await asyncio.start_server(self._accept, *where, limit=READ_AT_ONCE)
        except (OSError, ValueError, OverflowError) as error:
            host, port = self._where
            hint = "port 0 is any that is free"
            raise BadRequest(f"cannot listen on {host}:{port}: {error}", code="address_taken", hint=hint) from None
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """What is still open breaks off."""
        assert self._listener is not None
        self._listener.close()
        for task in self._carrying:
            task.cancel()
        await asyncio.gather(*self._carrying, return_exceptions=True)

    async def _resolve(self) -> tuple[str, int]:
        """A name may have several addresses, and each would get another port where any will do."""
        host, port = self._where
        if port or not host:
            return self._where
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return str(found[0][4][0]), port

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        assert self._listener is not None, "use the forward as a context manager"
        host, port = self._listener.sockets[0].getsockname()[:2]
        return str(host), int(port)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._carrying.add(task)
        task.add_done_callback(self._carrying.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        is_whole = False
        try:
            async with self._room:
                await self._carry(reader, writer)
            is_whole = True
        except DovecoteError as error:
            if self._on_problem is not None:
                self._on_problem(error)
        except OSError:
            pass  # who connected here has broken it off, and knows
        finally:
            if not is_whole:
                _break_off(writer)
            writer.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from websockets.asyncio.client import connect
        from websockets.exceptions import InvalidHandshake, InvalidStatus

        try:
            connection = await connect(
                socket_address(self._access.url, self._path),
                additional_headers={"authorization": f"Bearer {self._access.api_key}"},
                open_timeout=OPEN_SECONDS,
                close_timeout=ENDS_WITHIN,
                max_size=LONGEST_MESSAGE,
                compression=None,
                proxy=None,
            )
        except InvalidStatus as error:
            answer = error.response
            raise error_from(answer.status_code, bytes(answer.body), answer.headers.get("retry-after")) from None
        except (OSError, InvalidHandshake, TimeoutError) as error:
            raise Unreachable(f"no connection to {self._access.url}: {error}", code="unreachable") from error
        async with connection:
            await _Carried(connection, reader, writer).serve()


class _Carried:
    """One connection, both ways. As the server's side of it, it always reads the WebSocket and counts what is taken."""

    def __init__(
        self, connection: ClientConnection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._connection = connection
        self._reader = reader
        self._writer = writer
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._has_ended = False  # the server sends no more
        self._sent = self._seen = 0  # bytes to the server, the latter as it says
        self._moved = asyncio.Condition()  # one of these is another

    async def serve(self) -> None:
        """Returns when both sides have ended. Raises what the server says, Unreachable (connection_lost), OSError."""
        from websockets.exceptions import ConnectionClosed

        parts = [asyncio.ensure_future(part) for part in (self._hear(), self._carry_in(), self._carry_out())]
        hearing, carrying = parts[0], asyncio.gather(*parts[1:])
        try:
            await asyncio.wait((carrying, hearing), return_when=asyncio.FIRST_COMPLETED)
            if hearing.done():
                await hearing  # raises why, unless the server has closed because all is said
            with suppress(ConnectionClosed):
                await carrying
            await hearing  # the server closes when the session has taken all
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(carrying, *parts, return_exceptions=True)

    async def _hear(self) -> None:
        """Returns when the server has closed because both sides have ended."""
        from websockets.exceptions import ConnectionClosed

        while True:
            try:
                message = await self._connection.recv()
            except ConnectionClosed as error:
                if self._has_ended and error.rcvd is not None and error.rcvd.code == CLOSED_WELL:
                    return
                raise _lost(str(error)) from None
            async with self._moved:
                if isinstance(message, bytes):
                    self._waiting.append(message)
                    self._waiting_bytes += len(message)
                    if self._waiting_bytes > WINDOW + LONGEST_MESSAGE:
                        raise _lost("the server sends more than there is room for")
                else:
                    self._learn(message)
                self._moved.notify_all()

    def _learn(self, message: str) -> None:
        try:
            said: dict[str, Any] = json.loads(message)
            if said["type"] == "seen":
                self._seen = int(said["bytes"])
            elif said["type"] == "end":
                self._has_ended = True
            elif said["type"] == "error":
                raise error_from(int(said["status"]), message.encode())
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            raise _lost("what the server says makes no sense") from None

    async def _carry_out(self) -> None:
        """From here to the session."""
        while data := await self._reader.read(min(READ_AT_ONCE, WINDOW - (self._sent - self._seen))):
            self._sent += len(data)
            await self._connection.send(data)
            async with self._moved:
                await self._moved.wait_for(lambda: self._sent - self._seen < WINDOW)
        await self._tell(type="end")

    async def _carry_in(self) -> None:
        """From the session to here."""
        taken = told = 0
        while True:
            async with self._moved:
                await self._moved.wait_for(lambda: self._waiting or self._has_ended)
            if not self._waiting:
                self._writer.write_eof()
                return
            data = self._waiting.popleft()
            self._writer.write(data)
            await self._writer.drain()
            self._waiting_bytes -= len(data)
            taken += len(data)
            if taken - told >= TELL_EVERY:
                told = taken
                await self._tell(type="seen", bytes=taken)

    async def _tell(self, **fields: object) -> None:
        """Where the connection is closed already, `_hear` finds out what that means."""
        from websockets.exceptions import ConnectionClosed

        with suppress(ConnectionClosed):
            await self._connection.send(json.dumps(fields))


class Forward:
    """The same, carried by a thread of its own from the beginning of the block to its end."""

    def __init__(self, access: Access, path: str, host: str, port: int, on_problem: OnProblem | None) -> None:
        self._arguments = (access, path, host, port, on_problem)
        self._thread = threading.Thread(target=self._run, name="forward", daemon=True)
        self._begun = threading.Event()
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._over: asyncio.Event | None = None
        self.address = ("", 0)
        """Host and port."""

    def __enter__(self) -> Self:
        self._thread.start()
        self._begun.wait()
        if self._failure is not None:
            self._thread.join(ENDS_WITHIN)
            raise self._failure
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._loop is not None
        assert self._over is not None
        with suppress(RuntimeError):  # its loop is closed: it has ended by itself
            self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(ENDS_WITHIN)
        if error is None and self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            asyncio.run(self._listen())
        except BaseException as error:
            self._failure = error
        finally:
            self._begun.set()

    async def _listen(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        async with AsyncForward(*self._arguments) as forward:
            self.address = forward.address
            self._begun.set()
            await self._over.wait()


def _break_off(writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()


def _lost(why: str) -> DovecoteError:
    return Unreachable(f"the connection broke: {why}", code="connection_lost", hint="connect again")
