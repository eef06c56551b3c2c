"""What every file of this host's own has in common: how it is written, and what its errors are called."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dovecote.errors import StorageFailed


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


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
