"""Runs: neighbouring frames of one pack that are worth one request, and what comes out of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from blake3 import blake3

from dovecote.host.storage.frames import corrupt, unpack_all
from dovecote.host.storage.index import Piece

RUN_BYTES = 2 << 20  # of one request, so that asking, unpacking and writing overlap
RUN_RAW = 8 << 20  # unpacked, which is what is held in memory
GAP = 256 << 10  # unwanted bytes between two wanted ones that are cheaper to read than to ask twice

Located = Mapping[bytes, tuple[Piece, ...]]  # digest -> where it lies


class Run(NamedTuple):
    pack: str
    start: int
    end: int
    wanted: list[tuple[bytes, Piece]]


def in_order(located: Located) -> dict[bytes, tuple[Piece, ...]]:
    """As they lie in their packs: what is fetched together comes one after the other."""
    return dict(sorted(located.items(), key=lambda item: item[1][0]))


def runs_of(located: Located) -> list[Run]:
    """Of the objects of one piece each. There are fewest where `located` is `in_order`."""
    runs: list[Run] = []
    pack, start, end, raw = "", 0, 0, 0
    wanted: list[tuple[bytes, Piece]] = []
    for digest, pieces in located.items():
        piece = pieces[0]
        if len(pieces) > 1:
            continue
        is_near = piece.pack == pack and 0 <= piece.offset - end <= GAP
        is_over = piece.offset + piece.stored - start > RUN_BYTES or raw + piece.raw > RUN_RAW
        if wanted and (is_over or not is_near):
            runs.append(Run(pack, start, end, wanted))
            wanted = []
        if not wanted:
            pack, start, end, raw = piece.pack, piece.offset, piece.offset, 0
        wanted.append((digest, piece))
        end = piece.offset + piece.stored
        raw += piece.raw
    if wanted:
        runs.append(Run(pack, start, end, wanted))
    return runs


def unpack_run(run: Run, data: bytes) -> Iterable[tuple[bytes, memoryview]]:
    """Its objects, each checked by its hash. `data` is what the pack has from `start` to `end`.

    Raises StorageFailed `corrupt`.
    """
    frames = [(piece.offset - run.start, piece.stored, piece.raw) for _, piece in run.wanted]
    checked = []
    for (digest, _), raw in zip(run.wanted, unpack_all(data, frames), strict=True):
        if blake3(raw).digest() != digest:
            raise corrupt(f"object {digest.hex()} in {run.pack} has other content")
        checked.append((digest, raw))
    return checked
