"""Whole trees without reading a file: from what layers made, and from a delta put into the tree that it is over."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import IO

from blake3 import blake3

from dovecote.host.storage.manifest import DIRS, Entry, Kind, normalized
from dovecote.host.storage.objects import CHUNK, ObjectCache


class CacheSink:
    """Keeps contents in the host's cache of objects, from where saving the tree packs them."""

    def __init__(self, cache: ObjectCache) -> None:
        self._cache = cache

    def keep(self, file: IO[bytes], size: int) -> bytes:
        hasher = blake3()
        with self._cache.writer() as part:
            left = size
            while left:
                data = file.read(min(CHUNK, left))
                if not data:
                    raise EOFError("a file ends early")
                hasher.update(data)
                part.write(data)
                left -= len(data)
            digest = hasher.digest()
            if self._cache.missing([digest]):
                part.keep(digest)
        return digest


def flattened(template: Sequence[Entry], delta: Sequence[Entry]) -> list[Entry]:
    """The one tree that a user of `delta` over `template` sees. Both are sorted; so is the result."""
    hidden = {e.path for e in delta if e.kind not in DIRS} | {e.path for e in delta if e.kind is Kind.OPAQUE}
    written = {e.path for e in delta}
    result = [e for e in _apart(template, b"\0t") if e.path not in written and not _below(e.path, hidden)]
    for entry in _apart(delta, b"\0d"):
        if entry.kind is Kind.OPAQUE:
            result.append(entry._replace(kind=Kind.DIR))
        elif entry.kind is not Kind.WHITEOUT:
            result.append(entry)
    return normalized(result)


def _apart(entries: Iterable[Entry], mark: bytes) -> Iterable[Entry]:
    # Two names of one file in the template are two files once one of them is in the delta, as overlayfs has it.
    return (e._replace(link=mark + e.link) if e.link else e for e in entries)


def _below(path: bytes, hidden: set[bytes]) -> bool:
    at = path.find(b"/")
    while at != -1:
        if path[:at] in hidden:
            return True
        at = path.find(b"/", at + 1)
    return False
