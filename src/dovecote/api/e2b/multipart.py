"""Reads `multipart/form-data` as it arrives: one part after the other, none of them held as a whole."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from dovecote.errors import Invalid

MAX_HEADER = 16 << 10  # bytes
MAX_HEADERS = 16  # of one part
MAX_PARTS = 10_000
LONGEST_BOUNDARY = 70  # RFC 2046
_ESCAPED = {"%22": '"', "%0D": "\r", "%0A": "\n"}  # as browsers' form data write them in names


@dataclass(frozen=True)
class Part:
    name: str
    filename: str | None


def parse_boundary(content_type: str) -> bytes:
    """Raises Invalid where there is none."""
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not 0 < len(boundary) <= LONGEST_BOUNDARY:
        raise Invalid("multipart/form-data without a boundary")
    return boundary


class Multipart:
    """`await next_part()`, then `content()` of it; what is left of it is skipped by the next `next_part`."""

    def __init__(self, boundary: bytes, source: AsyncIterator[bytes]) -> None:
        self._source = source
        self._found: deque[Part | bytes | None] = deque()  # None is the end of a part
        self._headers: dict[bytes, bytes] = {}
        self._field = self._value = b""
        self._parts = 0
        self._in_part = False
        self._is_over = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._on_field,
                "on_header_value": self._on_value,
                "on_header_end": self._end_header,
                "on_headers_finished": self._end_headers,
                "on_part_data": lambda data, start, end: self._found.append(data[start:end]),
                "on_part_end": lambda: self._found.append(None),
                "on_end": self._end,
            },
            max_header_count=MAX_HEADERS,
            max_header_size=MAX_HEADER,
        )

    async def next_part(self) -> Part | None:
        """None after the last one. Raises Invalid for a body that is cut short or makes no sense."""
        async for _ in self.content():
            pass
        if not await self._more():
            return None
        part = self._found.popleft()
        assert isinstance(part, Part)
        self._in_part = True
        return part

    async def content(self) -> AsyncIterator[bytes]:
        """What is left of this part's content."""
        while self._in_part:
            await self._more()
            piece = self._found.popleft()
            if piece is None:
                self._in_part = False
            else:
                assert isinstance(piece, bytes)
                yield piece

    async def _more(self) -> bool:
        """Whether something was found; reads until it was. False after the last part."""
        while not self._found:
            if self._is_over:
                return False
            chunk = await anext(self._source, None)
            if chunk is None:
                raise Invalid("the form ends in the middle of a part", code="cut_short", hint="send it again")
            try:
                self._parser.write(chunk)
            except MultipartParseError as error:
                raise Invalid(f"not a form: {error}") from error
        return True

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise Invalid(f"more than {MAX_PARTS} parts", code="too_large", hint="send them in several requests")
        self._headers = {}

    def _on_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        self._headers[self._field.lower()] = self._value
        self._field = self._value = b""

    def _end_headers(self) -> None:
        disposition = self._headers.get(b"content-disposition")
        if disposition is None:
            raise Invalid("a part of the form without a Content-Disposition")
        options = parse_options_header(disposition)[1]
        filename = options.get(b"filename")
        self._found.append(Part(_text(options.get(b"name", b"")), None if filename is None else _text(filename)))

    def _end(self) -> None:
        self._is_over = True


def _text(value: bytes) -> str:
    text = value.decode("utf-8", "surrogateescape")
    for escape, meant in _ESCAPED.items():
        text = text.replace(escape, meant)
    return text
