"""The format of packs: compressed frames one after the other, and a table of them at the end."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Sequence
from typing import NamedTuple

import zstandard
from blake3 import blake3

from dovecote.errors import StorageFailed

PIECE_BYTES = 16 << 20  # raw bytes in one frame; bounds memory for files of any size
_LEVEL = 3
_ROW = struct.Struct("<32sIIII")  # as Row
_END = struct.Struct("<I4s")
_PLACE = struct.Struct("<QQ")
_MAGIC = b"DVP1"
_NONCE_BYTES = 16


Frame = tuple[bytes, int, bytes, int]  # digest and piece number of an object, its compressed bytes, its raw size


class Row(NamedTuple):
    """One frame of a pack: piece `number` of an object."""

    digest: bytes
    number: int
    offset: int
    stored: int
    raw: int

    @property
    def is_whole(self) -> bool:
        """Of an object of several pieces, all but the last are as large as a piece may be."""
        return self.number == 0 and self.raw < PIECE_BYTES


def render_pack(frames: Sequence[Frame]) -> tuple[str, bytes, list[Row]]:
    """Name and bytes of a pack of frames, and its table.

    The table lets the whole index be learned again from packs alone. The random bytes before it give each pack a name
    of its own, whatever is in it: one that was condemned must never be written again.
    """
    offset = 0
    rows = []
    for digest, number, frame, raw in frames:
        rows.append(Row(digest, number, offset, len(frame), raw))
        offset += len(frame)
    table = [_ROW.pack(*row) for row in rows]
    end = _END.pack(len(rows), _MAGIC)
    data = b"".join([*(frame for _, _, frame, _ in frames), os.urandom(_NONCE_BYTES), *table, end])
    text = blake3(data).hexdigest()
    return f"packs/{text[:2]}/{text[2:]}", data, rows


def table_bytes(frames: int) -> int:
    """What a pack of so many frames has besides them."""
    return _NONCE_BYTES + frames * _ROW.size + _END.size


def parse_table(data: bytes) -> list[Row]:
    """Of a whole pack. Raises StorageFailed `corrupt`."""
    try:
        count, magic = _END.unpack_from(data, len(data) - _END.size)
        start = len(data) - _END.size - count * _ROW.size
        if magic != _MAGIC or start < _NONCE_BYTES:
            raise ValueError("bad table")
        rows = [Row(*row) for row in _ROW.iter_unpack(data[start : start + count * _ROW.size])]
        if any(row.offset + row.stored > start - _NONCE_BYTES or row.raw > PIECE_BYTES for row in rows):
            raise ValueError("a frame outside")
        return rows
    except (struct.error, ValueError) as error:
        raise corrupt(f"a pack whose table cannot be read: {error}") from error


class _Codecs(threading.local):
    """One thread's: making a context costs more than most files take."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=_LEVEL)
        self.decompressor = zstandard.ZstdDecompressor()


_codecs = _Codecs()


def pack(raw: bytes) -> bytes:
    return _codecs.compressor.compress(raw)


def unpack(frame: bytes | memoryview, raw: int) -> bytes:
    """Exactly `raw` bytes, or StorageFailed `corrupt`: a frame cannot make us use more memory than that."""
    try:
        if zstandard.frame_content_size(frame) != raw:
            raise corrupt("a compressed frame has another size than was recorded")
        return _codecs.decompressor.decompress(frame, max_output_size=raw)
    except zstandard.ZstdError as error:
        raise corrupt(f"a compressed frame cannot be read: {error}") from error


def unpack_all(data: bytes, frames: Sequence[tuple[int, int, int]]) -> list[memoryview]:
    """Many at once, other threads running meanwhile: offset in `data`, stored and raw bytes of each. As `unpack`."""
    places = b"".join(_PLACE.pack(offset, stored) for offset, stored, _ in frames)
    sizes = struct.pack(f"<{len(frames)}Q", *(raw for _, _, raw in frames))
    try:
        segments = zstandard.BufferWithSegments(data, places)
        found = _codecs.decompressor.multi_decompress_to_buffer(segments, decompressed_sizes=sizes, threads=1)
        return [memoryview(found[number]) for number in range(len(frames))]  # type: ignore[arg-type]
    except (zstandard.ZstdError, ValueError) as error:
        raise corrupt(f"a compressed frame cannot be read: {error}") from error


def corrupt(message: str) -> StorageFailed:
    return StorageFailed(message, code="corrupt", hint="restore the object store from its backup, or go back a save")
