"""Routes of commands: waited for, streamed or detached. The busiest ones, hence without FastAPI's body handling."""

from __future__ import annotations

import asyncio
import base64
import codecs
import signal as signals
from typing import Annotated, Any, Literal, Self

import orjson
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import Field, ValidationError, model_validator
from starlette.requests import ClientDisconnect

from dovecote.api import errors
from dovecote.api.rest.command_shapes import CommandShape, FinishedShape
from dovecote.api.rest.here import Here, Number, SessionId, call
from dovecote.api.rest.lines import NDJSON, lasting, line
from dovecote.api.rest.shapes import Body, Page, shown
from dovecote.control.sandboxes import CommandStatus, Dropped, Event, Exited, Finished, Output, Started
from dovecote.errors import Invalid
from dovecote.model.ids import parse_id

routes = APIRouter(prefix="/v1/sessions/{session_id}", tags=["commands"])

Encoding = Literal["utf-8", "base64"]


class Terminal(Body):
    rows: int = Field(24, ge=1, le=1000)
    cols: int = Field(80, ge=1, le=1000)


class NewCommand(Body):
    command: Annotated[str, Field(min_length=1)] | Annotated[list[str], Field(min_length=1)] = Field(
        description="A line for `sh -c`, or the words of a program's command line."
    )
    env: dict[str, str] = Field(default_factory=dict)
    cwd: str | None = Field(None, description="The user's home if null.")
    user: str | None = Field(None, description="The template's own user if null.")
    stdin: str | None = Field(None, description="Text for its input, which then ends. Only when it is waited for.")
    timeout_seconds: float | None = Field(
        None, gt=0, description="It is killed after so long. 60 if null and waited for, else without end."
    )
    max_output_bytes: int = Field(1 << 20, ge=1, description="Output kept when it is waited for.")
    encoding: Encoding = Field("utf-8", description="How output is written in the answer; utf-8 replaces other bytes.")
    stream: bool = Field(False, description="Answer with NDJSON events as they happen. Leaving detaches only.")
    detach: bool = Field(False, description="Answer at once with its number; it goes on by itself.")
    open_stdin: bool = Field(False, description="Keep its input open for PUT .../stdin; with stream or detach.")
    pty: Terminal | None = Field(None, description="Give it a terminal; with stream or detach.")
    tag: str = Field("", max_length=100, description="For you, to find it in the list.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.stream and self.detach:
            raise ValueError("stream and detach exclude each other")
        if self.stdin is not None and (self.stream or self.detach):
            raise ValueError("stdin goes with a command that is waited for; else use open_stdin")
        if (self.pty or self.open_stdin) and not (self.stream or self.detach):
            raise ValueError("pty and open_stdin need stream or detach")
        return self

    def argv(self) -> tuple[str, ...]:
        return ("/bin/sh", "-c", self.command) if isinstance(self.command, str) else tuple(self.command)

    def long_running(self) -> dict[str, Any]:
        """Arguments of a command that is not waited for."""
        return {
            "argv": self.argv(),
            "env": self.env,
            "cwd": self.cwd,
            "user": self.user,
            "stdin": self.open_stdin,
            "pty": (self.pty.rows, self.pty.cols) if self.pty else None,
            "timeout": self.timeout_seconds,
            "tag": self.tag,
        }


class Signal(Body):
    signal: int | str = Field("SIGTERM", description="A number, or a name such as SIGINT.")

    def number(self) -> int:
        try:
            return int(signals.Signals[self.signal] if isinstance(self.signal, str) else signals.Signals(self.signal))
        except (KeyError, ValueError):
            raise Invalid(f"signal: no signal {self.signal!r}", hint="use a name such as SIGTERM or a number") from None


@routes.post(
    "/commands",
    summary="Run a command",
    responses={
        200: {
            "description": "What it did: one object when waited for, NDJSON events with `stream`.",
            "content": {"application/json": {"schema": FinishedShape.model_json_schema()}, NDJSON: {}},
        },
        202: {"description": "With `detach`: its number and pid."},
    },
    openapi_extra={
        "parameters": [{"name": "session_id", "in": "path", "required": True, "schema": {"type": "string"}}],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": NewCommand.model_json_schema()}},
        },
    },
)
async def run_command(request: Request) -> Response:
    here = await call(request)
    session_id = parse_id(request.path_params["session_id"], "ses")
    try:
        new = NewCommand.model_validate_json(await request.body())
    except ValidationError as error:
        raise errors.invalid_fields(error.errors(include_url=False, include_context=False)) from None
    sandboxes = here.rooms.sandboxes
    if new.stream:
        events = sandboxes.stream(here.tenant_id, session_id, **new.long_running())
        return await lasting(events, EventText(new.encoding).render, here.request_id)
    if new.detach:
        started = await sandboxes.start(here.tenant_id, session_id, **new.long_running())
        return _json({"number": started.number, "pid": started.pid}, 202)
    finished = await sandboxes.run(
        here.tenant_id,
        session_id,
        argv=new.argv(),
        env=new.env,
        cwd=new.cwd,
        user=new.user,
        stdin=new.stdin.encode() if new.stdin is not None else None,
        timeout=new.timeout_seconds or 60,
        max_output=new.max_output_bytes,
    )
    return _json(finished_body(finished, new.encoding))


