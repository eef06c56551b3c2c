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
from dovecote.host.storage.manifest import order
from dovecote.host.storage.sources import Source
from dovecote.host.storage.stored import objects_of, packed_locations, unpack_stored, unsealed

# What is written to right now is often half of something, and gone or another at the next save. In a slot it is gone
# when the slot is folded; a pack is kept for days.
YOUNG_NS = 2 * 10**9  # before the last write that the change knows of
CARRIED_BYTES = 8 << 20  # compressed, of one slot
_HEAD = struct.Struct("<I")  # length of the change, and whether contents follow
_WITH_CONTENTS = 1 << 31


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
    if not carried:
        return _HEAD.pack(len(raw)) + raw + locations
    _, contents, _ = render_pack(carried)
    return b"".join([_HEAD.pack(len(raw) | _WITH_CONTENTS), raw, _HEAD.pack(len(locations)), locations, contents])


def parse_payload(payload: bytes) -> Payload:
    """Raises StorageFailed `corrupt`. Nobody has looked at the contents yet."""
    first, at = _length(payload, 0)
    end = at + (first & ~_WITH_CONTENTS)
    change = parse_change(unpack_stored(payload[at:end]))
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


def _length(payload: bytes, at: int) -> tuple[int, int]:
    """A length, and where what has it begins."""
    if len(payload) < at + _HEAD.size:
        raise StorageFailed("a slot of changes that is cut short", code="corrupt")
    (length,) = _HEAD.unpack_from(payload, at)
    return length, at + _HEAD.size
