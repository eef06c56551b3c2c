"""What every file of this host's own has in common: how it is written, and what its errors are called."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dovecote.errors import StorageFailed

_AT_ONCE = 1024  # pieces of one write, by the kernel's limit


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def write_all(fd: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def write_at(fd: int, pieces: Sequence[bytes | memoryview], at: int) -> None:
    """One behind the other, with as few calls as it takes."""
    for first in range(0, len(pieces), _AT_ONCE):
        some = list(pieces[first : first + _AT_ONCE])
        while some:
            done = os.pwritev(fd, some, at)
            at += done
            whole = 0
            while whole < len(some) and done >= len(some[whole]):
                done -= len(some[whole])
                whole += 1
            some = some[whole:]
            if done:
                some[0] = memoryview(some[0])[done:]


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
