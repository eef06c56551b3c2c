"""Where the store keeps each object, as this host knows it; and which cached files were checked since the boot."""

from __future__ import annotations

import os
import sqlite3
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from dovecote.host.storage.disk import boot_id, disk_errors

_QUERY = 500  # names in one question
_SWEPT = 200_000  # rows that one look for what is lost reads: a second


class Piece(NamedTuple):
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
        self._swept: dict[str, bytes] = {}  # how far each table was looked through
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
        located = {}
        for digest, blob in rows:
            with suppress(KeyError):
                located[digest] = tuple([Piece(names[n], o, s, r) for n, o, s, r in _PIECE.iter_unpack(blob)])
        return located

    def add(self, located: Mapping[bytes, tuple[Piece, ...]]) -> None:
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

    def forget_lost(self, there: Callable[[], Iterable[str]], *, most: int = _SWEPT) -> int:
        """Frees what nobody finds any more: objects in packs that are not `there`, all of the store's; checks of boots
        before this one. Looks at `most` rows of each and goes on there the next time. Answers how many went.

        A pack that the store got while it was listed is not counted as lost.
        """
        known = dict(self._question("SELECT name, id FROM packs"))
        lost = known.keys() - set(there()) if known else set()
        with self._transaction() as db:
            db.executemany("DELETE FROM packs WHERE name = ?", [(name,) for name in lost])
        ids = {number for (number,) in self._question("SELECT id FROM packs")}
        gone = [
            digest
            for digest, pieces in self._next("objects", "pieces", most)
            if any(number not in ids for number, *_ in _PIECE.iter_unpack(pieces))
        ]
        old = [digest for digest, boot in self._next("checked", "boot", most) if boot != self._boot]
        # Again what was found: meanwhile it may have been stored, or checked, anew.
        with self._transaction() as db:
            before = db.total_changes
            for digest in gone:
                row = db.execute("SELECT pieces FROM objects WHERE digest = ?", (digest,)).fetchone()
                if row and not self._are_known(db, row[0]):
                    db.execute("DELETE FROM objects WHERE digest = ?", (digest,))
            rows = [(digest, self._boot) for digest in old]
            db.executemany("DELETE FROM checked WHERE digest = ? AND boot != ?", rows)
            return db.total_changes - before

    def _are_known(self, db: sqlite3.Connection, pieces: bytes) -> bool:
        ids = {number for number, *_ in _PIECE.iter_unpack(pieces)}
        return all(db.execute("SELECT 1 FROM packs WHERE id = ?", (number,)).fetchone() for number in ids)

    def _next(self, table: str, column: str, most: int) -> list[tuple[bytes, Any]]:
        """Rows behind those that it answered the last time, from the beginning after the last ones."""
        question = f"SELECT digest, {column} FROM {table} WHERE digest > ? ORDER BY digest LIMIT ?"
        rows = self._question(question, self._swept.get(table, b""), most)
        self._swept[table] = rows[-1][0] if len(rows) == most else b""
        return rows

    def checked(self, digests: Sequence[bytes]) -> set[bytes]:
        """Those whose cached file somebody checked since this boot."""
        rows = self._select("SELECT digest, boot FROM checked WHERE digest IN", list(digests))
        return {digest for digest, boot in rows if boot == self._boot}

    def add_checked(self, digests: Iterable[bytes]) -> None:
        rows = [(d, self._boot) for d in digests]
        if rows:
            with self._transaction() as db:
                db.executemany("INSERT OR REPLACE INTO checked VALUES (?, ?)", rows)

    def _question(self, question: str, *values: Any) -> list[Any]:
        with self._lock, disk_errors(_INDEX_FAILED):
            return self._db.execute(question, values).fetchall()

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
