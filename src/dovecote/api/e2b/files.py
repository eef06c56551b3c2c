"""`/files` of a sandbox: contents down and up, streamed in both directions."""

from __future__ import annotations

import posixpath
import re
import zlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from email.utils import formatdate
from urllib.parse import quote

from starlette.datastructures import Headers, QueryParams
from starlette.types import Receive, Send

from dovecote.api.e2b.call import Call, absolute
from dovecote.api.e2b.connect import chunks, send_json
from dovecote.api.e2b.filesystem import Filesystem, shown
from dovecote.api.e2b.messages import Json
from dovecote.api.e2b.multipart import Multipart, parse_boundary
from dovecote.control.sandboxes import Sandboxes, Stat
from dovecote.errors import Failed, Invalid, NotFound, Unsupported

INFLATED_AT_ONCE = 256 << 10  # bytes
METADATA = "x-metadata-"
MOST_DRAINED = 16 << 20  # bytes
BYTES = b"application/octet-stream"

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


@dataclass(frozen=True)
class Span:
    """The bytes of a file that were asked for; `is_part` says whether by a range."""

    offset: int
    length: int
    is_part: bool


class Files:
    def __init__(self, sandboxes: Sandboxes, filesystem: Filesystem) -> None:
        self._sandboxes = sandboxes
        self._filesystem = filesystem

    async def download(
        self, call: Call, query: QueryParams, headers: Headers, send: Send, *, is_asked_about: bool = False
    ) -> None:
        """What is only asked about gets no content, and the same status and headers: it is opened for that."""
        path = await absolute(self._sandboxes, call, query.get("path", ""), call.user)
        stat = await self._filesystem.find(call, path)
        if stat is None:
            raise NotFound(f"path '{shown(path)}' does not exist", code="file_not_found")
        if stat.kind != "file":
            what = "a directory" if stat.kind == "directory" else "not a regular file"
            raise Invalid(f"path '{shown(path)}' is {what}", code="is_directory")
        span = parse_range(headers.get("range", ""), stat.size)
        if span is None:
            await _refuse_range(send, stat.size)
            return
        # What the kernel makes up as it is read (/proc) has no size: its end is where it ends.
        first, rest = await self._filesystem.read(call, path, span.offset, span.length if stat.size else None)
        length = span.length if stat.size or not first else None
        await send({"type": "http.response.start", **_head(path, stat, span, length)})
        if is_asked_about:
            await rest.aclose()
            await send({"type": "http.response.body", "body": b""})
            return
        sent = 0
        async with aclosing(joined(first, rest)) as content:
            async for chunk in content:
                sent += len(chunk)
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        if length is not None and sent != length:
            raise Failed(f"{shown(path)} became shorter while it was read", code="changed")
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def upload(self, call: Call, query: QueryParams, headers: Headers, receive: Receive, send: Send) -> None:
        """One file as it is, or several as the files of a form."""
        body = decoded(chunks(receive), headers.get("content-encoding", ""))
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        path = query.get("path") or None
        metadata = parse_metadata(headers)
        try:
            if kind == "multipart/form-data":
                form = Multipart(parse_boundary(headers.get("content-type", "")), body)
                written = await self._write_form(call, form, path, metadata)
            elif kind in ("application/octet-stream", ""):
                if path is None:
                    raise Invalid("path is missing")
                written = [await self._write(call, path, body, metadata)]
            else:
                raise Unsupported(f"no way to read {kind[:100]!r}", code="unsupported_media_type")
        except Exception:
            await _drain(body)
            raise
        await send_json(send, 200, written)

    async def _write_form(self, call: Call, form: Multipart, path: str | None, metadata: dict[str, str]) -> list[Json]:
        written: list[Json] = []
        while (part := await form.next_part()) is not None:
            if part.name != "file":
                continue
            if path is not None and written:
                raise Invalid(f"several files for the one path {path!r}", hint="leave the path to the files")
            where = path or part.filename
            if not where:
                raise Invalid("a file of the form without a name, and no path")
            written.append(await self._write(call, where, form.content(), metadata))
        return written

    async def _write(self, call: Call, path: str, content: AsyncIterator[bytes], metadata: dict[str, str]) -> Json:
        where = await absolute(self._sandboxes, call, path, call.user)
        if where == "/" or path.endswith("/"):
            raise Invalid(f"path is a directory: {shown(where)}", code="is_directory")
        await self._filesystem.write(call, where, content, metadata or None)
        body: Json = {"name": shown(posixpath.basename(where)), "path": shown(where), "type": "file"}
        return body | ({"metadata": metadata} if metadata else {})


