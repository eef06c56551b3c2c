"""Writes trees into the store: contents, then what names them, the root manifest last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

from dovecote.errors import Conflict
from dovecote.host.storage.bucket import Bucket
from dovecote.host.storage.condemned import Standing, State, salted
from dovecote.host.storage.fold import Plan
from dovecote.host.storage.frames import Frame, pack
from dovecote.host.storage.index import Piece
from dovecote.host.storage.manifest import (
    TIMES_APART,
    Entry,
    Kind,
    Part,
    Root,
    digest_of,
    render_part,
    render_root,
    split,
)
from dovecote.host.storage.packs import Packs, PackWriter
from dovecote.host.storage.stored import (
    naming,
    objects_of,
    packed_locations,
    read_locations,
    read_parts,
    read_root,
    stored_name,
)
from dovecote.host.storage.times import render_times


class TreeWriter:
    """A crash at any point leaves garbage in the store at most. Safe from many threads."""

    def __init__(self, bucket: Bucket, packs: Packs, standing: Standing) -> None:
        self._bucket = bucket
        self._packs = packs
        self._standing = standing

    def write(
        self, plan: Plan, template: bytes, *, like: Sequence[str], carried: Mapping[bytes, Frame]
    ) -> tuple[str, Root, int]:
        """Its digest, its root and the bytes that came to the store. Call in a use of the cache.

        Contents are in the plan's sources, in the cache, in the trees `like` it, or `carried`.
        """
        writer = PackWriter(self._packs)
        entries = plan.complete(writer.absorb(plan.sources))
        parts = split(entries)
        named: list[Part] = []
        new: list[tuple[Part, list[Entry], bytes]] = []
        below: list[tuple[str, bytes, bytes]] = []  # that the root will name
        for path, some in parts:
            part, raw, times = self._part(path, some)
            named.append(part)
            if raw:
                new.append((part, some, raw))
            if times:
                below.append(("times", part.times, times))
        wanted = objects_of(e for _, some, _ in new for e in some)
        writer.absorb_carried({digest: carried[digest] for digest in wanted if digest in carried})
        wanted = [digest for digest in wanted if digest not in carried]
        for tree in like:
            self._learn(wanted, tree)
        writer.absorb_cached(wanted)
        writer.flush()
        added_bytes = writer.added_bytes
        writer.time.check()
        for part, some, _ in new:
            added_bytes += self._put_locations(part, some, writer.located)
        for kind, name, raw in (*below, *(("manifests", part.digest, raw) for part, _, raw in new)):
            added_bytes += self._put_manifest(kind, name.hex(), raw)
        files, total_bytes = _count(entries)
        root = Root(template, files, total_bytes, tuple(named))
        raw, _ = self._named("trees", render_root(root))
        digest = digest_of(raw).hex()
        writer.time.check()
        added_bytes += self._put_manifest("trees", digest, raw)
        return digest, root, added_bytes

    def _part(self, path: bytes, entries: Sequence[Entry]) -> tuple[Part, bytes, bytes]:
        """What names it, and what of it is not stored yet: its manifest, its times."""
        is_large = len(entries) >= TIMES_APART
        raw, is_there = self._named("manifests", render_part(path, entries, with_times=not is_large))
        times, are_there = b"", True
        if is_large:
            times, are_there = self._named("times", render_times([e.mtime_ns for e in entries]))
        part = Part(path, digest_of(raw), len(entries), digest_of(times) if times else b"")
        return part, b"" if is_there else raw, b"" if are_there else times

    def _learn(self, digests: Sequence[bytes], tree: str) -> None:
        """What the index does not know about files kept from an older tree, the store's hints do."""
        unknown = set(digests) - self._packs.reusable(digests).keys()
        if not unknown:
            return
        with naming(tree):
            for _, part, entries in read_parts(self._bucket, read_root(self._bucket, tree)):
                if not unknown.isdisjoint(objects_of(entries)):
                    self._packs.index.add(read_locations(self._bucket, part, entries))

    def _named(self, kind: str, raw: bytes) -> tuple[bytes, bool]:
        """The bytes to store so that their name may be referred to, and whether they are stored already."""
        name = stored_name(kind, digest_of(raw).hex())
        state = self._standing.of(name)
        if state is State.CONDEMNED:
            return salted(raw), False
        return raw, state is State.THERE

    def _put_locations(self, part: Part, entries: Sequence[Entry], located: dict[bytes, tuple[Piece, ...]]) -> int:
        packed = packed_locations(objects_of(entries), located)
        self._bucket.put(stored_name("locations", part.digest.hex()), packed)
        return len(packed)

    def _put_manifest(self, kind: str, digest: str, raw: bytes) -> int:
        packed = pack(raw)
        with suppress(Conflict):  # the same content, from another save
            self._bucket.put_new(stored_name(kind, digest), packed)
            return len(packed)
        return 0


def _count(entries: Sequence[Entry]) -> tuple[int, int]:
    files = [e for e in entries if e.kind is Kind.FILE]
    return len(files), sum(e.size for e in files if not e.link or e.link == e.path)
