"""What a guest says of files: entries, listings, changes; and what users note on them."""

from __future__ import annotations

import re
import stat as bits
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from stat import filemode
from typing import Literal

from dovecote.errors import Invalid
from dovecote.host.guest.protocol import Payload, garbage, instant, text

WRITE_PARENTS, WRITE_METADATA = 1, 2
ALTER_MODE, ALTER_METADATA = 1, 2
KEEP_MODE = 2**32 - 1
MOST_METADATA = 64
MOST_METADATA_BYTES = 4096  # names and values together
METADATA_NAME = re.compile(r"[a-z0-9_.-]{1,64}")

FileKind = Literal["file", "directory", "link", "fifo", "socket", "character", "block", "unknown"]
FILE_KINDS: dict[int, FileKind] = {
    ord("-"): "file",
    ord("d"): "directory",
    ord("l"): "link",
    ord("p"): "fifo",
    ord("s"): "socket",
    ord("c"): "character",
    ord("b"): "block",
    ord("?"): "unknown",
}


FORMAT_BITS: dict[FileKind, int] = {
    "file": bits.S_IFREG,
    "directory": bits.S_IFDIR,
    "link": bits.S_IFLNK,
    "fifo": bits.S_IFIFO,
    "socket": bits.S_IFSOCK,
    "character": bits.S_IFCHR,
    "block": bits.S_IFBLK,
}

FileChangeKind = Literal["watching", "create", "write", "remove", "rename", "chmod", "overflow"]
FILE_CHANGE_KINDS: tuple[FileChangeKind, ...] = ("watching", "create", "write", "remove", "rename", "chmod", "overflow")


@dataclass(frozen=True)
class Stat:
    kind: FileKind
    mode: int  # permission bits
    uid: int
    gid: int
    size: int
    modified_ns: int
    target: str  # of a link that was not followed
    owner: str = ""  # names by the sandbox's own /etc; empty where it has none
    group: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def permissions(self) -> str:
        """As `ls -l` shows them, such as `-rw-r--r--`."""
        return filemode(FORMAT_BITS.get(self.kind, 0) | self.mode)

    @property
    def modified_at(self) -> datetime:
        return instant(self.modified_ns / 1e9)


@dataclass(frozen=True)
class Entry:
    path: str  # below the directory that was listed
    stat: Stat


@dataclass(frozen=True)
class Listing:
    """By path. With `is_cut` there was more than was asked for, and which of it is here is chance."""

    entries: list[Entry]
    is_cut: bool


@dataclass(frozen=True)
class FileChange:
    """Paths are below the watched directory, which is empty itself.

    `watching` comes first: from then on nothing is missed but what an `overflow` stands for. A `rename` has a `target`
    where the new name is below the directory too.
    """

    kind: FileChangeKind
    path: str = ""
    target: str = ""
    is_directory: bool = False


def render_metadata(metadata: Mapping[str, str]) -> bytes:
    """Raises Invalid for what no guest accepts."""
    for name in metadata:
        if not METADATA_NAME.fullmatch(name):
            raise Invalid(
                f"not a name for metadata: {name[:100]!r}",
                code="malformed_metadata",
                hint="up to 64 of a-z, 0-9, dash, underscore and dot",
            )
    parts = [text(each) for pair in metadata.items() for each in pair]
    if len(metadata) > MOST_METADATA or sum(map(len, parts)) - 5 * len(parts) > MOST_METADATA_BYTES:
        raise Invalid(
            f"too much metadata for one file: at most {MOST_METADATA} names and {MOST_METADATA_BYTES} bytes",
            code="too_large",
            hint="keep it in a file beside",
        )
    return len(metadata).to_bytes(2, "little") + b"".join(parts)


def parse_entries(data: bytes) -> list[Entry]:
    payload = Payload(data)
    found = []
    while not payload.is_over:
        kind, mode, uid, gid, size, modified = (payload.number(n) for n in (1, 4, 4, 4, 8, 8))
        path, target, owner, group = (payload.text() for _ in range(4))
        metadata = {payload.text(): payload.text() for _ in range(payload.number(2))}
        modified -= (modified >> 63) << 64
        kind_name = FILE_KINDS.get(kind, "unknown")
        found.append(Entry(path, Stat(kind_name, mode, uid, gid, size, modified, target, owner, group, metadata)))
    return found


def parse_change(data: bytes) -> FileChange:
    payload = Payload(data)
    what, is_directory, path, target = payload.number(1), payload.number(1), payload.text(), payload.text()
    payload.end()
    if what >= len(FILE_CHANGE_KINDS):
        raise garbage(f"a change of kind {what}")
    return FileChange(FILE_CHANGE_KINDS[what], path, target, bool(is_directory))
