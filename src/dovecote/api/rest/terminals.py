"""A terminal over a WebSocket: bytes are its input and output, text frames are JSON about it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from datetime import datetime
from typing import Annotated, Literal

import orjson
from fastapi import APIRouter, WebSocket
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from starlette.websockets import WebSocketDisconnect

from dovecote.api import errors
from dovecote.api.rest.commands import Signal, Terminal
from dovecote.api.rest.here import Here, SessionId
from dovecote.api.rest.shapes import Body
from dovecote.control.sandboxes import LOGIN_SHELL, Dropped, Event, Output, Sandboxes, Started
from dovecote.errors import Conflict, DeadlineExceeded, DovecoteError, Invalid, NotFound
from dovecote.model.ids import parse_id

routes = APIRouter(prefix="/v1/sessions/{session_id}", tags=["commands"])

PATH = "/v1/sessions/{session_id}/terminal"
MOST_TYPED = 256 << 10  # bytes of input that wait for the program; then the client has to
MOST_CONTROL = 4096  # characters of a text frame
TAG = "terminal"


class TicketFor(Body):
    origin: str = Field("", max_length=300, description="The page's, where it is not one of this server's.")


class TicketShape(BaseModel):
    ticket: str = Field(description="For `?ticket=`; good for one use.")
    expires_at: datetime


class _Wanted(BaseModel):
    """The query of a terminal."""

    model_config = ConfigDict(extra="forbid")

    number: int | None = Field(None, gt=0, lt=1 << 31)
    offset: int = Field(0, ge=0, lt=1 << 63)
    command: str | None = Field(None, min_length=1, max_length=32768)
    cwd: str | None = Field(None, max_length=4096)
    user: str | None = Field(None, max_length=64)
    rows: int = Field(24, ge=1, le=1000)
    cols: int = Field(80, ge=1, le=1000)
    window: int | None = Field(None, ge=1 << 14, le=1 << 26)


class _Resize(Terminal):
    type: Literal["resize"]


class _Signal(Signal):
    type: Literal["signal"]


class _Seen(Body):
    type: Literal["seen"]
    bytes: int = Field(ge=0, lt=1 << 63)


_Control = _Resize | _Signal | _Seen
_CONTROL: TypeAdapter[_Control] = TypeAdapter(Annotated[_Control, Field(discriminator="type")])


@routes.post("/terminal:ticket", status_code=201, summary="A ticket for one WebSocket to a terminal")
async def ticket(here: Here, session_id: SessionId, wanted: TicketFor | None = None) -> TicketShape:
    session = await here.rooms.sessions.get(here.tenant_id, session_id)
    origin = wanted.origin if wanted else ""
    made = here.rooms.tickets.issue(here.tenant_id, PATH.format(session_id=session.id), origin)
    return TicketShape(ticket=made.text, expires_at=made.expires_at)


@routes.websocket("/terminal")
async def terminal(socket: WebSocket) -> None:
    query = {name: value for name, value in socket.query_params.items() if name != "ticket"}
    try:
        wanted = _Wanted.model_validate(query)
    except ValidationError as error:
        raise errors.invalid_fields(error.errors(include_url=False, include_context=False)) from None
    tenant_id = socket.scope["dovecote.principal"].tenant_id
    session = await socket.app.state.rooms.sessions.get(tenant_id, parse_id(socket.path_params["session_id"], "ses"))
    await socket.accept()
    await _Line(socket, socket.app.state.rooms.sandboxes, tenant_id, session.id).serve(wanted)


class _Line:
    """Joins one WebSocket to one terminal. Each waits for the other; when the client leaves, the program goes on."""

    def __init__(self, socket: WebSocket, sandboxes: Sandboxes, tenant_id: str, session_id: str) -> None:
        self._socket = socket
        self._sandboxes = sandboxes
        self._where = (tenant_id, session_id)
        self._number = 0
        self._typed = bytearray()
        self._sent = self._seen = 0  # bytes of output, the latter as the client says
        self._moved = asyncio.Condition()  # one of these is another

    async def serve(self, wanted: _Wanted) -> None:
        """Ends with the program, with the client, or with an error that the client is told."""
        parts = [asyncio.ensure_future(part) for part in (self._show(wanted), self._hear(), self._type())]
        try:
            await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for part in parts:
                part.cancel()
            endings = await asyncio.gather(*parts, return_exceptions=True)
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

    # -- from the terminal

    async def _show(self, wanted: _Wanted) -> None:
        events = await self._attached(wanted) if wanted.number else self._started(wanted)
        assert isinstance(events, AsyncGenerator)
        async with aclosing(events):
            async for event in events:
                if wanted.window is not None and isinstance(event, Output):
                    await self._has_room(wanted.window)
                await self._tell_event(event)

    async def _has_room(self, window: int) -> None:
        """Browsers take all that comes, so one that is slow says how much it has shown."""
        async with self._moved:
            await self._moved.wait_for(lambda: self._sent - self._seen < window)

    def _started(self, wanted: _Wanted) -> AsyncIterator[Event]:
        argv = ("/bin/sh", "-c", wanted.command) if wanted.command else LOGIN_SHELL
        return self._sandboxes.stream(
            *self._where, argv=argv, cwd=wanted.cwd, user=wanted.user, pty=(wanted.rows, wanted.cols), tag=TAG
        )

    async def _attached(self, wanted: _Wanted) -> AsyncIterator[Event]:
        """Resized first: the program draws itself anew for this client, and what has no terminal is refused."""
        assert wanted.number is not None
        await self._sandboxes.resize(*self._where, wanted.number, wanted.rows, wanted.cols)
        await self._is_number(wanted.number)
        await self._tell(type="attached", number=wanted.number)
        return self._sandboxes.attach(*self._where, wanted.number, offset=wanted.offset)

    async def _tell_event(self, event: Event) -> None:
        if isinstance(event, Output):
            self._sent += len(event.data)
            await self._socket.send_bytes(event.data)
        elif isinstance(event, Started):
            await self._is_number(event.number)
            await self._tell(type="started", number=event.number, pid=event.pid)
        elif isinstance(event, Dropped):
            await self._tell(type="dropped", bytes=event.bytes)
        else:
            await self._tell(type="exited", exit_code=event.exit_code, signal=event.signal, timed_out=event.timed_out)

    async def _tell(self, **fields: object) -> None:
        await self._socket.send_text(orjson.dumps(fields).decode())

    async def _is_number(self, number: int) -> None:
        async with self._moved:
            self._number = number
            self._moved.notify_all()

    # -- from the client

    async def _hear(self) -> None:
        """Control frames are acted on at once; input is for `_type`, so that a program that does not read holds up no
        signal."""
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code", 1005))
            if message.get("bytes") is not None:
                async with self._moved:
                    await self._moved.wait_for(lambda: len(self._typed) < MOST_TYPED)
                    self._typed += message["bytes"]
                    self._moved.notify_all()
            else:
                await self._control(message["text"])

    async def _control(self, text: str) -> None:
        if len(text) > MOST_CONTROL:
            raise Invalid(f"a control frame has at most {MOST_CONTROL} characters", code="too_large")
        try:
            frame = _CONTROL.validate_json(text)
        except ValidationError as error:
            raise errors.invalid_fields(error.errors(include_url=False, include_context=False)) from None
        if isinstance(frame, _Seen):
            async with self._moved:
                self._seen = frame.bytes
                self._moved.notify_all()
            return
        async with self._moved:
            await self._moved.wait_for(lambda: self._number > 0)
        try:
            if isinstance(frame, _Resize):
                await self._sandboxes.resize(*self._where, self._number, frame.rows, frame.cols)
            else:
                await self._sandboxes.signal(*self._where, self._number, frame.number())
        except NotFound:
            pass  # it has ended and was forgotten; that is told

    async def _type(self) -> None:
        while True:
            async with self._moved:
                await self._moved.wait_for(lambda: self._number > 0 and len(self._typed) > 0)
                data = bytes(self._typed)
                self._typed.clear()
                self._moved.notify_all()
            try:
                await self._sandboxes.write_stdin(*self._where, self._number, data)
            except DeadlineExceeded:
                await self._tell(type="input_dropped", bytes=len(data))
            except (Conflict, NotFound):
                pass  # it has ended, or was forgotten; that is told
