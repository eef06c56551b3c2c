"""Where the objects of one manifest lie, as it is stored."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence

from dovecote.host.storage.frames import PIECE_BYTES, corrupt
from dovecote.host.storage.index import Piece

_PACK_NAME = re.compile(r"packs/[0-9a-f]{2}/[0-9a-f]{62}")
_LOCATIONS = struct.Struct("<4sII")
_LOCATIONS_MAGIC = b"DVL1"
_WHERE = struct.Struct("<IIII")  # pack number, offset, stored, raw
_ONE = struct.Struct("<IIIII")  # number of pieces, and the first


def render_locations(digests: Sequence[bytes], located: Mapping[bytes, tuple[Piece, ...]]) -> bytes:
    """Where the objects of one manifest lie, in the order in which it names them first."""
    names: dict[str, int] = {}
    rows = []
    for digest in digests:
        pieces = located[digest]
        rows.append(struct.pack("<I", len(pieces)))
        rows += [_WHERE.pack(names.setdefault(p.pack, len(names)), p.offset, p.stored, p.raw) for p in pieces]
    head = _LOCATIONS.pack(_LOCATIONS_MAGIC, len(names), len(digests))
    return head + b"".join(struct.pack("<H", len(n)) + n.encode() for n in names) + b"".join(rows)


def parse_pieces(raw: bytes) -> list[Piece]:
    """All that a record of locations names, of whatever. Raises StorageFailed `corrupt`."""
    try:
        _, names, at = _head(raw)
        pieces: list[Piece] = []
        while at < len(raw):
            some, at = _row(raw, at, names)
            pieces += some
        return pieces
    except (struct.error, ValueError, IndexError) as error:
        raise corrupt(f"a record of locations that cannot be read: {error}") from error


def _head(raw: bytes) -> tuple[int, list[str], int]:
    """How many objects, the names of packs, and where those end."""
    magic, name_count, count = _LOCATIONS.unpack_from(raw)
    if magic != _LOCATIONS_MAGIC:
        raise ValueError("bad header")
    return (count, *_names(raw, name_count))


def _row(raw: bytes, at: int, names: list[str]) -> tuple[tuple[Piece, ...], int]:
    """Of one object, and where it ends."""
    pieces, n, o, s, r = _ONE.unpack_from(raw, at)
    if pieces == 1 and r <= PIECE_BYTES:  # nearly all of them
        return (Piece(names[n], o, s, r),), at + _ONE.size
    end = at + 4 + pieces * _WHERE.size
    if not pieces or end > len(raw):
        raise ValueError("bad number of pieces")
    found = tuple(Piece(names[n], o, s, r) for n, o, s, r in _WHERE.iter_unpack(raw[at + 4 : end]))
    if any(piece.raw > PIECE_BYTES for piece in found):
        raise ValueError("a piece that is too large")
    return found, end


def _names(raw: bytes, count: int) -> tuple[list[str], int]:
    """The names, and where they end."""
    at = _LOCATIONS.size
    names = []
    for _ in range(count):
        (length,) = struct.unpack_from("<H", raw, at)
        name = raw[at + 2 : at + 2 + length].decode("ascii")
        if not _PACK_NAME.fullmatch(name):
            raise ValueError("bad name of a pack")
        names.append(name)
        at += 2 + length
    return names, at


def parse_locations(raw: bytes, digests: Sequence[bytes]) -> dict[bytes, tuple[Piece, ...]]:
    """Raises StorageFailed `corrupt`."""
    try:
        count, names, at = _head(raw)
        if count != len(digests):
            raise ValueError("bad header")
        located = {}
        for digest in digests:
            located[digest], at = _row(raw, at, names)
        if at != len(raw):
            raise ValueError("bytes left over")
        return located
    except (struct.error, ValueError, IndexError) as error:
        raise corrupt(f"a record of locations that cannot be read: {error}") from error
