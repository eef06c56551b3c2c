"""Answers of NDJSON that last: the first event decides between an error and a stream, blank lines keep it alive."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import TypeVar

import orjson
from fastapi.responses import StreamingResponse

from dovecote.api import errors
from dovecote.errors import DovecoteError

NDJSON = "application/x-ndjson"
ALIVE_EVERY = 60.0  # seconds of silence after which a blank line is sent: proxies end what is silent
HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}

Event = TypeVar("Event")


async def lasting(events: AsyncIterator[Event], render: Callable[[Event], bytes], request_id: str) -> StreamingResponse:
    """The first event is awaited before the answer begins, so that a refusal is an error and not a stream."""
    try:
        first = await anext(events, None)
    except BaseException:
        await _close(events)
        raise
    return StreamingResponse(_lines(first, events, render, request_id), media_type=NDJSON, headers=HEADERS)


def line(**fields: object) -> bytes:
    return orjson.dumps(fields) + b"\n"


async def _lines(
    first: Event | None, events: AsyncIterator[Event], render: Callable[[Event], bytes], request_id: str
) -> AsyncGenerator[bytes, None]:
    """Ends with the last event, or `error`. When the client leaves, the events are closed."""
    try:
        if first is not None:
            yield render(first)
            async with aclosing(_or_silence(events)) as following:
                async for event in following:
                    yield b"\n" if event is None else render(event)
    except DovecoteError as error:
        yield orjson.dumps({"type": "error", **errors.body_of(error, request_id)}) + b"\n"
    finally:
        await _close(events)


async def _or_silence(events: AsyncIterator[Event]) -> AsyncGenerator[Event | None, None]:
    """None stands for a while without an event."""
    while True:
        following = asyncio.ensure_future(anext(events))
        try:
            while not (await asyncio.wait([following], timeout=ALIVE_EVERY))[0]:
                yield None
            yield following.result()
        except StopAsyncIteration:
            return
        finally:
            if not following.done():
                following.cancel()
                await asyncio.wait([following])


async def _close(events: AsyncIterator[Event]) -> None:
    if isinstance(events, AsyncGenerator):
        async with aclosing(events):
            pass
