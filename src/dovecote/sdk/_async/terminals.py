"""A terminal in a session, over a WebSocket."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from dovecote.sdk._async.transport import CONNECT_SECONDS
from dovecote.sdk._commands import Exited
from dovecote.sdk._errors import DovecoteError, Unreachable, error_from
from dovecote.sdk._reading import read
from dovecote.sdk._settings import Access, socket_address

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

LONGEST_PIECE = 4 << 20  # bytes of one message from the server
MOST_SENT = 256 << 10  # bytes of one message to it


class AsyncTerminal:
    """Iterate over `output` for what it prints; `write` what is typed, for which another task may be better.

    `number` and `offset` find it again: `session.terminal(number=..., offset=...)`. `dropped` bytes of output were
    not kept, `input_dropped` bytes were typed that the program did not read, `exited` is how it ended.
    """

    def __init__(self, access: Access, path: str, query: Mapping[str, Any]) -> None:
        self._access = access
        self._path = path
        self._query = {name: value for name, value in query.items() if value is not None}
        self._connecting: Any = None  # what makes the connection, and ends it
        self._socket: ClientConnection | None = None
        self.number: int = self._query.get("number", 0)
        self.offset: int = self._query["offset"]
        self.dropped = 0
        self.input_dropped = 0
        self.exited: Exited | None = None

    async def __aenter__(self) -> Self:
        """Connected, and `number` is known. Raises what opening it raises."""
        from websockets.asyncio.client import connect
        from websockets.exceptions import InvalidHandshake, InvalidStatus

        try:
            self._connecting = connect(
                socket_address(self._access.url, self._path, self._query),
                additional_headers={"authorization": f"Bearer {self._access.api_key}"},
                open_timeout=CONNECT_SECONDS,
                max_size=LONGEST_PIECE,
                compression=None,
                proxy=None,
            )
            self._socket = await self._connecting.__aenter__()
        except InvalidStatus as error:
            answer = error.response
            raise error_from(answer.status_code, bytes(answer.body), answer.headers.get("retry-after")) from None
        except (OSError, InvalidHandshake, TimeoutError) as error:
            raise _lost(f"no terminal at {self._access.url}: {error}") from error
        try:
            await self._receive()  # says its number, or why there is none
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._connecting is not None:
            await self._connecting.__aexit__(kind, error, trace)

    async def output(self) -> AsyncGenerator[bytes, None]:
        """What it prints, until it ends. Raises Unreachable (connection_lost): it goes on then, and can be found."""
        while self.exited is None:
            piece = await self._receive()
            if piece:
                yield piece

    async def wait(self) -> Exited:
        """Waits for its end; what it prints meanwhile is thrown away."""
        while self.exited is None:
            await self._receive()
        return self.exited

    async def write(self, data: bytes | str) -> None:
        """What is typed; a key like Ctrl-C is a byte (`\\x03`), the end of input Ctrl-D (`\\x04`)."""
        content = data.encode() if isinstance(data, str) else data
        for at in range(0, len(content), MOST_SENT):
            await self._send(content[at : at + MOST_SENT])

    async def resize(self, rows: int, cols: int) -> None:
        await self._send(json.dumps({"type": "resize", "rows": rows, "cols": cols}))

    async def signal(self, signal: str | int) -> None:
        await self._send(json.dumps({"type": "signal", "signal": signal}))

    # -- inside

    async def _send(self, message: bytes | str) -> None:
        from websockets.exceptions import ConnectionClosed

        assert self._socket is not None, "use the terminal as a context manager"
        try:
            await self._socket.send(message)
        except ConnectionClosed as error:
            if self.exited is None:
                raise _lost(f"the connection is closed: {error}") from None

    async def _receive(self) -> bytes:
        """The next piece of output, empty for anything else that was said."""
        from websockets.exceptions import ConnectionClosed

        assert self._socket is not None, "use the terminal as a context manager"
        try:
            message = await self._socket.recv()
        except ConnectionClosed as error:
            raise _lost(f"the connection broke: {error}") from None
        if isinstance(message, bytes):
            self.offset += len(message)
            return message
        self._learn(json.loads(message))
        return b""

    def _learn(self, said: dict[str, Any]) -> None:
        kind = said["type"]
        if kind in ("started", "attached"):
            self.number = said["number"]
        elif kind == "dropped":
            self.dropped += said["bytes"]
            self.offset += said["bytes"]
        elif kind == "input_dropped":
            self.input_dropped += said["bytes"]
        elif kind == "exited":
            self.exited = read(Exited, said)
        elif kind == "error":
            raise error_from(int(said["status"]), json.dumps(said).encode())


def _lost(why: str) -> DovecoteError:
    return Unreachable(why, code="connection_lost", hint="attach to it again by its number and offset")
