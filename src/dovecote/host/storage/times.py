"""Times of a manifest's entries, apart from it: two installations of the same packages differ in nothing else."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise

from dovecote.errors import StorageFailed

# Header, the distinct times (the first, then the steps between them), and for each entry the step from the place of
# the one before among those. Numbers lie as planes, all their lowest bytes first: what is small compresses to nothing.
_HEAD = struct.Struct("<4sII")
_MAGIC = b"DVI1"
_WORD = (1 << 64) - 1
_LATEST = (1 << 63) - 1


def render_times(times: Sequence[int]) -> bytes:
    """Nanoseconds, as 64 bits with a sign, in the order of the entries. The same times always give the same bytes."""
    distinct = sorted(set(times))
    place = {time: number for number, time in enumerate(distinct)}
    places = [0, *(place[time] for time in times)]
    steps = [distinct[0] & _WORD, *(b - a for a, b in pairwise(distinct))] if distinct else []
    moves = [(b - a) << 1 ^ (b - a) >> 31 for a, b in pairwise(places)]
    head = _HEAD.pack(_MAGIC, len(times), len(distinct))
    return head + _planes(f"<{len(steps)}Q", steps, 8) + _planes(f"<{len(moves)}I", moves, 4)


def parse_times(raw: bytes, count: int) -> list[int]:
    """Of `count` entries. Raises StorageFailed `corrupt`."""
    try:
        magic, there, distinct = _HEAD.unpack_from(raw)
        moves_at = _HEAD.size + 8 * distinct
        if magic != _MAGIC or there != count or distinct > count or len(raw) != moves_at + 4 * count:
            raise ValueError("bad header")
        steps = list(_numbers(f"<{distinct}Q", raw[_HEAD.size : moves_at], 8))
        moves = _numbers(f"<{count}I", raw[moves_at:], 4)
        if steps and steps[0] > _LATEST:  # before 1970
            steps[0] -= _WORD + 1
        known = list(accumulate(steps))
        places = list(accumulate((move >> 1) ^ -(move & 1) for move in moves))
        if max(known, default=0) > _LATEST or min(places, default=0) < 0:
            raise ValueError("a time outside")
        return [known[place] for place in places]
    except (struct.error, ValueError, IndexError) as error:
        raise StorageFailed(f"times of a tree that cannot be read: {error}", code="corrupt") from error


def _planes(shape: str, numbers: Iterable[int], width: int) -> bytes:
    raw = struct.pack(shape, *numbers)
    return b"".join(raw[byte::width] for byte in range(width))


def _numbers(shape: str, planes: bytes, width: int) -> tuple[int, ...]:
    raw = bytearray(len(planes))
    each = len(planes) // width
    for byte in range(width):
        raw[byte::width] = planes[byte * each : (byte + 1) * each]
    return struct.unpack(shape, raw)
