"""Packs of which little is alive: what lives is copied into new ones, and locations are changed to point there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from blake3 import blake3

from dovecote.errors import NotFound, StorageFailed
from dovecote.host.storage.bucket import Bucket
from dovecote.host.storage.frames import Row, parse_table, render_pack, table_bytes, unpack
from dovecote.host.storage.index import Piece
from dovecote.host.storage.packs import PACK_BYTES
from dovecote.host.storage.stored import (
    digest_in,
    manifest_objects,
    packed_locations,
    pieces_of,
    read_located,
    stored_name,
)

log = logging.getLogger(__name__)

WORTH_BELOW = 0.5  # of a pack's bytes that live
MOST_COPIED = 1 << 30  # bytes of one run
MOST_MANIFESTS = 20_000  # whose locations one run changes
MOST_PIECES = 4_000_000  # that are remembered; a store with more is not repacked
Where = tuple[str, int]  # pack and offset


@dataclass
class _Pack:
    """What leads to a pack. `is_bound`: something does that cannot be changed, or must not be."""

    live: dict[int, int] = field(default_factory=dict)  # offset -> bytes
    manifests: set[str] = field(default_factory=set)
    is_bound: bool = False


class Repacking:
    """Is told by a collection what leads to packs, and then rewrites those that are worth it.

    In this order: the new pack is durable before any locations name it, and each record of locations is replaced as a
    whole. So whatever cuts a run off, everything that lives can be read; what is left over is garbage of the next run.
    """

    def __init__(self, bucket: Bucket, stop: Callable[[], None]) -> None:
        self._bucket = bucket
        self._stop = stop
        self._packs: dict[str, _Pack] = {}
        self._pieces = 0
        self._moved: dict[Where, Piece] = {}
        self._waiting: list[tuple[str, Row, bytes]] = []  # of which pack, and its frame
        self._waiting_bytes = 0

    def bind(self, packs: Collection[str]) -> None:
        """Something leads there that is never written again, like a slot of a log, or that is about to go."""
        for name in packs:
            self._packs.setdefault(name, _Pack()).is_bound = True

    def note(self, manifest: str) -> list[str]:
        """Reads what a living manifest points at; answers its packs. Raises NotFound, StorageFailed `corrupt`."""
        names = set()
        for piece in pieces_of(self._bucket, digest_in(manifest)):
            names.add(piece.pack)
            pack = self._packs.setdefault(piece.pack, _Pack())
            pack.manifests.add(manifest)
            if self._pieces < MOST_PIECES and piece.offset not in pack.live:
                pack.live[piece.offset] = piece.stored
                self._pieces += 1
        return sorted(names)

    def live_bytes(self, name: str) -> int:
        """What it would take if only that were in it."""
        live = self._packs[name].live
        return table_bytes(len(live)) + sum(live.values())

    def worth(self, sizes: Mapping[str, int], *, without: Collection[str]) -> list[str]:
        """Of packs that may be rewritten, those that are worth it; the one that wastes most is first.

        Not those that a manifest `without` leads to: nothing is written below a name that may be about to go.
        """
        if self._pieces >= MOST_PIECES:
            log.warning("packs are not rewritten: there are too many pieces to remember")
            return []
        waste = {}
        for name, size in sizes.items():
            pack = self._packs.get(name)
            if pack is not None and not pack.is_bound and pack.live and pack.manifests.isdisjoint(without):
                live = self.live_bytes(name)
                if live < WORTH_BELOW * size:
                    waste[name] = size - live
        chosen: list[str] = []
        manifests: set[str] = set()
        copied = 0
        for name in sorted(waste, key=lambda each: -waste[each]):
            copied += self.live_bytes(name)
            manifests |= self._packs[name].manifests
            if copied > MOST_COPIED or len(manifests) > MOST_MANIFESTS:
                break
            chosen.append(name)
        return chosen

    def rewrite(self, chosen: Collection[str]) -> list[str]:
        """Answers the packs that nothing leads to any more, as far as this run knows."""
        whole = [name for name in chosen if self._copy(name)]
        self._upload()
        failed: set[str] = set()
        for manifest in sorted({m for name in whole for m in self._packs[name].manifests}):
            try:
                self._point_elsewhere(manifest)
            except (StorageFailed, NotFound) as error:
                if error.code not in ("corrupt", "not_found"):
                    raise
                log.warning("the locations of %s stay as they are: %s", manifest, error)
                failed.add(manifest)
        return [name for name in whole if self._packs[name].manifests.isdisjoint(failed)]

    def _copy(self, name: str) -> bool:
        """False for a pack that cannot be read: it stays, for `storage check` to tell."""
        self._stop()
        try:
            data = self._bucket.get(name)
            rows = parse_table(data)
            live = self._packs[name].live
            mine = [row for row in rows if row.offset in live]
            if len(mine) != len(live) or any(live[row.offset] != row.stored for row in mine):
                raise StorageFailed("its table does not fit what points at it", code="corrupt")
            frames = [data[row.offset : row.offset + row.stored] for row in mine]
            _check(mine, frames)
        except (StorageFailed, NotFound) as error:
            if error.code not in ("corrupt", "not_found"):
                raise
            log.warning("%s is not rewritten: %s", name, error)
            return False
        for row, frame in zip(mine, frames, strict=True):
            self._waiting.append((name, row, frame))
            self._waiting_bytes += len(frame)
            if self._waiting_bytes >= PACK_BYTES:
                self._upload()
        return True

    def _upload(self) -> None:
        if not self._waiting:
            return
        self._stop()
        waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
        new, data, rows = render_pack([(row.digest, row.number, frame, row.raw) for _, row, frame in waiting])
        self._bucket.put_new(new, data)
        for (old, was, _), row in zip(waiting, rows, strict=True):
            self._moved[old, was.offset] = Piece(new, row.offset, row.stored, row.raw)

    def _point_elsewhere(self, manifest: str) -> None:
        part = digest_in(manifest)
        digests = manifest_objects(self._bucket, part)
        located = read_located(self._bucket, part, digests)
        changed = {
            digest: tuple(self._moved.get((piece.pack, piece.offset), piece) for piece in pieces)
            for digest, pieces in located.items()
        }
        if changed != located:
            self._stop()
            self._bucket.put(stored_name("locations", part), packed_locations(digests, changed))


def _check(rows: list[Row], frames: list[bytes]) -> None:
    """What is copied is what its name says, where one frame tells."""
    for row, frame in zip(rows, frames, strict=True):
        raw = unpack(frame, row.raw)
        if row.is_whole and blake3(raw).digest() != row.digest:
            raise StorageFailed("a frame has other content than its name says", code="corrupt")
