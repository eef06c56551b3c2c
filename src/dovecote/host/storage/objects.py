"""Objects on this host: plain files named by their content, and an index of where the store keeps each."""

from __future__ import annotations

import errno
import os
import secrets
import sqlite3
import struct
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import RawIOBase
from itertools import count
from pathlib import Path
from typing import Any

from blake3 import blake3

from dovecote.errors import StorageFailed

CHUNK = 1 << 20
_ZEROS = bytes(CHUNK)
_FORGOTTEN_AFTER = 86400.0  # seconds after which a half-written file can only be a crash's
_REMEMBERED = 500_000  # digests in memory; the index knows the others
_QUERY = 500  # names in one question to the index


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def object_name(digest: bytes) -> str:
    text = digest.hex()
    return f"{text[:2]}/{text[2:]}"


def write_all(fd: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Turns an error of this host's own cache into StorageFailed."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        full = getattr(error, "errno", 0) in (errno.ENOSPC, errno.EDQUOT) or "disk is full" in str(error)
        raise StorageFailed(
            f"{what}: {getattr(error, 'strerror', None) or error}",
            code="disk_full" if full else "cache_failed",
            hint="free space in the cache directory" if full else "look at the cache directory of this host",
        ) from error


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
        with disk_errors("the object cache cannot be made"):
            for folder in (directory, self.objects_dir, self._tmp):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for i in range(256):
                (self.objects_dir / f"{i:02x}").mkdir(mode=0o700, exist_ok=True)
            self._sweep()

    def path(self, digest: bytes) -> Path:
        return self.objects_dir / object_name(digest)

    def put(self, digest: bytes, data: bytes) -> None:
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
        if os.path.lexists(path):
            os.unlink(part)
        else:
            os.rename(part, path)
        self._remember([digest])

    def _remember(self, digests: Iterable[bytes]) -> None:
        if len(self._verified) > _REMEMBERED:
            self._verified.clear()
        self._verified.update(digests)

    def missing(self, digests: Iterable[bytes]) -> list[bytes]:
        """Which of them are not here whole. Hashes those that nobody has checked since this boot; bad ones go."""
        result, doubtful = [], []
        for digest in digests:
            if not os.path.lexists(self._prefix + object_name(digest)):
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


class Part:
    """A file on its way into the cache. Blocks of zeros become holes, so that a sparse file stays cheap."""

    def __init__(self, fd: int, path: str, cache: ObjectCache) -> None:
        self._fd, self._path, self._cache = fd, path, cache
        self._size = 0
        self.kept = False

    def write(self, data: bytes) -> None:
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


@dataclass(frozen=True)
class Piece:
    """One zstd frame inside a pack. An object is one piece, or several when it is large."""

    pack: str
    offset: int
    stored: int  # bytes in the pack
    raw: int


_PIECE = struct.Struct("<IIII")
_INDEX_FAILED = "the index of objects on this host does not work"


class Index:
    """digest -> where the store keeps it. May be lost: what it forgets is stored a second time, or read from hints.

    It only ever claims what was durable in the store when it was written, and belongs to one store: `identity`, or None
    where that does not answer, and then what the index has is kept.
    """

    def __init__(self, path: Path, *, identity: str | None) -> None:
        self._lock = threading.Lock()
        self._boot = boot_id()
        with disk_errors(_INDEX_FAILED):
            try:
                self._db = self._open(path, identity)
            except sqlite3.OperationalError:  # locked, no space, no permission: not the file's fault
                raise
            except sqlite3.DatabaseError:
                # A broken index is worth less than the start of the host: it can be learned again.
                for suffix in ("", "-wal", "-shm"):
                    Path(f"{path}{suffix}").unlink(missing_ok=True)
                self._db = self._open(path, identity)

    def _open(self, path: Path, identity: str | None) -> sqlite3.Connection:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        db = sqlite3.connect(path, check_same_thread=False, timeout=10, isolation_level=None)
        os.chmod(path, 0o600)
        db.executescript(
            """
            PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;
            CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT);
            CREATE TABLE IF NOT EXISTS packs (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT UNIQUE);
            CREATE TABLE IF NOT EXISTS objects (digest BLOB PRIMARY KEY, pieces BLOB) WITHOUT ROWID;
            CREATE TABLE IF NOT EXISTS checked (digest BLOB PRIMARY KEY, boot TEXT) WITHOUT ROWID;
            """
        )
        row = db.execute("SELECT value FROM meta WHERE name = 'store'").fetchone()
        if identity is not None and (row is None or row[0] != identity):
            db.executescript("BEGIN; DELETE FROM objects; DELETE FROM packs; COMMIT;")
            db.execute("INSERT OR REPLACE INTO meta VALUES ('store', ?)", (identity,))
        return db

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def locate(self, digests: Iterable[bytes]) -> dict[bytes, tuple[Piece, ...]]:
        """Where those of `digests` lie that it knows."""
        rows = self._select("SELECT digest, pieces FROM objects WHERE digest IN", list(digests))
        ids = {number for _, blob in rows for number, *_ in _PIECE.iter_unpack(blob)}
        names: dict[int, str] = dict(self._select("SELECT id, name FROM packs WHERE id IN", list(ids)))
        return {
            digest: tuple(Piece(names[n], o, s, r) for n, o, s, r in _PIECE.iter_unpack(blob))
            for digest, blob in rows
            if all(n in names for n, *_ in _PIECE.iter_unpack(blob))
        }

    def add(self, located: dict[bytes, tuple[Piece, ...]]) -> None:
        """Call when the packs are durable in the store."""
        packs = {piece.pack for pieces in located.values() for piece in pieces}
        with self._transaction() as db:
            db.executemany("INSERT OR IGNORE INTO packs (name) VALUES (?)", [(p,) for p in packs])
            ids = {p: db.execute("SELECT id FROM packs WHERE name = ?", (p,)).fetchone()[0] for p in packs}
            db.executemany(
                "INSERT OR REPLACE INTO objects VALUES (?, ?)",
                [
                    (digest, b"".join(_PIECE.pack(ids[p.pack], p.offset, p.stored, p.raw) for p in pieces))
                    for digest, pieces in located.items()
                ],
            )

    def forget_pack(self, name: str) -> None:
        """The store does not have it any more; `locate` leaves out every object that lies in it."""
        with self._transaction() as db:
            db.execute("DELETE FROM packs WHERE name = ?", (name,))

    def checked(self, digests: Sequence[bytes]) -> set[bytes]:
        """Those whose cached file somebody checked since this boot."""
        rows = self._select("SELECT digest, boot FROM checked WHERE digest IN", list(digests))
        return {digest for digest, boot in rows if boot == self._boot}

    def add_checked(self, digests: Iterable[bytes]) -> None:
        rows = [(d, self._boot) for d in digests]
        if rows:
            with self._transaction() as db:
                db.executemany("INSERT OR REPLACE INTO checked VALUES (?, ?)", rows)

    def _select(self, question: str, values: list[bytes] | list[int]) -> list[tuple[Any, Any]]:
        rows: list[tuple[Any, Any]] = []
        with self._lock, disk_errors(_INDEX_FAILED):
            for at in range(0, len(values), _QUERY):
                some = values[at : at + _QUERY]
                rows += self._db.execute(f"{question} ({','.join('?' * len(some))})", some).fetchall()
        return rows

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, disk_errors(_INDEX_FAILED):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
