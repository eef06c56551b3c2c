"""Reads `multipart/form-data` as it arrives: one part after the other, none of them held as a whole."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass

from dovecote.errors import Invalid

MAX_HEADERS = 16 << 10  # bytes, of one part
MAX_PARTS = 10_000
AT_ONCE = 64 << 10  # bytes that are looked through: three times as fast as in pieces that leave the cache

_BOUNDARY = re.compile(r';\s*boundary=(?:"([^"]{1,70})"|([^\s;,"]{1,70}))', re.IGNORECASE)
_PARAMETER = re.compile(r';\s*([a-z*]+)=(?:"((?:[^"\\]|\\.)*)"|([^\s;]*))', re.IGNORECASE | re.DOTALL)
_ESCAPED = {"%22": '"', "%0D": "\r", "%0A": "\n"}  # as browsers' form data write them in names


@dataclass(frozen=True)
class Part:
    name: str
    filename: str | None


def parse_boundary(content_type: str) -> bytes:
    """Raises Invalid where there is none."""
    match = _BOUNDARY.search(content_type)
    if match is None:
        raise Invalid("multipart/form-data without a boundary")
    return (match[1] or match[2]).encode("latin-1", "replace")


class Multipart:
    """`await next_part()`, then `content()` of it; what is left of it is skipped by the next `next_part`."""

    def __init__(self, boundary: bytes, source: AsyncIterator[bytes]) -> None:
        self._delimiter = b"\r\n--" + boundary
        self._source = source
        self._buffer = bytearray(b"\r\n")  # the first delimiter has no line before it
        self._arrived = memoryview(b"")
        self._in_part = True  # what comes before the first delimiter is nobody's
        self._parts = 0

    async def next_part(self) -> Part | None:
        """None after the last one. Raises Invalid for a body that is cut short or makes no sense."""
        async for _ in self.content():
            pass
        if await self._take(2) == b"--":
            return None
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise Invalid(f"more than {MAX_PARTS} parts", code="too_large", hint="send them in several requests")
        part = _parse_part(await self._headers())
        self._in_part = True
        return part

    async def content(self) -> AsyncIterator[bytes]:
        """What is left of this part's content."""
        keep = len(self._delimiter) - 1
        while self._in_part:
            at = self._buffer.find(self._delimiter)
            ready = at if at >= 0 else max(0, len(self._buffer) - keep)
            with memoryview(self._buffer) as view:
                piece = bytes(view[:ready])
            if at >= 0:
                del self._buffer[: at + len(self._delimiter)]
                self._in_part = False
            else:
                del self._buffer[:ready]
            if piece:
                yield piece
            if at < 0:
                await self._more()

    async def _headers(self) -> bytes:
        """The lines after a delimiter, up to the empty one. What follows the delimiter on its line is padding."""
        while (at := self._buffer.find(b"\r\n\r\n")) < 0:
            if len(self._buffer) > MAX_HEADERS:
                raise Invalid(f"headers of a part over {MAX_HEADERS} bytes", code="too_large")
            await self._more()
        lines = bytes(self._buffer[:at])
        del self._buffer[: at + 4]
        return lines

    async def _take(self, size: int) -> bytes:
        """Looks at the next bytes; takes them only where they end the body."""
        while len(self._buffer) < size:
            await self._more()
        return bytes(self._buffer[:size])

    async def _more(self) -> None:
        if not self._arrived:
            chunk = await anext(self._source, None)
            if chunk is None:
                raise Invalid("the form ends in the middle of a part", code="cut_short", hint="send it again")
            self._arrived = memoryview(chunk)
        self._buffer += self._arrived[:AT_ONCE]
        self._arrived = self._arrived[AT_ONCE:]


def _parse_part(lines: bytes) -> Part:
    for line in lines.decode("utf-8", "surrogateescape").split("\r\n"):
        name, _, value = line.partition(":")
        if name.strip().lower() == "content-disposition":
            found = {match[1].lower(): _value(match) for match in _PARAMETER.finditer(value)}
            return Part(found.get("name", ""), found.get("filename"))
    raise Invalid("a part of the form without a Content-Disposition")


def _value(match: re.Match[str]) -> str:
    quoted, plain = match[2], match[3]
    if quoted is None:
        return plain
    text = re.sub(r'\\(["\\])', r"\1", quoted)
    return re.sub("%22|%0D|%0A", lambda escape: _ESCAPED[escape[0]], text)
