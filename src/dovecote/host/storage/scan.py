"""Looks at an instance's files on the disk and takes them as entries; what overlayfs has marked in an upper."""

from __future__ import annotations

import errno
import os
import stat
import struct
from contextlib import suppress
from dataclasses import dataclass, field

from dovecote.errors import Invalid, StorageFailed
from dovecote.host.storage.btrfs import Plain
from dovecote.host.storage.manifest import DIRS, MAX_ENTRIES, MAX_ID, MAX_PATH, MTIME_RANGE, Entry, Kind, is_kept_xattr
from dovecote.host.storage.rules import LEFT_OUT, Rules
from dovecote.host.storage.sources import Source

GIB = 1 << 30
_MAX_NOTES = 100
_XATTR_BYTES = 128 << 10  # for one file; an image has room for twice as much


@dataclass(frozen=True)
class Bounds:
    """What one tree may hold. Sizes are as a user counts them, holes included: reading a hole takes time too."""

    entries: int = MAX_ENTRIES
    file_bytes: int = 64 * GIB
    total_bytes: int = 256 * GIB


@dataclass
class Scan:
    """Entries taken so far from `root`, where content is read."""

    root: bytes
    upper: bytes | None
    id_base: int
    rules: Rules
    bounds: Bounds
    entries: dict[bytes, Entry] = field(default_factory=dict)
    sources: list[Source] = field(default_factory=list)
    replaced: set[bytes] = field(default_factory=set)  # nothing of the previous delta stays here and below
    notes: list[str] = field(default_factory=list)
    total: int = 0
    links: set[bytes] = field(default_factory=set)

    def children(self, base: bytes, folder: bytes) -> list[tuple[bytes, bytes, os.stat_result]]:
        return [(path, name.path, name.stat(follow_symlinks=False)) for path, name in self.names(base, folder)]

    def names(self, base: bytes, folder: bytes) -> list[tuple[bytes, os.DirEntry[bytes]]]:
        found: list[tuple[bytes, os.DirEntry[bytes]]] = []
        with os.scandir(join_path(base, folder)) as names:
            for name in names:
                if len(found) > self.bounds.entries:
                    raise _too_large(f"more than {self.bounds.entries} files")
                path = folder + b"/" + name.name if folder else name.name
                if len(path) > MAX_PATH:
                    self.note(path, "its path is too long")
                else:
                    found.append((path, name))
        return found

    def take(self, path: bytes, kind: Kind) -> None:
        """Everything below `path`, as it is in `root`."""
        self.add(path, kind)
        folders = [path]
        while folders:
            folder = folders.pop()
            if self.rules.prunes(folder):
                continue
            for child, _, status in self.children(self.root, folder):
                if stat.S_ISDIR(status.st_mode):
                    self.add(child, Kind.DIR, status)
                    folders.append(child)
                elif not self.rules.drops(child):
                    self.add(child, None, status)

    def hide(self, path: bytes) -> None:
        self.replaced.add(path)
        self.entries[path] = Entry(path, Kind.WHITEOUT)

    def add_plain(self, path: bytes, full: bytes, plain: Plain) -> None:
        """Takes a file of the upper without a look at it."""
        self.replaced.add(path)
        if not self.rules.drops(path):
            uid, gid = self._container_id(path, plain.uid), self._container_id(path, plain.gid)
            entry = Entry(path, Kind.FILE, plain.mode, uid, gid, _kept_time(plain.mtime_ns), plain.size)
            self._count(entry, full, plain.ctime_ns, plain.content)
            self.entries[path] = entry

    def add(self, path: bytes, kind: Kind | None, status: os.stat_result | None = None) -> bool:
        """Takes one name as it is in `root`; `kind` only for directories. False for what is left out."""
        full = join_path(self.root, path)
        try:
            status = status or os.lstat(full)
        except OSError as error:
            raise StorageFailed(
                f"{path[:200]!r} is in the upper but not in the merged view", code="inconsistent"
            ) from error
        if stat.S_ISDIR(status.st_mode) != (kind is not None):
            raise StorageFailed(f"{path[:200]!r} differs between upper and merged view", code="inconsistent")
        kind = kind or _KINDS.get(stat.S_IFMT(status.st_mode))
        if kind is None:
            self.note(path, "sockets and devices are not kept")
            return False
        entry = Entry(
            path,
            kind,
            0o777 if kind is Kind.SYMLINK else stat.S_IMODE(status.st_mode),
            self._container_id(path, status.st_uid),
            self._container_id(path, status.st_gid),
            _kept_time(status.st_mtime_ns),
            status.st_size if kind is Kind.FILE else 0,
            target=os.readlink(full) if kind is Kind.SYMLINK else b"",
            link=self._link(path, status) if status.st_nlink > 1 and kind not in DIRS else b"",
            xattrs=self._xattrs(path, full) if kind is Kind.FILE or kind in DIRS else (),
        )
        self._count(entry, full, status.st_ctime_ns)
        self.entries[path] = self.rules.marked(entry) if kind in DIRS else entry
        return True

    def _count(self, entry: Entry, full: bytes, changed_at_ns: int, content: bytes | None = None) -> None:
        if len(self.entries) >= self.bounds.entries:
            raise _too_large(f"more than {self.bounds.entries} files")
        if entry.kind is not Kind.FILE or not entry.size or entry.link in self.links:
            return
        self.total += entry.size
        if entry.size > self.bounds.file_bytes:
            raise _too_large(f"{entry.path[-200:]!r} has {entry.size} bytes, more than {self.bounds.file_bytes}")
        if self.total > self.bounds.total_bytes:
            raise _too_large(f"files of more than {self.bounds.total_bytes} bytes")
        if entry.link:
            self.links.add(entry.link)
        self.sources.append(Source(entry.link or entry.path, full, entry.size, changed_at_ns, content))

    def _container_id(self, path: bytes, number: int) -> int:
        if not 0 <= number - self.id_base <= MAX_ID:
            raise Invalid(
                f"{path[:200]!r} belongs to {number}, outside of this instance's ids from {self.id_base}",
                code="foreign_id",
                hint="the upper was written with another range of ids",
            )
        return number - self.id_base

    def _link(self, path: bytes, status: os.stat_result) -> bytes:
        # Inode numbers are compared in the upper where the file is there; NUL, as no path has it.
        if self.upper is not None:
            with suppress(OSError):
                own = os.lstat(join_path(self.upper, path))
                return b"\0u%d" % own.st_ino if own.st_nlink > 1 else b""
        return b"\0m%d.%d" % (status.st_dev, status.st_ino)

    def _xattrs(self, path: bytes, full: bytes) -> tuple[tuple[bytes, bytes], ...]:
        found = []
        room = _XATTR_BYTES
        for text in sorted(os.listxattr(full, follow_symlinks=False)):
            name = os.fsencode(text)
            if name == LEFT_OUT[0]:
                continue  # it says what was so when it was restored
            if not is_kept_xattr(name):
                if name.startswith(b"system.posix_acl"):
                    self.note(path, "access lists are not kept")
                continue
            value = os.getxattr(full, name, follow_symlinks=False)
            if name == b"security.capability":
                value = container_capability(value, self.id_base) or b""
            room -= len(name) + len(value)
            if len(value) > 65535 or room < 0 or (name == b"security.capability" and not value):
                self.note(path, f"its {text[:60]!r} is not kept")
            else:
                found.append((name, value))
        return tuple(sorted(found))

    def note(self, path: bytes, why: str) -> None:
        if len(self.notes) < _MAX_NOTES:
            self.notes.append(f"{path[-200:]!r}: {why}")


