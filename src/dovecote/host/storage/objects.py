"""Objects on this host: plain files named by their content."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from io import RawIOBase
from itertools import count
from pathlib import Path

from blake3 import blake3

from dovecote.host.storage.disk import disk_errors, write_all
from dovecote.host.storage.index import Index
from dovecote.host.storage.uses import Uses

CHUNK = 1 << 20
_ZEROS = bytes(CHUNK)
_FORGOTTEN_AFTER = 86400.0  # seconds after which a half-written file can only be a crash's
_REMEMBERED = 500_000  # digests in memory; the index knows the others
_BLOCK = 4096  # of the file system below, as a guess of what a file takes
_AT_ONCE = 256  # files that are looked for before somebody else may


def object_name(digest: bytes) -> str:
    text = digest.hex()
    return f"{text[:2]}/{text[2:]}"


class ObjectCache:
    """`objects/ab/cdef...`: the data-only lower layer of every mount. Root only; a file, once there, never changes.

    A file is trusted when its hash was checked since this boot: written by us and renamed into place, or read again.
    Nothing is synced to disk one by one, so a power cut may leave a file short; the next boot checks before it trusts.
    """

    def __init__(self, directory: Path, index: Index) -> None:
        self.objects_dir = directory / "objects"
        self._tmp = directory / "tmp"
        self._prefix = f"{self.objects_dir}/"
        # Random for each cache, so that no two processes ever mean the same file; `next` of a count is atomic.
        self._part = f"{self._tmp}/{os.getpid()}-{secrets.token_hex(8)}"
        self._numbers = count()
        self._index = index
        self._verified: set[bytes] = set()
        self.uses = Uses()
        self.grown = 0  # bytes that came since somebody measured, about
        with disk_errors("the object cache cannot be made"):
            for folder in (directory, self.objects_dir, self._tmp):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for i in range(256):
                (self.objects_dir / f"{i:02x}").mkdir(mode=0o700, exist_ok=True)
            self._sweep()

    def path(self, digest: bytes) -> Path:
        return self.objects_dir / object_name(digest)

    def put(self, digest: bytes, data: bytes | memoryview) -> None:
        """Keeps `data`, which the caller has just hashed to `digest` and which `missing` named."""
        if len(data) > CHUNK or not data or not data[0]:  # large, or perhaps all zeros: room for holes
            with self.writer() as part:
                part.write(data)
                part.keep(digest)
            return
        # The same with as few calls as it takes: a tree has tens of thousands of these.
        path = f"{self._part}-{next(self._numbers)}"
        with disk_errors("the object cache cannot be written"):
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                try:
                    write_all(fd, data)
                finally:
                    os.close(fd)
                self.adopt(path, digest)
            except BaseException:
                with suppress(FileNotFoundError):
                    os.unlink(path)
                raise

    def put_all(self, objects: Iterable[tuple[bytes, memoryview]]) -> None:
        """The same of many."""
        for digest, data in objects:
            self.put(digest, data)

    def put_pieces(self, digest: bytes, pieces: Iterable[bytes]) -> None:
        """The same for what is too large to be held. Whoever gives the pieces raises when they are not `digest`."""
        with self.writer() as part:
            for piece in pieces:
                part.write(piece)
            part.keep(digest)

    @contextmanager
    def writer(self) -> Iterator[Part]:
        """A file to fill in pieces; it is gone unless `keep` is called."""
        path = f"{self._part}-{next(self._numbers)}"
        with disk_errors("the object cache cannot be written"):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            part = Part(fd, path, self)
            try:
                yield part
            finally:
                os.close(fd)
                if not part.kept:
                    with suppress(FileNotFoundError):
                        os.unlink(path)

    def adopt(self, part: str, digest: bytes) -> None:
        # What is there already was checked by `missing`, and may be in use: it is not replaced.
        path = self._prefix + object_name(digest)
        with self.uses.lock:
            self.uses.touch(digest)
            if os.path.lexists(path):
                os.unlink(part)
            else:
                self.grown += -(-os.lstat(part).st_size // _BLOCK) * _BLOCK
                os.rename(part, path)
        self._remember([digest])

    def evict(self, digest: bytes, *, spared: Callable[[bytes], bool]) -> bool:
        """Deletes its file unless it is spared; see `Uses.evicting`."""
        with self.uses.lock:
            if spared(digest):
                return False
            with suppress(FileNotFoundError):
                os.unlink(self._prefix + object_name(digest))
        return True

    def _remember(self, digests: Iterable[bytes]) -> None:
        if len(self._verified) > _REMEMBERED:
            self._verified.clear()
        self._verified.update(digests)

    def missing(self, digests: Iterable[bytes]) -> list[bytes]:
        """Which of them are not here whole. Hashes those that nobody has checked since this boot; bad ones go.

        The others stay here until the use ends that the caller is in.
        """
        result, doubtful = [], []
        access = os.access  # unlike a stat it raises nothing, which costs most where little is here
        for some in batched(digests, _AT_ONCE):
            with self.uses.lock:
                for digest in some:
                    self.uses.touch(digest)
                    if not access(self._prefix + object_name(digest), os.F_OK, follow_symlinks=False):
                        result.append(digest)
                    elif digest not in self._verified:
                        doubtful.append(digest)
        known = self._index.checked(doubtful)
        self._remember(known)
        fresh = []
        for digest in doubtful:
            if digest in known:
                continue
            if hash_file(self.path(digest)) == digest:
                fresh.append(digest)
            else:
                with suppress(FileNotFoundError):
                    os.unlink(self.path(digest))
                result.append(digest)
        self._remember(fresh)
        self._index.add_checked(fresh)
        return result

    def note_checked(self, digests: Iterable[bytes]) -> None:
        """Lets the next process of this boot trust them too."""
        self._index.add_checked([d for d in digests if d in self._verified])

    def _sweep(self) -> None:
        now = time.time()
        for entry in os.scandir(self._tmp):
            with suppress(FileNotFoundError):
                if now - entry.stat(follow_symlinks=False).st_mtime > _FORGOTTEN_AFTER:
                    os.unlink(entry.path)


def batched(items: Iterable[bytes], size: int) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


class Part:
    """A file on its way into the cache. Blocks of zeros become holes, so that a sparse file stays cheap."""

    def __init__(self, fd: int, path: str, cache: ObjectCache) -> None:
        self._fd, self._path, self._cache = fd, path, cache
        self._size = 0
        self.kept = False

    def write(self, data: bytes | memoryview) -> None:
        for at in range(0, len(data), CHUNK):
            piece = data[at : at + CHUNK] if len(data) > CHUNK else data
            if len(piece) >= 4096 and piece == _ZEROS[: len(piece)]:
                os.lseek(self._fd, len(piece), os.SEEK_CUR)
            else:
                write_all(self._fd, piece)
            self._size += len(piece)

    def keep(self, digest: bytes) -> None:
        os.ftruncate(self._fd, self._size)
        self._cache.adopt(self._path, digest)
        self.kept = True


def hash_file(path: Path) -> bytes:
    """blake3 of a file, b"" when it cannot be read."""
    try:
        with open(path, "rb", buffering=0) as file:
            return hash_stream(file)
    except OSError:
        return b""


def hash_stream(file: RawIOBase) -> bytes:
    hasher = blake3()
    while chunk := file.read(CHUNK):
        hasher.update(chunk)
    return hasher.digest()
