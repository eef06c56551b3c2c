"""The Connect protocol with JSON: unary calls, streams of enveloped messages, and its error codes."""

from __future__ import annotations

import asyncio
import contextlib
import struct
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from dataclasses import dataclass

import orjson
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import Message as Event
from starlette.types import Receive, Send

from dovecote import errors
from dovecote.api.e2b.messages import Json, Message
from dovecote.errors import DeadlineExceeded, DovecoteError, Invalid

MAX_MESSAGE = 32 << 20  # bytes, after decompression
UNARY, STREAM = "application/json", "application/connect+json"
STREAM_HEADERS = [(b"content-type", STREAM.encode()), (b"cache-control", b"no-store")]
COMPRESSED, END = 1, 2  # flags of an envelope
HEAD = struct.Struct(">BI")
KEEPALIVE_EVERY = 90.0  # seconds, where a client names none
LONGEST = 1 << 31  # milliseconds

CODES: dict[type[DovecoteError], str] = {
    DovecoteError: "internal",
    errors.Invalid: "invalid_argument",
    errors.Unauthenticated: "unauthenticated",
    errors.Forbidden: "permission_denied",
    errors.NotFound: "not_found",
    errors.Gone: "not_found",
    errors.Conflict: "failed_precondition",
    errors.NoCapacity: "resource_exhausted",
    errors.DeadlineExceeded: "deadline_exceeded",
    errors.Unsupported: "unimplemented",
}

# What clients of E2B expect where the class alone says something else.
CODE_OF_CODE: dict[str, str] = {
    "exists": "already_exists",
    "no_such_user": "unauthenticated",
    "no_such_directory": "invalid_argument",
    "command_not_found": "invalid_argument",
    "not_executable": "invalid_argument",
    "no_such_method": "unimplemented",
    "guest_unreachable": "unavailable",
    "instance_died": "unavailable",
    "no_such_instance": "unavailable",
    "stopping": "unavailable",
    "start_failed": "unavailable",
    "hook_failed": "unavailable",
    "no_such_session": "unavailable",
    "session_expired": "unavailable",
    "paused": "unavailable",
}

STATUS: dict[str, int] = {
    "invalid_argument": 400,
    "unauthenticated": 401,
    "permission_denied": 403,
    "not_found": 404,
    "already_exists": 409,
    "failed_precondition": 400,
    "resource_exhausted": 429,
    "deadline_exceeded": 504,
    "unimplemented": 501,
    "unavailable": 503,
    "internal": 500,
}


@dataclass(frozen=True)
class Pace:
    """What a client said of time, in seconds."""

    timeout: float | None
    keepalive: float


def code_of(error: DovecoteError) -> str:
    if error.code in CODE_OF_CODE:
        return CODE_OF_CODE[error.code]
    return next(CODES[kind] for kind in type(error).__mro__ if kind in CODES)


def error_body(error: DovecoteError) -> Json:
    return {"code": code_of(error), "message": str(error)}


def parse_pace(headers: Headers) -> Pace:
    """Raises Invalid for a timeout that is none. 0, and one of more than 24 days, is no timeout."""
    text = headers.get("connect-timeout-ms", "0")
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        raise Invalid(f"Connect-Timeout-Ms: not a number of milliseconds: {text[:40]!r}")
    wait = int(text)
    ping = headers.get("keepalive-ping-interval", "")
    every = float(ping) if ping.isascii() and ping.isdigit() and 0 < len(ping) <= 6 else KEEPALIVE_EVERY
    return Pace(wait / 1000 if 0 < wait < LONGEST else None, min(max(every, 1.0), 3600.0))


# -- messages in


async def read_unary(receive: Receive, headers: Headers) -> Message:
    body = bytearray()
    async for chunk in chunks(receive):
        body += chunk
        _check(len(body))
    return Message.parse(_decoded(bytes(body), headers.get("content-encoding", "identity")))


async def read_messages(receive: Receive, headers: Headers) -> AsyncIterator[Message]:
    """The enveloped messages of a stream, until its end."""
    encoding = headers.get("connect-content-encoding", "identity")
    frames = Frames()
    async for chunk in chunks(receive):
        for flags, payload in frames.feed(chunk):
            if flags & ~COMPRESSED:
                raise Invalid(f"an envelope with flags {flags}")
            yield Message.parse(_decoded(payload, encoding if flags & COMPRESSED else "identity"))
    frames.end()


async def read_one(receive: Receive, headers: Headers) -> Message:
    """Of a call that takes one message and answers many."""
    found: Message | None = None
    async for message in read_messages(receive, headers):
        if found is not None:
            raise Invalid("more than one message where one was due")
        found = message
    if found is None:
        raise Invalid("no message where one was due")
    return found