@routes.get("/commands", summary="The commands that run, and those that ended and were not released")
async def list_commands(here: Here, session_id: SessionId) -> Page[CommandShape]:
    found = await here.rooms.sandboxes.commands(here.tenant_id, session_id)
    return Page[CommandShape](items=[command_shape(status) for status in found], next=None)


@routes.get(
    "/commands/{number}/stream",
    summary="Its output from an offset on, until it ends, as NDJSON events",
    response_class=StreamingResponse,
)
async def attach_command(
    here: Here,
    session_id: SessionId,
    number: Number,
    offset: Annotated[int, Query(ge=0, description="Bytes of output that you have already.")] = 0,
    encoding: Encoding = "utf-8",
) -> Response:
    events = here.rooms.sandboxes.attach(here.tenant_id, session_id, number, offset=offset)
    return await lasting(events, EventText(encoding).render, here.request_id)


@routes.post("/commands/{number}:signal", status_code=204, summary="Send it a signal")
async def signal_command(here: Here, session_id: SessionId, number: Number, signal: Signal) -> None:
    await here.rooms.sandboxes.signal(here.tenant_id, session_id, number, signal.number())


@routes.post("/commands/{number}:resize", status_code=204, summary="Tell it the size of its terminal")
async def resize_command(here: Here, session_id: SessionId, number: Number, size: Terminal) -> None:
    await here.rooms.sandboxes.resize(here.tenant_id, session_id, number, size.rows, size.cols)


@routes.put(
    "/commands/{number}/stdin",
    status_code=204,
    summary="Write the body to its input, up to 1 MiB a call",
    openapi_extra={"requestBody": {"content": {"application/octet-stream": {}}}},
)
async def write_stdin(
    here: Here,
    session_id: SessionId,
    number: Number,
    request: Request,
    timeout_seconds: Annotated[float, Query(gt=0, description="Until it must have read it.")] = 30,
) -> None:
    data = await request.body()
    writing = asyncio.ensure_future(
        here.rooms.sandboxes.write_stdin(here.tenant_id, session_id, number, data, timeout=timeout_seconds)
    )
    leaving = asyncio.ensure_future(request.receive())  # after the body there is nothing but the end of the connection
    try:
        await asyncio.wait((writing, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not writing.done():
            raise ClientDisconnect
        await writing
    finally:
        writing.cancel()
        leaving.cancel()


@routes.delete("/commands/{number}/stdin", status_code=204, summary="End its input")
async def close_stdin(here: Here, session_id: SessionId, number: Number) -> None:
    await here.rooms.sandboxes.close_stdin(here.tenant_id, session_id, number)


@routes.delete("/commands/{number}", status_code=204, summary="Forget an ended command and its output")
async def release_command(here: Here, session_id: SessionId, number: Number) -> None:
    await here.rooms.sandboxes.release(here.tenant_id, session_id, number)


def command_shape(status: CommandStatus) -> CommandShape:
    return CommandShape(
        number=status.number,
        pid=status.pid,
        is_running=status.is_running,
        exit_code=status.exit_code,
        signal=status.signal,
        timed_out=status.timed_out,
        tag=shown(status.tag),
        started_at=status.started_at,
        output_bytes=status.output_bytes,
    )


def finished_body(finished: Finished, encoding: Encoding) -> dict[str, Any]:
    return {
        "stdout": _text(finished.stdout, encoding),
        "stderr": _text(finished.stderr, encoding),
        "exit_code": finished.exit_code,
        "signal": finished.signal,
        "timed_out": finished.timed_out,
        "truncated": finished.truncated,
    }


def _text(data: bytes, encoding: Encoding) -> str:
    return base64.b64encode(data).decode() if encoding == "base64" else data.decode("utf-8", "replace")


def _json(body: object, status: int = 200) -> Response:
    return Response(orjson.dumps(body), status, media_type="application/json")


class EventText:
    """Renders events as NDJSON. Keeps the beginning of a character that was cut between two pieces of output."""

    def __init__(self, encoding: Encoding) -> None:
        self._encoding = encoding
        make = codecs.getincrementaldecoder("utf-8")
        self._decoders = {"stdout": make("replace"), "stderr": make("replace")}

    def render(self, event: Event) -> bytes:
        if isinstance(event, Output):
            return self._output(event.stream, event.data, event.offset, final=False)
        if isinstance(event, Started):
            return line(type="started", number=event.number, pid=event.pid)
        if isinstance(event, Dropped):
            return line(type="dropped", bytes=event.bytes)
        assert isinstance(event, Exited)
        rest = b"".join(
            self._output(stream, b"", None, final=True)
            for stream, decoder in self._decoders.items()
            if decoder.getstate()[0]
        )
        return rest + line(type="exited", exit_code=event.exit_code, signal=event.signal, timed_out=event.timed_out)

    def _output(self, stream: str, data: bytes, offset: int | None, *, final: bool) -> bytes:
        if self._encoding == "base64":
            shown, pending = base64.b64encode(data).decode(), 0
        else:
            decoder = self._decoders[stream]
            shown = decoder.decode(data, final)
            pending = len(decoder.getstate()[0])
        after = None if offset is None else offset + len(data) - pending
        return line(type="output", stream=stream, data=shown, offset=offset, next_offset=after)