_OPAQUE, _REDIRECT = "trusted.overlay.opaque", "trusted.overlay.redirect"
_KINDS = {stat.S_IFREG: Kind.FILE, stat.S_IFLNK: Kind.SYMLINK, stat.S_IFIFO: Kind.FIFO}
_CAPABILITY_2, _CAPABILITY_3 = 2, 3


def container_capability(value: bytes, id_base: int) -> bytes | None:
    """`security.capability` as container root would have written it (revision 2), or None if it was not its own.

    Inside a user namespace the kernel writes revision 3 with the host id of that namespace's root; in an image that is
    mounted idmapped it derives that again from revision 2.
    """
    if len(value) == 20 and value[3] == _CAPABILITY_2:
        return value if id_base == 0 else None
    if len(value) == 24 and value[3] == _CAPABILITY_3 and struct.unpack_from("<I", value, 20)[0] == id_base:
        return value[:3] + bytes([_CAPABILITY_2]) + value[4:20]
    return None


def _kept_time(mtime_ns: int) -> int:
    """Whoever is inside may set any time."""
    return min(max(mtime_ns, MTIME_RANGE[0]), MTIME_RANGE[-1])


def join_path(base: bytes, path: bytes) -> bytes:
    return base + b"/" + path if path else base


def is_whiteout(full: bytes, status: os.stat_result, *, marked: bool) -> bool:
    if stat.S_ISCHR(status.st_mode):
        return status.st_rdev == 0
    return (
        marked
        and stat.S_ISREG(status.st_mode)
        and not status.st_size
        and xattr(full, "trusted.overlay.whiteout") is not None
    )


def xattr(full: bytes, name: str) -> bytes | None:
    try:
        return os.getxattr(full, name, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return None
        raise StorageFailed(f"{full[-200:]!r} cannot be read: {error.strerror}", code="read_failed") from error


def _attributes(full: bytes) -> list[str]:
    try:
        return os.listxattr(full, follow_symlinks=False)
    except OSError as error:
        raise StorageFailed(f"{full[-200:]!r} cannot be read: {error.strerror}", code="read_failed") from error


def _too_large(what: str) -> Invalid:
    return Invalid(f"too large to be saved: {what}", code="too_large", hint="delete what is not needed")


def is_whole(full: bytes) -> bool:
    """Whether a directory of an upper is not merged with the one of the same name below: it is taken whole."""
    names = _attributes(full)
    return _REDIRECT in names or (_OPAQUE in names and xattr(full, _OPAQUE) == b"y")


def has_marked_whiteouts(full: bytes) -> bool:
    return _OPAQUE in _attributes(full) and xattr(full, _OPAQUE) == b"x"