class Frames:
    """Cuts a stream into envelopes: flags, and a length that is bounded before anything is kept."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        self._buffer += data
        found = []
        at = 0
        while len(self._buffer) - at >= HEAD.size:
            flags, length = HEAD.unpack_from(self._buffer, at)
            _check(length)
            end = at + HEAD.size + length
            if len(self._buffer) < end:
                break
            found.append((flags, bytes(self._buffer[at + HEAD.size : end])))
            at = end
        del self._buffer[:at]
        return found

    def end(self) -> None:
        if self._buffer:
            raise Invalid("the stream ends in the middle of a message")


async def chunks(receive: Receive) -> AsyncIterator[bytes]:
    """A request's body. Raises ClientDisconnect."""
    while True:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise ClientDisconnect
        if body := event.get("body", b""):
            yield body
        if not event.get("more_body", False):
            return


def _check(size: int) -> None:
    if size > MAX_MESSAGE:
        raise Invalid(f"a message of more than {MAX_MESSAGE} bytes", code="too_large", hint="send it in parts")


def _decoded(data: bytes, encoding: str) -> bytes:
    if encoding in ("identity", ""):
        return data
    if encoding != "gzip":
        raise errors.Unsupported(f"no encoding {encoding[:40]!r}", hint="gzip and identity are there")
    inflate = zlib.decompressobj(wbits=31)
    try:
        plain = inflate.decompress(data, MAX_MESSAGE + 1)
    except zlib.error as error:
        raise Invalid(f"the message is not gzip: {error}") from None
    _check(len(plain))
    if not inflate.eof:
        raise Invalid("the message is not all of a gzip file")
    return plain


# -- messages out


def envelope(body: Json, flags: int = 0) -> bytes:
    data = orjson.dumps(body)
    return HEAD.pack(flags, len(data)) + data


async def answer_unary(send: Send, answer: Awaitable[Json], timeout: float | None) -> None:
    await send_json(send, 200, await _within(answer, timeout))


async def answer_fed(send: Send, answer: Awaitable[Json], timeout: float | None) -> None:
    """Of a call that takes a stream: it reads the request itself, and notices when the client leaves."""
    body = await _within(answer, timeout)
    await send({"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS})
    await send({"type": "http.response.body", "body": envelope(body) + envelope({}, END)})


async def _within(answer: Awaitable[Json], timeout: float | None) -> Json:
    try:
        async with asyncio.timeout(timeout):
            return await answer
    except TimeoutError:
        raise DeadlineExceeded(f"it took longer than {timeout:g} s") from None


async def send_json(send: Send, status: int, body: object) -> None:
    data = orjson.dumps(body)
    headers = [(b"content-type", UNARY.encode()), (b"content-length", str(len(data)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})


async def refuse(send: Send, error: DovecoteError, *, is_stream: bool) -> None:
    """An error ahead of any answer: streams tell theirs in their last envelope, calls by their status."""
    if not is_stream:
        await send_json(send, STATUS[code_of(error)], error_body(error))
        return
    await send({"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS})
    await send({"type": "http.response.body", "body": envelope({"error": error_body(error)}, END)})


async def answer_stream(
    receive: Receive, send: Send, messages: AsyncGenerator[Json, None], *, ping: Json | None, every: float
) -> None:
    """Sends them as they come, and `ping` after so many seconds of silence. Ends them when the client leaves."""
    sending = asyncio.ensure_future(_send_all(send, messages, ping, every))
    leaving = asyncio.ensure_future(_until_left(receive))
    try:
        await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if sending.done():
            sending.result()
    finally:
        for task in (sending, leaving):
            task.cancel()
        await asyncio.gather(sending, leaving, return_exceptions=True)


async def _send_all(send: Send, messages: AsyncGenerator[Json, None], ping: Json | None, every: float) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS})
    end: Json = {}
    try:
        async with contextlib.aclosing(_paced(messages, ping, every)) as paced:
            async for body in paced:
                await send(_part(envelope(body)))
    except DovecoteError as error:
        end = {"error": error_body(error)}
    await send(_part(envelope(end, END)))
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _part(data: bytes) -> Event:
    return {"type": "http.response.body", "body": data, "more_body": True}


async def _paced(messages: AsyncGenerator[Json, None], ping: Json | None, every: float) -> AsyncGenerator[Json, None]:
    async with contextlib.aclosing(messages):
        while True:
            coming = asyncio.ensure_future(anext(messages, None))
            try:
                while not (await asyncio.wait({coming}, timeout=every))[0]:
                    if ping is not None:
                        yield ping
                message = coming.result()
            finally:
                if not coming.done():
                    coming.cancel()
                    await asyncio.wait({coming})
            if message is None:
                return
            yield message


async def _until_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
