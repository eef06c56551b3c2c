"""What the store holds of a tree, read and checked: its root, the manifests of its parts, the locations of objects."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import zstandard

from dovecote.errors import Invalid, NotFound, StorageFailed
from dovecote.host.storage.bucket import Bucket
from dovecote.host.storage.condemned import unsalted
from dovecote.host.storage.frames import pack
from dovecote.host.storage.index import Piece
from dovecote.host.storage.locations import parse_locations, parse_pieces, render_locations
from dovecote.host.storage.manifest import MAX_RAW, Entry, Part, Root, digest_of, parse_part, parse_root
from dovecote.host.storage.times import parse_times

T = TypeVar("T")

SEAL = 16  # bytes of a digest


def stored_name(kind: str, digest: str) -> str:
    """Of `trees`, `manifests`, `times` and `locations`. Raises Invalid."""
    return f"{kind}/{binary(digest).hex()[:2]}/{digest[2:]}"


def digest_in(name: str) -> str:
    """The digest that a stored name was made of."""
    _, first, rest = name.split("/")
    return first + rest


def binary(digest: str) -> bytes:
    try:
        data = bytes.fromhex(digest)
    except ValueError:
        data = b""
    if len(data) != 32 or data.hex() != digest:
        raise Invalid(f"not the digest of a tree: {digest[:80]!r}", code="malformed_id")
    return data


def objects_of(entries: Iterable[Entry]) -> list[bytes]:
    """Digests of the files that have content, each once, in the order of the entries."""
    return list(dict.fromkeys(e.digest for e in entries if e.digest))


def read_root(bucket: Bucket, digest: str) -> Root:
    return parse_root(read_stored(bucket, "trees", binary(digest)))


def read_part(bucket: Bucket, part: Part) -> list[Entry]:
    times = read_stored(bucket, "times", part.times) if part.times else b""
    return parse_stored(part, read_stored(bucket, "manifests", part.digest), times)


def parse_stored(part: Part, raw: bytes, times: bytes) -> list[Entry]:
    """Of a manifest and, where they are apart, the times of its entries. Raises StorageFailed `corrupt`."""
    entries = parse_part(part.path, raw, parse_times(times, part.entries) if part.times else ())
    if len(entries) != part.entries:
        raise StorageFailed("a manifest has another length than its root says", code="corrupt")
    return entries


def read_parts(bucket: Bucket, root: Root) -> Iterator[tuple[bytes, str, list[Entry]]]:
    for part in root.parts:
        yield part.path, part.digest.hex(), read_part(bucket, part)


def read_locations(bucket: Bucket, part: str, entries: Sequence[Entry]) -> dict[bytes, tuple[Piece, ...]]:
    return read_located(bucket, part, objects_of(entries))


def read_located(bucket: Bucket, part: str, digests: Sequence[bytes]) -> dict[bytes, tuple[Piece, ...]]:
    name = stored_name("locations", part)
    packed = or_corrupt(name, lambda: bucket.get(name))
    return parse_locations(unsealed(packed), digests)


def of_other_size(entries: Sequence[Entry], located: Mapping[bytes, tuple[Piece, ...]]) -> list[Entry]:
    """Those of which less or more lies there than they have."""
    sizes = {digest: sum(piece.raw for piece in pieces) for digest, pieces in located.items()}
    return [entry for entry in entries if sizes.get(entry.digest, entry.size) != entry.size]


def pieces_of(bucket: Bucket, part: str) -> list[Piece]:
    """Where the contents of a manifest lie. Raises NotFound, StorageFailed `corrupt`."""
    return parse_pieces(unsealed(bucket.get(stored_name("locations", part))))


def manifest_objects(bucket: Bucket, part: str) -> list[bytes]:
    """What the rows of its locations are of, wherever in a tree it has its place. Raises StorageFailed `corrupt`."""
    return objects_of(parse_part(b"", read_stored(bucket, "manifests", binary(part))))


def packed_locations(digests: Sequence[bytes], located: Mapping[bytes, tuple[Piece, ...]]) -> bytes:
    """As it is stored. No name says what it must be, so it carries a digest of itself: collecting relies on it."""
    frame = pack(render_locations(digests, located))
    return digest_of(frame)[:SEAL] + frame


def unsealed(packed: bytes) -> bytes:
    if digest_of(packed[SEAL:])[:SEAL] != packed[:SEAL]:
        raise StorageFailed("a record of locations is not what was written", code="corrupt")
    return unpack_stored(packed[SEAL:])


def or_corrupt(name: str, call: Callable[[], T]) -> T:
    try:
        return call()
    except NotFound as error:
        raise StorageFailed(f"{name} is missing", code="corrupt") from error


def read_stored(bucket: Bucket, kind: str, digest: bytes) -> bytes:
    """What it was named after. Raises StorageFailed `corrupt`."""
    name = stored_name(kind, digest.hex())
    raw = unpack_stored(or_corrupt(name, lambda: bucket.get(name)))
    if digest_of(raw) != digest:
        raise StorageFailed(f"{name} has other content than its name says", code="corrupt")
    return unsalted(raw)


@contextmanager
def naming(digest: str) -> Iterator[None]:
    """Says which tree is corrupt."""
    try:
        yield
    except StorageFailed as error:
        if error.code != "corrupt" or digest in error.message:
            raise
        raise StorageFailed(
            f"tree {digest} is damaged: {error.message}",
            code="corrupt",
            hint="go back to the save before it, or restore the object store from its backup",
        ) from error


def unpack_stored(packed: bytes) -> bytes:
    try:
        if not 0 < zstandard.frame_content_size(packed) <= MAX_RAW:
            raise StorageFailed("a manifest of an impossible size", code="corrupt")
        return zstandard.ZstdDecompressor().decompress(packed, max_output_size=MAX_RAW)
    except zstandard.ZstdError as error:
        raise StorageFailed(f"a manifest cannot be unpacked: {error}", code="corrupt") from error
