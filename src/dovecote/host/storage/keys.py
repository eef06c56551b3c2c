"""Which objects each manifest points at, kept on this host: eight bytes of each digest, sorted."""

from __future__ import annotations

import os
import secrets
import threading
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from blake3 import blake3

from dovecote.host.storage.disk import disk_errors

FOLDERS = 256  # of objects, by their first byte
_SEAL = 16
_SHIFT = 56


def key(digest: bytes) -> int:
    """Two digests may have the same; then neither object is evicted without the other's consent."""
    return int.from_bytes(digest[:8], "big")


class Keys:
    """`parts/<digest of a manifest>`. What cannot be read counts as not there. Safe from many threads."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        with disk_errors("the cache directory cannot be made"):
            directory.mkdir(mode=0o700, exist_ok=True)

    def write(self, part: str, digests: Iterable[bytes]) -> None:
        """May be repeated."""
        if (self._directory / part).exists():
            return
        body = array("Q", sorted({key(digest) for digest in digests})).tobytes()
        temporary = self._directory / f".{part}.{threading.get_ident()}-{secrets.token_hex(4)}"
        with disk_errors("what a manifest points at cannot be kept"):
            try:
                temporary.write_bytes(body + _seal(body))
                os.rename(temporary, self._directory / part)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise

    def read(self, part: str) -> array[int] | None:
        try:
            raw = (self._directory / part).read_bytes()
        except OSError:
            return None
        if len(raw) < _SEAL or len(raw) % 8 or raw[-_SEAL:] != _seal(raw[:-_SEAL]):
            self.delete(part)  # so that it is written again
            return None
        found = array("Q")
        found.frombytes(raw[:-_SEAL])
        return found

    def list(self) -> Iterator[tuple[str, os.stat_result]]:
        for entry in os.scandir(self._directory):
            with suppress(FileNotFoundError):
                yield entry.name, entry.stat(follow_symlinks=False)

    def delete(self, part: str) -> None:
        (self._directory / part).unlink(missing_ok=True)


def in_folder(keys: array[int], folder: int) -> array[int]:
    """Those of objects in one folder."""
    return keys[bisect_left(keys, folder << _SHIFT) : bisect_left(keys, (folder + 1) << _SHIFT)]


def _seal(body: bytes) -> bytes:
    return blake3(body).digest()[:_SEAL]
