"""What a slot of changes carries: the change, where its objects lie, and the contents of those that are young."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dovecote.errors import StorageFailed
from dovecote.host.storage.change import Change, parse_change, render_change
from dovecote.host.storage.frames import PIECE_BYTES, Frame, pack, parse_table, render_pack
from dovecote.host.storage.index import Piece
from dovecote.host.storage.locations import parse_locations
from dovecote.host.storage.manifest import digest_of, order
from dovecote.host.storage.sources import Source
from dovecote.host.storage.stored import SEAL, objects_of, packed_locations, unpack_stored, unsealed

# What is written to right now is often half of something, and gone or another at the next save. In a slot it is gone
# when the slot is folded; a pack is kept for days.
YOUNG_NS = 2 * 10**9  # before the last write that the change knows of
CARRIED_BYTES = 8 << 20  # compressed, of one slot
_HEAD = struct.Struct("<I")  # length of the change, whether contents follow, and whether a seal is before the change
_WITH_CONTENTS = 1 << 31
_SEALED = 1 << 30  # not in slots of older releases
_LENGTH = _SEALED - 1


@dataclass(frozen=True)
class Payload:
    """Each object of the change is either `located` or `carried`."""

    change: Change
    located: Mapping[bytes, tuple[Piece, ...]]
    carried: Mapping[bytes, Frame]


def parted(sources: Sequence[Source]) -> tuple[list[Source], list[Source]]:
    """Those whose content belongs into packs, and the young ones, the youngest first."""
    since = max((source.changed_at_ns for source in sources), default=0) - YOUNG_NS
    old: list[Source] = []
    young: list[Source] = []
    for source in sources:
        (young if source.changed_at_ns >= since and source.size < PIECE_BYTES else old).append(source)
    young.sort(key=lambda source: -source.changed_at_ns)
    return old, young


def render_payload(change: Change, located: Mapping[bytes, tuple[Piece, ...]], carried: Sequence[Frame]) -> bytes:
    own = {digest for digest, *_ in carried}
    digests = [d for d in objects_of(sorted(change.entries, key=lambda e: order(e.path))) if d not in own]
    raw, locations = pack(render_change(change)), packed_locations(digests, located)
    seal = digest_of(raw)[:SEAL]
    if not carried:
        return b"".join([_HEAD.pack(len(raw) | _SEALED), seal, raw, locations])
    _, contents, _ = render_pack(carried)
    head = _HEAD.pack(len(raw) | _SEALED | _WITH_CONTENTS)
    return b"".join([head, seal, raw, _HEAD.pack(len(locations)), locations, contents])


def parse_payload(payload: bytes) -> Payload:
    """Raises StorageFailed `corrupt`. Nobody has looked at the contents yet."""
    first, at = _length(payload, 0)
    change, end = _change(payload, first, at)
    digests = objects_of(change.entries)
    if not first & _WITH_CONTENTS:
        return Payload(change, parse_locations(unsealed(payload[end:]), digests), {})
    length, at = _length(payload, end)
    contents = payload[at + length :]
    carried = {
        row.digest: (row.digest, row.number, contents[row.offset : row.offset + row.stored], row.raw)
        for row in parse_table(contents)
    }
    located = [digest for digest in digests if digest not in carried]
    return Payload(change, parse_locations(unsealed(payload[at : at + length]), located), carried)


def _change(payload: bytes, first: int, at: int) -> tuple[Change, int]:
    """The change, and where it ends."""
    seal = payload[at : at + SEAL] if first & _SEALED else None
    at += len(seal or b"")
    raw = payload[at : at + (first & _LENGTH)]
    if seal is not None and digest_of(raw)[:SEAL] != seal:
        raise StorageFailed("a slot of changes is not what was written", code="corrupt")
    return parse_change(unpack_stored(raw)), at + len(raw)


def _length(payload: bytes, at: int) -> tuple[int, int]:
    """A length, and where what has it begins."""
    if len(payload) < at + _HEAD.size:
        raise StorageFailed("a slot of changes that is cut short", code="corrupt")
    (length,) = _HEAD.unpack_from(payload, at)
    return length, at + _HEAD.size
