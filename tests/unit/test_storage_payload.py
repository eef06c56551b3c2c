"""What a slot of changes carries: half of a file that is being written costs the store nothing once it is folded."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from dovecote.errors import StorageFailed
from dovecote.host.storage.bucket import Bucket, open_bucket
from dovecote.host.storage.change import Change
from dovecote.host.storage.frames import PIECE_BYTES, corrupt, parse_table, unpack
from dovecote.host.storage.index import Piece
from dovecote.host.storage.manifest import Entry, Kind, digest_of
from dovecote.host.storage.packs import PackWriter
from dovecote.host.storage.payload import YOUNG_NS, parse_payload, parted, render_payload
from dovecote.host.storage.sources import Source
from dovecote.host.storage.stored import SEAL
from dovecote.host.storage.trees import Trees
from tests.unit.test_storage_objects import packs_at, source

NOW = 1_700_000_000 * 10**9
ROOT = Entry(b"", Kind.DIR, 0o755)


def entry(name: bytes, data: bytes) -> Entry:
    return Entry(name, Kind.FILE, 0o644, size=len(data), digest=digest_of(data) if data else b"")


def packed(bucket: Bucket) -> set[bytes]:
    """Digests of all that lies in packs."""
    return {row.digest for pack in bucket.list("packs") for row in parse_table(bucket.get(pack.name))}


class World:
    """An empty delta, and a host that saves changes on top of it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.bucket = open_bucket("memory:")
        self.trees = Trees(self.bucket, directory / "cache")
        self.packs = packs_at(directory / "host", self.bucket)
        for name in ("root", "upper"):
            (directory / name).mkdir()
        template = self.trees.save_directory(directory / "root").digest
        self.tree = self.trees.save_delta(directory / "upper", directory / "upper", id_base=0, template=template).digest

    def payload(self, old: dict[bytes, bytes], young: dict[bytes, bytes], *, most: int = 1 << 20) -> bytes:
        writer = PackWriter(self.packs, keeps=False)
        writer.absorb([source(self.directory, name.decode(), data) for name, data in old.items()])
        writer.carry([source(self.directory, name.decode(), data) for name, data in young.items()], most=most)
        writer.flush()
        entries = [ROOT, *(entry(name, data) for name, data in {**old, **young}.items())]
        return render_payload(Change(frozenset(), tuple(entries)), writer.located, writer.carried)

    def seen_elsewhere(self, tree: str) -> dict[bytes, bytes]:
        """By a host that has nothing but the store."""
        other = Trees(self.bucket, self.directory / "elsewhere")
        try:
            with other.contents(tree) as entries:
                return {e.path: other.object_file(e.digest).read_bytes() for e in entries if e.digest}
        finally:
            other.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    try:
        yield made
    finally:
        made.trees.close()
        made.packs.index.close()


def test_what_was_written_last_is_young_and_the_youngest_comes_first() -> None:
    sources = [
        Source(b"long ago", b"", 1, NOW - YOUNG_NS - 1),
        Source(b"just young", b"", 1, NOW - YOUNG_NS),
        Source(b"newest", b"", 1, NOW),
        Source(b"large", b"", PIECE_BYTES, NOW),
    ]
    old, young = parted(sources)
    assert [each.key for each in old] == [b"long ago", b"large"]
    assert [each.key for each in young] == [b"newest", b"just young"]
    assert parted([]) == ([], [])


def test_a_half_written_file_is_in_no_pack_once_its_slot_is_folded(world: World) -> None:
    whole = os.urandom(50_000)
    half = whole[:20_000]
    middle = world.payload({b"old": b"old" * 900}, {b"new": half})
    assert parse_payload(middle).carried.keys() == {digest_of(half)}
    end = world.payload({}, {b"new": whole})
    assert digest_of(half) not in packed(world.bucket)
    saved = world.trees.fold(world.tree, [middle, end])
    world.trees.verify_stored(saved.digest)
    assert world.seen_elsewhere(saved.digest) == {b"old": b"old" * 900, b"new": whole}
    assert digest_of(half) not in packed(world.bucket)
    # Until then it is what the session would come back with.
    assert world.seen_elsewhere(world.trees.fold(world.tree, [middle]).digest)[b"new"] == half


def test_what_the_store_has_is_not_carried(world: World) -> None:
    world.payload({b"a": b"same" * 100}, {})
    carries = parse_payload(world.payload({}, {b"b": b"same" * 100}))
    assert not carries.carried
    assert carries.located.keys() == {digest_of(b"same" * 100)}


def test_what_has_no_room_in_a_slot_goes_to_a_pack(world: World) -> None:
    young = {b"a": os.urandom(3000), b"b": os.urandom(30_000), b"c": os.urandom(3000), b"empty": b""}
    payload = world.payload({}, young, most=10_000)
    assert parse_payload(payload).carried.keys() == {digest_of(young[b"a"]), digest_of(young[b"c"])}
    assert len(payload) < 12_000
    filled = {name: data for name, data in young.items() if data}
    assert world.seen_elsewhere(world.trees.fold(world.tree, [payload]).digest) == filled


Told = tuple[Change, dict[bytes, tuple[Piece, ...]], dict[bytes, bytes]]


def told(payload: bytes) -> Told:
    """What whoever folds it goes by."""
    carries = parse_payload(payload)
    contents = {digest: unpack(frame, raw) for digest, (_, _, frame, raw) in carries.carried.items()}
    if any(digest_of(content) != digest for digest, content in contents.items()):
        raise corrupt("other content")
    return carries.change, dict(carries.located), contents


def flipped(payload: bytes, at: int, bit: int) -> bytes:
    return payload[:at] + bytes([payload[at] ^ bit]) + payload[at + 1 :]


def is_taken(payload: bytes, whole: Told) -> bool:
    """False where it is refused; as another one it must not be taken."""
    try:
        found = told(payload)
    except StorageFailed:
        return False
    assert found == whole
    return True


@pytest.mark.parametrize("young", [{}, {b"new": bytes(range(40))}])
def test_a_payload_that_is_damaged_is_refused(world: World, young: dict[bytes, bytes]) -> None:
    """Wherever it is cut, and whichever byte is another; but for those that only tell packs apart."""
    payload = world.payload({b"old": b"old" * 900}, young)
    for length in range(len(payload)):
        with pytest.raises(StorageFailed) as caught:
            parse_payload(payload[:length])
        assert caught.value.code == "corrupt"
    whole = told(payload)
    passed = {at for at in range(len(payload)) for bit in (1, 64, 128) if is_taken(flipped(payload, at, bit), whole)}
    assert len(passed) <= (16 + 4 if young else 0)  # the random bytes, and the number of a piece


def test_contents_in_a_payload_are_checked_when_they_are_packed(world: World) -> None:
    payload = world.payload({}, {b"new": os.urandom(500)})
    with pytest.raises(StorageFailed) as caught:
        world.trees.fold(world.tree, [flipped(payload, len(payload) - 400, 1)])
    assert caught.value.code == "corrupt"


def test_a_payload_of_an_older_release_is_read(world: World) -> None:
    """Its change has no seal."""
    payload = world.payload({b"old": b"old" * 900}, {b"new": os.urandom(500)})
    (head,) = struct.unpack_from("<I", payload)
    older = struct.pack("<I", head & ~(1 << 30)) + payload[4 + SEAL :]
    assert told(older) == told(payload)
