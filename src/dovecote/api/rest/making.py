"""What is made while its caller looks on: an answer of NDJSON events. Leaving does not end it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any

import orjson
from fastapi import Response
from fastapi.responses import StreamingResponse

from dovecote.api import errors
from dovecote.api.rest.here import Call
from dovecote.control.templates import OnTheWay, Printed
from dovecote.errors import DovecoteError

NDJSON = "application/x-ndjson"
STREAMED: dict[int | str, dict[str, Any]] = {
    200: {"description": "NDJSON: `step`, `output`, at last `ready` or `error`.", "content": {NDJSON: {}}}
}
Events = AsyncGenerator[Any, None]  # those on the way, and at last the room's own
Line = Callable[[Any], Awaitable[Mapping[str, object]]]


def way_line(event: OnTheWay) -> dict[str, object]:
    """Of an event on the way to the last one."""
    if isinstance(event, Printed):
        return {"type": "output", "text": event.text}
    return {"type": "step", "what": event.what, "done": event.done, "total": event.total}


def streamed(here: Call, events: Events, line: Line, *first: Any) -> Response:
    lines = _lines(here, events, line, first)
    return StreamingResponse(lines, media_type=NDJSON, headers={"cache-control": "no-store", "x-accel-buffering": "no"})


async def streamed_once_received(here: Call, events: Events, line: Line) -> Response:
    """The answer begins after the body has come: a client that still sends does not read."""
    try:
        return streamed(here, events, line, await anext(events))
    except BaseException:
        await events.aclose()
        raise


async def _lines(here: Call, events: Events, line: Line, first: tuple[Any, ...]) -> AsyncGenerator[bytes, None]:
    try:
        for event in first:
            yield orjson.dumps(await line(event)) + b"\n"
        async for event in events:
            yield orjson.dumps(await line(event)) + b"\n"
    except DovecoteError as error:
        yield orjson.dumps({"type": "error", **errors.body_of(error, here.request_id)}) + b"\n"
    except Exception:  # logged where it came from
        yield orjson.dumps({"type": "error", **errors.body_of(errors.internal(), here.request_id)}) + b"\n"
    finally:
        await events.aclose()