def parse_metadata(headers: Headers) -> dict[str, str]:
    """What headers `X-Metadata-<name>` say of the files of a request."""
    return {name.removeprefix(METADATA): text for name, text in headers.items() if name.startswith(METADATA)}


def parse_range(text: str, size: int) -> Span | None:
    """The whole file where no range is asked for that is understood; None where it begins behind the file's end."""
    match = _RANGE.fullmatch(text.strip())
    if match is None or match[1] == match[2] == "":
        return Span(0, size, False)
    if match[1] == "":
        start, end = max(0, size - int(match[2])), size
    else:
        start, end = int(match[1]), min(int(match[2]) + 1, size) if match[2] else size
        if match[2] and int(match[2]) < start:
            return Span(0, size, False)
    return Span(start, end - start, True) if start < size else None


async def joined(first: bytes, rest: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(rest):
        if first:
            yield first
        async for chunk in rest:
            yield chunk


async def decoded(body: AsyncIterator[bytes], encoding: str) -> AsyncIterator[bytes]:
    """Unpacked where it is gzip, in pieces that are bounded whatever it unpacks to."""
    if encoding in ("", "identity"):
        async for chunk in body:
            yield chunk
        return
    if encoding != "gzip":
        raise Unsupported(f"no encoding {encoding[:40]!r}", code="unsupported_media_type", hint="send it as gzip")
    inflate = zlib.decompressobj(wbits=31)
    async for chunk in body:
        rest = chunk
        while rest and not inflate.eof:
            try:
                plain = inflate.decompress(rest, INFLATED_AT_ONCE)
            except zlib.error as error:
                raise Invalid(f"the body is not gzip: {error}") from None
            rest = inflate.unconsumed_tail
            if plain:
                yield plain
    if not inflate.eof:
        raise Invalid("the body is not all of a gzip file", code="cut_short", hint="send it again")


async def _drain(body: AsyncIterator[bytes]) -> None:
    """So that a client that only reads once it has sent all sees why it was refused, unless that is much."""
    left = MOST_DRAINED
    try:
        async for chunk in body:
            left -= len(chunk)
            if left < 0:
                return
    except Exception:
        return


def _head(path: str, stat: Stat, span: Span, length: int | None) -> dict[str, object]:
    """Never to be shown by a browser: the console has the same origin."""
    name = posixpath.basename(shown(path))
    headers = [
        (b"content-type", BYTES),
        (b"content-disposition", f"attachment; filename*=UTF-8''{quote(name, safe='')}".encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"cache-control", b"no-store"),
        (b"accept-ranges", b"bytes"),
        (b"last-modified", formatdate(max(0, stat.modified_at.timestamp()), usegmt=True).encode()),
    ]
    if length is not None:
        headers.append((b"content-length", str(length).encode()))
    if span.is_part:
        last = span.offset + span.length - 1
        headers.append((b"content-range", f"bytes {span.offset}-{last}/{stat.size}".encode()))
    return {"status": 206 if span.is_part else 200, "headers": headers}


async def _refuse_range(send: Send, size: int) -> None:
    headers = [(b"content-range", f"bytes */{size}".encode()), (b"content-length", b"0")]
    await send({"type": "http.response.start", "status": 416, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
