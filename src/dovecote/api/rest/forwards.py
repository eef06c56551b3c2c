"""TCP to a port of a session over a WebSocket: binary frames are its bytes, text frames are JSON about it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Annotated, Literal

import orjson
from fastapi import APIRouter, WebSocket
from pydantic import Field, TypeAdapter, ValidationError
from starlette.websockets import WebSocketDisconnect

from dovecote.api import errors
from dovecote.api.rest.shapes import Body
from dovecote.control.sandboxes import Connection
from dovecote.errors import DovecoteError, Invalid
from dovecote.model.ids import parse_id

routes = APIRouter(prefix="/v1/sessions/{session_id}", tags=["sessions"])

WINDOW = 1 << 20  # bytes on their way to one side that it has not said it has taken
TELL_EVERY = WINDOW // 4  # bytes taken
MOST_CONTROL = 1024  # characters of a text frame


class _Seen(Body):
    type: Literal["seen"]
    bytes: int = Field(ge=0, lt=1 << 63)


class _End(Body):
    type: Literal["end"]


_Control = _Seen | _End
_CONTROL: TypeAdapter[_Control] = TypeAdapter(Annotated[_Control, Field(discriminator="type")])


@routes.websocket("/ports/{port}/tcp")
async def tcp(socket: WebSocket) -> None:
    """Connected inside before the WebSocket is open: a port that is closed is an answer like any other."""
    rooms, tenant_id = socket.app.state.rooms, socket.scope["dovecote.principal"].tenant_id
    session = await rooms.sessions.get(tenant_id, parse_id(socket.path_params["session_id"], "ses"))
    port = _parse_port(socket.path_params["port"])
    async with rooms.sandboxes.dial(tenant_id, session.id, port) as connection:
        await socket.accept()
        await _Carrying(socket, connection).serve()


def _parse_port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) < 65536):
        raise Invalid(f"not a port: {text[:20]!r}", hint="1 to 65535")
    return int(text)


class _Carrying:
    """Carries bytes both ways until both sides have ended, or one is gone.

    Each side says how much it has taken and is sent no more than a window beyond that, so the WebSocket itself is
    always read: pings are answered and control frames heard, however slow the other side is.
    """

    def __init__(self, socket: WebSocket, connection: Connection) -> None:
        self._socket = socket
        self._inside = connection
        self._waiting = bytearray()  # in one piece: frames may be as small as their sender likes
        self._sending = 0  # bytes that have left it and are not inside yet
        self._has_ended = False  # the client sends no more
        self._sent = self._seen = 0  # bytes to the client, the latter as it says
        self._moved = asyncio.Condition()  # one of these is another

    async def serve(self) -> None:
        parts = [asyncio.ensure_future(part) for part in (self._hear(), self._carry_in(), self._carry_out())]
        carrying = asyncio.gather(*parts[1:])
        try:
            await asyncio.wait((parts[0], carrying), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for part in parts:
                part.cancel()
            endings = await asyncio.gather(carrying, *parts, return_exceptions=True)
        with suppress(WebSocketDisconnect):  # it has left meanwhile, and needs to be told nothing
            for ending in endings:
                if isinstance(ending, DovecoteError):
                    await self._fail(ending)
                    return
                if isinstance(ending, Exception):
                    raise ending
            await self._socket.close()

    async def _fail(self, error: DovecoteError) -> None:
        body = errors.body_of(error, self._socket.scope["dovecote.request_id"])
        await self._tell(type="error", status=errors.status_of(error), **body)
        await self._socket.close(1008 if errors.status_of(error) < 500 else 1011, error.code)

    async def _hear(self) -> None:
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code", 1005))
            async with self._moved:
                if message.get("bytes") is not None:
                    self._take(message["bytes"])
                else:
                    self._control(message["text"])
                self._moved.notify_all()

    def _take(self, data: bytes) -> None:
        if self._has_ended:
            raise Invalid("bytes after the end", hint="`end` is the last that is sent")
        if self._sending + len(self._waiting) + len(data) > WINDOW:
            hint = f"send at most {WINDOW} bytes beyond what `seen` says"
            raise Invalid("more was sent than there is room for", code="too_large", hint=hint)
        self._waiting += data

    def _control(self, text: str) -> None:
        if len(text) > MOST_CONTROL:
            raise Invalid(f"a control frame has at most {MOST_CONTROL} characters", code="too_large")
        try:
            frame = _CONTROL.validate_json(text)
        except ValidationError as error:
            raise errors.invalid_fields(error.errors(include_url=False, include_context=False)) from None
        if isinstance(frame, _Seen):
            self._seen = frame.bytes
        else:
            self._has_ended = True

    async def _carry_in(self) -> None:
        taken = told = 0
        while True:
            async with self._moved:
                await self._moved.wait_for(lambda: self._waiting or self._has_ended)
            if not self._waiting:
                self._inside.end()
                return
            data = bytes(self._waiting[:TELL_EVERY])
            del self._waiting[:TELL_EVERY]
            self._sending = len(data)
            await self._inside.send(data)
            self._sending = 0
            taken += len(data)
            if taken - told >= TELL_EVERY:
                told = taken
                await self._tell(type="seen", bytes=taken)

    async def _carry_out(self) -> None:
        while data := await self._inside.receive():
            self._sent += len(data)
            await self._socket.send_bytes(data)
            async with self._moved:
                await self._moved.wait_for(lambda: self._sent - self._seen < WINDOW)
        await self._tell(type="end")

    async def _tell(self, **fields: object) -> None:
        await self._socket.send_text(orjson.dumps(fields).decode())
