"""What a database says went wrong, in Dovecote's words. Both databases come to the same codes."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError, IntegrityError, PendingRollbackError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from dovecote.errors import Conflict, DeadlineExceeded, DovecoteError, Failed, Invalid, StorageFailed

_BUSY = "store_busy"
_HINTS = {
    "store_unreachable": "is the database running, and is DOVECOTE_DATABASE_URL right?",
    _BUSY: "try again; if it stays so, another process holds the database",
    "disk_full": "free space on the disk of the database; nothing was changed",
    "store_read_only": "the database or its disk refuses writes: check the mount, its permissions, or a standby's role",
    "corrupt": "restore the database from a backup",
}

# By SQLSTATE, or its class of two letters (PostgreSQL, appendix A).
_POSTGRESQL = {
    "08": "store_unreachable",
    "28": "store_unreachable",
    "3D": "store_unreachable",
    "57P": "store_unreachable",
    "53300": _BUSY,
    "40": _BUSY,
    "55P03": _BUSY,
    "53100": "disk_full",
    "25006": "store_read_only",
    "XX001": "corrupt",
    "XX002": "corrupt",
}

# By the beginning of the name of SQLite's result code.
_SQLITE = {
    "SQLITE_FULL": "disk_full",
    "SQLITE_BUSY": _BUSY,
    "SQLITE_LOCKED": _BUSY,
    "SQLITE_CANTOPEN": "store_unreachable",
    "SQLITE_READONLY": "store_read_only",
    "SQLITE_CORRUPT": "corrupt",
    "SQLITE_NOTADB": "corrupt",
}

_ERRNO = {errno.ENOSPC: "disk_full", errno.EDQUOT: "disk_full", errno.EROFS: "store_read_only"}


@contextmanager
def in_our_words(noun: str) -> Iterator[None]:
    """Raises DovecoteError in place of whatever the database or its driver raises inside. `noun`: "session"."""
    try:
        yield
    except DovecoteError:
        raise
    except TimeoutError as error:
        raise DeadlineExceeded(
            "the database did not answer in time", code="store_timeout", hint=_HINTS[_BUSY], retry_after=1
        ) from error
    except (SQLAlchemyError, OSError) as error:
        raise _translated(error, noun) from error


def _translated(error: Exception, noun: str) -> DovecoteError:
    if isinstance(wrapped := getattr(error, "orig", None), DovecoteError):
        return wrapped  # raised by a conversion of ours, in the middle of a statement
    if isinstance(error, PoolTimeout):
        return _failed(_BUSY, "no connection to the database became free")
    if isinstance(error, OSError):
        return _failed(_ERRNO.get(error.errno or 0, "store_unreachable"), str(error))
    if isinstance(error, PendingRollbackError):
        return _failed("transaction_failed", "an earlier statement of this transaction failed")
    if not isinstance(error, DBAPIError) or error.orig is None:
        return _failed("store_failed", str(error))
    said = str(error.orig)
    state = str(getattr(error.orig, "sqlstate", None) or "")
    name = str(getattr(error.orig, "sqlite_errorname", None) or "")
    if isinstance(error, IntegrityError):
        return _conflict(state, name, noun, said)
    if state == "57014":  # the server's own limit on the time of a statement
        return DeadlineExceeded("the database did not answer in time", code="store_timeout", hint=_HINTS[_BUSY])
    if state == "25P02":
        return _failed("transaction_failed", "an earlier statement of this transaction failed")
    if state.startswith("22"):
        return Invalid(f"a value of this {noun} cannot be stored: {said}", code="not_storable")
    code = _code_of(state, name)
    if code is None and (error.connection_invalidated or isinstance(error.orig, sqlite3.ProgrammingError)):
        code = "store_unreachable"
    return _failed(code or "store_failed", said)


def _code_of(state: str, name: str) -> str | None:
    for known, code in (_POSTGRESQL if state else _SQLITE).items():
        if (state or name).startswith(known):
            return code
    return None


def _conflict(state: str, name: str, noun: str, said: str) -> DovecoteError:
    if state == "23505" or name in ("SQLITE_CONSTRAINT_UNIQUE", "SQLITE_CONSTRAINT_PRIMARYKEY"):
        return Conflict(f"such {_a(noun)} exists already", code="exists")
    if state == "23503" or name == "SQLITE_CONSTRAINT_FOREIGNKEY":
        return Conflict(f"what the {noun} belongs to is not there, or something still belongs to it", code="not_joined")
    return Invalid(f"this {noun} cannot be stored: {said}", code="not_storable")


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiouA' else 'a'} {noun}"


def _failed(code: str, said: str) -> DovecoteError:
    kind = StorageFailed if code in ("disk_full", "store_read_only", "corrupt") else Failed
    message = f"the database failed: {said.splitlines()[0][:300] if said else code}"
    return kind(message, code=code, hint=_HINTS.get(code, ""), retry_after=1 if code == _BUSY else None)
