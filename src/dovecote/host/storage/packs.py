"""Packs: many compressed objects in one stored object; writing them, finding them, fetching from them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from io import FileIO
from typing import Protocol

from blake3 import blake3

from dovecote.errors import Conflict, NotFound, StorageFailed
from dovecote.host.storage.bucket import Bucket
from dovecote.host.storage.condemned import Standing, State
from dovecote.host.storage.frames import PIECE_BYTES, Frame, corrupt, pack, render_pack, unpack
from dovecote.host.storage.index import Index, Piece
from dovecote.host.storage.objects import CHUNK, ObjectCache
from dovecote.host.storage.runs import Located, Run, in_order, runs_of, unpack_run
from dovecote.host.storage.sources import SMALL, Content, Source, batched_sources, open_source, read_ahead
from dovecote.host.storage.threads import ASKERS, in_threads

PACK_BYTES = 32 << 20  # a pack is closed when it holds so much, so it ends below this plus one piece
LARGE_FRAME = 4 << 20  # a frame of so much is a pack of its own, so that it waits for no other in memory


class Sink(Protocol):
    """Where fetched objects go."""

    def put_all(self, objects: Iterable[tuple[bytes, memoryview]]) -> None: ...

    def put_pieces(self, digest: bytes, pieces: Iterable[bytes]) -> None: ...

    def missing(self, digests: Iterable[bytes]) -> list[bytes]: ...


class Packs:
    """Where the content of trees lies in one store. Lives as long as the host; safe from many threads."""

    def __init__(self, bucket: Bucket, index: Index, cache: ObjectCache, standing: Standing | None = None) -> None:
        self.bucket, self.index, self.cache = bucket, index, cache
        self.standing = standing or Standing(bucket)
        self._confirmed: set[str] = set()

    def locate(self, digests: Iterable[bytes]) -> dict[bytes, tuple[Piece, ...]]:
        """Where the index says they are. Each pack is looked at once a process, as a store can be rolled back."""
        located = self.index.locate(digests)
        gone = {p for p in {piece.pack for pieces in located.values() for piece in pieces} if not self._is_there(p)}
        return {d: pieces for d, pieces in located.items() if not any(p.pack in gone for p in pieces)}

    def reusable(self, digests: Iterable[bytes]) -> dict[bytes, tuple[Piece, ...]]:
        """The same for a save, which may refer to them: what is condemned does not count."""
        located = self.index.locate(digests)
        bad = set()
        for name in {piece.pack for pieces in located.values() for piece in pieces}:
            state = self.standing.of(name)
            if state is State.ABSENT:
                self.index.forget_pack(name)
            if state is not State.THERE:
                bad.add(name)
        return {d: pieces for d, pieces in located.items() if not any(p.pack in bad for p in pieces)}

    def _is_there(self, pack: str) -> bool:
        if pack not in self._confirmed:
            try:
                self.bucket.size(pack)
            except NotFound:
                self.index.forget_pack(pack)
                return False
            self._confirmed.add(pack)
        return True

    def confirm(self, pack: str) -> None:
        self._confirmed.add(pack)
        self.standing.note(pack)

    def fetch(self, located: Located, into: Sink | None = None) -> None:
        """Brings objects into the cache, or elsewhere, each checked by its hash; `in_order` takes fewest requests.

        Raises StorageFailed `corrupt`.
        """
        to = into or self.cache
        large = [partial(self._fetch_large, to, each) for each in located.items() if len(each[1]) > 1]
        in_threads(_call, [*large, *(partial(self._fetch_run, to, run) for run in runs_of(located))], ASKERS)
        self.cache.note_checked(located)

    def _fetch_run(self, to: Sink, run: Run) -> None:
        to.put_all(unpack_run(run, self._read(run.pack, run.start, run.end - run.start)))

    def _fetch_large(self, to: Sink, wanted: tuple[bytes, tuple[Piece, ...]]) -> None:
        digest, pieces = wanted
        to.put_pieces(digest, self._pieces(digest, pieces))

    def _pieces(self, digest: bytes, pieces: tuple[Piece, ...]) -> Iterator[bytes]:
        hasher = blake3()
        for piece in pieces:
            raw = unpack(self._read(piece.pack, piece.offset, piece.stored), piece.raw)
            hasher.update(raw)
            yield raw
        if hasher.digest() != digest:
            raise corrupt(f"object {digest.hex()} in {pieces[0].pack} has other content")

    def _read(self, pack: str, start: int, length: int) -> bytes:
        try:
            return self.bucket.get_range(pack, start, length)
        except NotFound as error:
            raise corrupt(f"{pack} is missing or too short") from error


class PackWriter:
    """One save: takes files in, packs what the store does not have, and knows in the end where everything lies.

    Unless it `keeps` them, small files are not put into the cache on the way.
    """

    def __init__(self, packs: Packs, *, keeps: bool = True) -> None:
        self._packs = packs
        self._keeps = keeps
        self.time = packs.standing.begin()
        self._lock = threading.Lock()
        self._large = threading.Lock()
        self._claimed: set[bytes] = set()
        self._open: list[Frame] = []
        self._open_bytes = 0
        self._written: dict[bytes, dict[int, Piece]] = {}
        self.located: dict[bytes, tuple[Piece, ...]] = {}
        self.carried: list[Frame] = []
        self.added_bytes = 0

    def absorb(self, sources: Sequence[Source]) -> dict[bytes, Content]:
        """Reads each file once or twice, keeps it in the cache, and packs it if it is new. Call `flush` in the end."""
        small = batched_sources(source for source in sources if source.size <= SMALL)
        large = [source for source in sources if source.size > SMALL]
        result: dict[bytes, Content] = {}
        for batch in in_threads(self._absorb_small, small):
            result.update(batch)
        for source, content in zip(large, in_threads(self._absorb_large, large), strict=True):
            result[source.key] = content
        return result

    def _absorb_small(self, batch: list[Source]) -> dict[bytes, Content]:
        result: dict[bytes, Content] = {}
        fresh: dict[bytes, bytes] = {}
        for source, data in read_ahead(batch):
            if len(data) > SMALL:
                result[source.key] = self._absorb_large(source)
                continue
            digest = blake3(data).digest() if data else b""
            result[source.key] = Content(digest, len(data))
            if data:
                fresh[digest] = data
        for digest in self._packs.cache.missing(fresh) if self._keeps else ():
            try:
                self._packs.cache.put(digest, fresh[digest])
            except StorageFailed as error:
                if error.code != "disk_full":
                    raise
                self._keeps = False  # a save needs no cache, only whoever mounts it next
                break
        for digest in self._unstored(fresh):
            self._add(digest, 0, pack(fresh[digest]), len(fresh[digest]))
        return result

    def carry(self, sources: Iterable[Source], *, most: int) -> dict[bytes, Content]:
        """As `absorb`, for files of less than a piece that nobody writes to. The first of what is new go to `carried`,
        up to `most` compressed bytes, instead of a pack: whoever has them stored knows how long they are needed."""
        result: dict[bytes, Content] = {}
        room = most
        for batch in batched_sources(sources):
            fresh: dict[bytes, bytes] = {}
            for source, data in read_ahead(batch, most=PIECE_BYTES):
                if len(data) >= PIECE_BYTES:
                    result[source.key] = self._absorb_large(source)
                    continue
                digest = blake3(data).digest() if data else b""
                result[source.key] = Content(digest, len(data))
                fresh[digest] = data
            fresh.pop(b"", None)
            for digest in self._unstored(fresh):
                frame, raw = pack(fresh[digest]), len(fresh[digest])
                if len(frame) <= room:
                    self.carried.append((digest, 0, frame, raw))
                    room -= len(frame)
                else:
                    self._add(digest, 0, frame, raw)
        return result

    def absorb_carried(self, carried: Mapping[bytes, Frame]) -> None:
        """Packs what somebody carried, each checked by its hash, if the store does not have it."""
        for digest in self._unstored(carried):
            _, _, frame, raw = carried[digest]
            if blake3(unpack(frame, raw)).digest() != digest:
                raise corrupt(f"object {digest.hex()} in a slot has other content")
            self._add(digest, 0, frame, raw)

    def _absorb_large(self, source: Source) -> Content:
        with open_source(source.path) as file:
            hasher = blake3()
            while chunk := file.read(CHUNK):
                hasher.update(chunk)
            digest, size = hasher.digest(), file.tell()
            if not size:
                return Content(b"", 0)
            if not self._packs.cache.missing([digest]):
                self._store_cached(digest)
                return Content(digest, size)
            if self._keeps and (kept := self._keep(file)):
                self._store_cached(kept.digest)
                return kept
            return self._absorb_as_it_is(file, digest)

    def _keep(self, file: FileIO) -> Content | None:
        """Brings it into the cache, if that has room. This reading is the one that counts, should it have changed."""
        file.seek(0)
        hasher, size = blake3(), 0
        try:
            with self._packs.cache.writer() as part:
                while chunk := file.read(CHUNK):
                    hasher.update(chunk)
                    part.write(chunk)
                    size += len(chunk)
                part.keep(hasher.digest())
        except StorageFailed as error:
            if error.code != "disk_full":
                raise
            self._keeps = False
            return None
        return Content(hasher.digest(), size)

    def _absorb_as_it_is(self, file: FileIO, digest: bytes) -> Content:
        """Needs no room on this host. The whole save fails when the file has changed since its digest was known."""
        file.seek(0)
        hasher = blake3()
        if self._unstored([digest]):
            self._add_pieces(file, digest, seen=hasher.update)
        else:
            while chunk := file.read(CHUNK):
                hasher.update(chunk)
        if hasher.digest() != digest:
            raise StorageFailed("a file changed while it was saved", code="read_failed", hint="save again")
        return Content(digest, file.tell())

    def absorb_cached(self, digests: Iterable[bytes]) -> None:
        """Finds or stores what older trees name. Raises StorageFailed `corrupt` when it is nowhere."""
        unknown = self._unstored(digests)
        lost = self._packs.cache.missing(unknown)
        if lost:
            # What is condemned can be read still, and is stored again under another name.
            with suppress(StorageFailed):
                self._packs.fetch(in_order(self._packs.index.locate(lost)))
            lost = self._packs.cache.missing(lost)
        if lost:
            raise corrupt(f"object {lost[0].hex()} is neither in the store nor on this host")
        in_threads(self._store_claimed, unknown)

    def _store_cached(self, digest: bytes) -> None:
        for unstored in self._unstored([digest]):
            self._store_claimed(unstored)

    def _store_claimed(self, digest: bytes) -> None:
        # From the cache, where it cannot change, in pieces.
        with open(self._packs.cache.path(digest), "rb", buffering=0) as file:
            self._add_pieces(file, digest)

    def _add_pieces(self, file: FileIO, digest: bytes, *, seen: Callable[[bytes], object] = lambda _: None) -> None:
        """Of large files one piece is in memory at a time, whatever the number of threads, and no longer than it takes
        to compress it."""
        is_large = os.fstat(file.fileno()).st_size > SMALL
        number = 0
        while True:
            with self._large if is_large else nullcontext():
                piece = file.read(PIECE_BYTES)
                if not piece:
                    return
                seen(piece)
                frame, raw = pack(piece), len(piece)
                del piece
                self._add(digest, number, frame, raw)
            del frame
            number += 1

    def _unstored(self, digests: Iterable[bytes]) -> list[bytes]:
        """Those that the store does not have and that no other thread of this save is storing."""
        with self._lock:
            mine = [d for d in dict.fromkeys(digests) if d not in self._claimed]
            self._claimed.update(mine)
        known = self._packs.reusable(mine)
        with self._lock:
            self.located.update(known)
        return [d for d in mine if d not in known]

    def _add(self, digest: bytes, number: int, frame: bytes, raw: int) -> None:
        if len(frame) >= LARGE_FRAME:
            self._upload([(digest, number, frame, raw)])
            return
        with self._lock:
            self._open.append((digest, number, frame, raw))
            self._open_bytes += len(frame)
            if self._open_bytes < PACK_BYTES:
                return
            full, self._open, self._open_bytes = self._open, [], 0
        self._upload(full)

    def _upload(self, rows: list[Frame]) -> None:
        name, data, trailer = render_pack(rows)
        with suppress(Conflict):
            self._packs.bucket.put_new(name, data)
        self._packs.confirm(name)
        with self._lock:
            self.added_bytes += len(data)
            for row in trailer:
                piece = Piece(name, row.offset, row.stored, row.raw)
                self._written.setdefault(row.digest, {})[row.number] = piece

    def flush(self) -> None:
        """Everything absorbed is durable in the store when it returns, and the index knows it."""
        with self._lock:
            rest, self._open, self._open_bytes = self._open, [], 0
        if rest:
            self._upload(rest)
        written = {d: tuple(pieces[n] for n in sorted(pieces)) for d, pieces in self._written.items()}
        self._packs.index.add(written)
        self._packs.cache.note_checked(written)
        self.located.update(written)
        self._written.clear()


def _call(act: Callable[[], None]) -> None:
    act()
