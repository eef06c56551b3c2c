"""Contents of files inside an image: where they lie, and how they get there."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping

from dovecote.errors import StorageFailed
from dovecote.host.storage.disk import disk_errors, write_at

BLOCK = 4096
_ZEROS = memoryview(bytes(BLOCK))
_HOLE = bytes(32 * BLOCK)  # so much of nothing is left out, so that a sparse file stays cheap


def places_of(sizes: Mapping[bytes, int], *, at: int) -> tuple[dict[bytes, tuple[int, int]], int]:
    """Offset and bytes of each digest's content, in that order, from `at` on; and where they end. All whole blocks."""
    places = {}
    for digest, size in sizes.items():
        places[digest] = (at, size)
        at += -(-size // BLOCK) * BLOCK
    return places, at


class Contents:
    """Room in an image that is being written for the contents of some of its files. Safe from many threads."""

    def __init__(self, fd: int, places: Mapping[bytes, tuple[int, int]]) -> None:
        self._fd = fd
        self._places = places
        self._there: set[bytes] = set()
        self._ends = threading.Event()

    def stop(self) -> None:
        """Nobody needs them any more: whoever brings more of them is refused."""
        self._ends.set()

    def put_all(self, objects: Iterable[tuple[bytes, memoryview]]) -> None:
        """Contents that have just been hashed to their digests. Neighbours in the image are written at once."""
        pieces: list[bytes | memoryview] = []
        begin = end = 0
        done = []
        for digest, data in objects:
            at, size = self._places[digest]
            if len(data) != size:
                raise other_size(digest)
            if size >= len(_HOLE):
                self._write_large(data, at)
                done.append(digest)
                continue
            if at != end:
                self._write(pieces, begin)
                pieces, begin = [], at
            pieces.append(data)
            if size % BLOCK:
                pieces.append(_ZEROS[size % BLOCK :])
            end = at + -(-size // BLOCK) * BLOCK
            done.append(digest)
        self._write(pieces, begin)
        self._there.update(done)

    def put_pieces(self, digest: bytes, pieces: Iterable[bytes]) -> None:
        """The same for what is too large to be held. Whoever gives the pieces raises when they are not `digest`."""
        at, size = self._places[digest]
        end = at + size
        for piece in pieces:
            if at + len(piece) > end:
                raise other_size(digest)
            self._write_large(piece, at)
            at += len(piece)
        if at != end:
            raise other_size(digest)
        self._there.add(digest)

    def missing(self, digests: Iterable[bytes]) -> list[bytes]:
        return [digest for digest in digests if digest not in self._there]

    def _write_large(self, data: bytes | memoryview, at: int) -> None:
        for begin in range(0, len(data), len(_HOLE)):
            some = bytes(data[begin : begin + len(_HOLE)])
            if some != _HOLE[: len(some)]:
                self._write([some], at + begin)

    def _write(self, pieces: list[bytes | memoryview], at: int) -> None:
        if self._ends.is_set():
            raise StorageFailed("an image that was not needed any more", code="cache_failed")
        with disk_errors("the image cannot be written"):
            write_at(self._fd, pieces, at)


def other_size(digest: bytes) -> StorageFailed:
    return StorageFailed(f"object {digest.hex()} has another size than its tree says", code="corrupt")
