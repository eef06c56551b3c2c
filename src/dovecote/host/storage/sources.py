"""Files whose content is to be saved, and reading them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from io import FileIO
from typing import NamedTuple

from dovecote.errors import StorageFailed
from dovecote.host.storage.manifest import Entry, Kind

SMALL = 4 << 20  # files up to here are held in memory whole
_BATCH_FILES = 64
_BATCH_BYTES = 8 << 20


class Source(NamedTuple):
    """A file to read. `key` is the caller's name for it, `content` what is in it where that is known."""

    key: bytes
    path: bytes
    size: int
    changed_at_ns: int = 0  # of its content or attributes; nobody inside can set it
    content: bytes | None = None


class Content(NamedTuple):
    digest: bytes
    size: int


def filled(entries: Iterable[Entry], contents: Mapping[bytes, Content]) -> Iterator[Entry]:
    """With what reading their sources gave; a file of several names was read by the first of them."""
    for entry in entries:
        if entry.kind is not Kind.FILE or entry.digest or not entry.size:
            yield entry
        else:
            content = contents[entry.link or entry.path]
            yield entry._replace(digest=content.digest, size=content.size)


def batched_sources(sources: Iterable[Source]) -> list[list[Source]]:
    """In their order, each batch little enough to be in memory unless it is one file."""
    batches: list[list[Source]] = []
    held = 0
    for source in sources:
        if not batches or len(batches[-1]) >= _BATCH_FILES or held + source.size > _BATCH_BYTES:
            batches.append([])
            held = 0
        batches[-1].append(source)
        held += source.size
    return batches


@contextmanager
def open_source(path: bytes) -> Iterator[FileIO]:
    try:
        with FileIO(_open(path), "rb") as file:
            yield file
    except OSError as error:
        raise _failure(path, error) from error


def read_ahead(batch: Sequence[Source], *, most: int = SMALL) -> Iterator[tuple[Source, bytes]]:
    """Contents of up to `most` bytes; more of what grew since it was listed. The disk reads while the caller works."""
    opened: list[int] = []
    path = b""
    try:
        unread = [source for source in batch if source.content is None]
        for source in unread:
            path = source.path
            opened.append(_open(path))
            # A snapshot shares no page cache with what was just written.
            with suppress(OSError):
                os.posix_fadvise(opened[-1], 0, source.size, os.POSIX_FADV_WILLNEED)
        for source in batch:
            if source.content is not None:
                yield source, source.content
        for file, source in zip(opened, unread, strict=True):
            path = source.path
            data = os.read(file, source.size + 1)
            if len(data) > source.size:
                data += os.read(file, most + 1)
            yield source, data
    except OSError as error:
        raise _failure(path, error) from error
    finally:
        for file in opened:
            os.close(file)


def _open(path: bytes) -> int:
    # Nothing that was a regular file when it was listed may make us wait or lead us elsewhere.
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def _failure(path: bytes, error: OSError) -> StorageFailed:
    return StorageFailed(f"{path[-200:]!r} cannot be read: {error.strerror}", code="read_failed")
