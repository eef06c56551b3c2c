"""Plans what a tree holds: from a plain directory, or from what one life of an instance changed."""

from __future__ import annotations

import errno
import os
import re
import stat
import struct
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property

from dovecote.errors import Invalid, StorageFailed
from dovecote.host.storage.manifest import (
    DIRS,
    MAX_ENTRIES,
    MAX_ID,
    MAX_PATH,
    MTIME_RANGE,
    Entry,
    Kind,
    is_kept_xattr,
    normalized,
    order,
)
from dovecote.host.storage.packs import Content, Source
from dovecote.model.patterns import Selection

GIB = 1 << 30
_MAX_NOTES = 100
_XATTR_BYTES = 128 << 10  # for one file; an image has room for twice as much


LEFT_OUT = (b"user.dovecote.left_out", b"1")  # on a directory that patterns emptied, so that restoring finds it


@dataclass(frozen=True)
class Rules:
    """Directories whose content is left out; the directory itself stays. Also what `selection` leaves out: such a
    directory stays as well, and of anything else there is what the template has."""

    at: tuple[bytes, ...] = ()  # from the root
    anywhere: tuple[bytes, ...] = ()  # below any directory
    selection: Selection = field(default_factory=Selection, compare=False)

    def prunes(self, directory: bytes) -> bool:
        """`directory` is kept empty."""
        return self._pattern.fullmatch(directory) is not None or self.empties(directory)

    def empties(self, directory: bytes) -> bool:
        """The same, because of the selection."""
        return self.selection.leaves_out(directory, is_directory=True)

    def drops(self, path: bytes) -> bool:
        """`path`, no directory, is left out itself."""
        return self.selection.leaves_out(path, is_directory=False)

    def marked(self, entry: Entry) -> Entry:
        """A directory that says so when it is emptied."""
        if not self.empties(entry.path):
            return entry
        others = [pair for pair in entry.xattrs if pair[0] != LEFT_OUT[0]]
        return entry._replace(xattrs=tuple(sorted((*others, LEFT_OUT))))

    def excludes(self, path: bytes) -> bool:
        """`path` lies in a directory that is kept empty."""
        return self._is_below_pruned(path) or self.selection.hides(path)

    def _is_below_pruned(self, path: bytes) -> bool:
        # Most paths have no such name anywhere, which one search tells.
        return self._pattern.match(path) is not None and any(
            self._pattern.fullmatch(path[:i]) for i in range(len(path)) if path[i : i + 1] == b"/"
        )

    @cached_property
    def _pattern(self) -> re.Pattern[bytes]:
        at = b"|".join(re.escape(p) for p in self.at) or b"(?!)"
        anywhere = b"|".join(re.escape(p) for p in self.anywhere) or b"(?!)"
        return re.compile(rb"(?s)(?:(?:%s)|(?:.*/)?(?:%s))(?=/|\Z)" % (at, anywhere))


DEFAULT_RULES = Rules(
    at=(b"dev", b"proc", b"sys", b"run", b"var/cache/apt", b"var/lib/apt/lists", b"tmp/node-compile-cache"),
    anywhere=(b".npm/_cacache", b".npm/_logs", b".cache/pip"),
)


@dataclass(frozen=True)
class Bounds:
    """What one tree may hold. Sizes are as a user counts them, holes included: reading a hole takes time too."""

    entries: int = MAX_ENTRIES
    file_bytes: int = 64 * GIB
    total_bytes: int = 256 * GIB


@dataclass(frozen=True)
class Plan:
    """A tree whose files have yet to be read. `complete` it with what reading `sources` gave."""

    entries: list[Entry]
    sources: list[Source]
    notes: tuple[str, ...]  # what was left out, and why

    def complete(self, contents: Mapping[bytes, Content]) -> list[Entry]:
        """The tree, sorted and whole."""
        return normalized(_filled(entry, contents) for entry in self.entries)


def _filled(entry: Entry, contents: Mapping[bytes, Content]) -> Entry:
    if entry.kind is not Kind.FILE or entry.digest or not entry.size:
        return entry
    content = contents[entry.link or entry.path]
    return entry._replace(digest=content.digest, size=content.size)


def plan_directory(
    root: bytes, *, id_base: int = 0, rules: Rules = DEFAULT_RULES, bounds: Bounds | None = None
) -> Plan:
    """A tree of everything in a plain directory that nobody writes to meanwhile."""
    scan = Scan(root, None, id_base, rules, bounds or Bounds())
    scan.take(b"", Kind.DIR)
    return Plan(list(scan.entries.values()), scan.sources, tuple(scan.notes))


def plan_delta(
    upper: bytes,
    merged: bytes,
    *,
    id_base: int,
    previous: Sequence[Entry] = (),
    in_template: Callable[[bytes], bool] = lambda path: True,
    rules: Rules = DEFAULT_RULES,
    bounds: Bounds | None = None,
) -> Plan:
    """The new delta after a life of an instance.

    `upper` is a read-only snapshot of the overlay's upper. `merged` is a read-only overlay of that snapshot over the
    same lowers, idmapped as the instance had them; content and attributes are read only there, because chmod and
    rename leave stubs in the upper. `previous` is the sorted delta that the life started from. `in_template` says
    whether the template has a path, so that whiteouts of what is no longer there do not pile up.
    Raises Invalid `foreign_id` or `too_large`, StorageFailed `inconsistent`.
    """
    scan = Scan(merged, upper, id_base, rules, bounds or Bounds())
    kinds = {entry.path: entry.kind for entry in previous}
    scan.add(b"", Kind.DIR)
    folders = [b""]
    while folders:
        folder = folders.pop()
        if not rules.prunes(folder):
            folders += _fold_folder(scan, folder, kinds)
    entries = kept(previous, scan.replaced, scan.entries, rules) + list(scan.entries.values())
    entries.sort(key=lambda e: order(e.path))
    return Plan(needed(entries, in_template), scan.sources, tuple(scan.notes))


def _fold_folder(scan: Scan, folder: bytes, kinds: Mapping[bytes, Kind]) -> list[bytes]:
    """Takes what the upper has in one directory that is merged. Returns the directories to go on with."""
    assert scan.upper is not None
    marked = has_marked_whiteouts(join_path(scan.upper, folder))
    return [
        path
        for path, full, status in scan.children(scan.upper, folder)
        if fold_name(scan, path, full, status, kinds, marked=marked)
    ]


def fold_name(
    scan: Scan, path: bytes, full: bytes, status: os.stat_result, kinds: Mapping[bytes, Kind], *, marked: bool
) -> bool:
    """Takes one name that the upper has; `full` is its place there. True: a merged directory, go on in it."""
    if is_whiteout(full, status, marked=marked):
        if scan.rules.drops(path):
            scan.replaced.add(path)
        else:
            scan.hide(path)
    elif not stat.S_ISDIR(status.st_mode):
        scan.replaced.add(path)
        if not scan.rules.drops(path) and not scan.add(path, None):
            scan.hide(path)
    elif is_whole(full) or kinds.get(path, Kind.DIR) not in DIRS:
        scan.replaced.add(path)
        scan.take(path, Kind.OPAQUE)
    else:
        scan.add(path, kinds.get(path, Kind.DIR))
        return True
    return False


def is_whole(full: bytes) -> bool:
    """Whether a directory of an upper is not merged with the one of the same name below: it is taken whole."""
    return xattr(full, "trusted.overlay.opaque") == b"y" or xattr(full, "trusted.overlay.redirect") is not None


def has_marked_whiteouts(full: bytes) -> bool:
    return xattr(full, "trusted.overlay.opaque") == b"x"


def kept(previous: Sequence[Entry], replaced: Collection[bytes], taken: Collection[bytes], rules: Rules) -> list[Entry]:
    """What of an older delta (sorted) is neither replaced nor taken again."""
    replacements = Replacements(replaced)
    return [
        rules.marked(entry) if entry.kind in DIRS else entry
        for entry in previous
        if entry.path not in taken
        and entry.path not in replacements
        and not rules.excludes(entry.path)
        and (entry.kind in DIRS or not rules.drops(entry.path))
    ]


class Replacements:
    """Paths, and all that is below them, whether or not somebody has an entry for them."""

    def __init__(self, paths: Collection[bytes]) -> None:
        self._paths = paths
        self._below: dict[bytes, bool] = {b"": b"" in paths}  # directories that were asked about

    def __contains__(self, path: bytes) -> bool:
        if not self._paths:
            return False
        return path in self._paths or self._is_below(path.rpartition(b"/")[0])

    def _is_below(self, folder: bytes) -> bool:
        known = self._below.get(folder)
        if known is None:
            known = self._below[folder] = folder in self._paths or self._is_below(folder.rpartition(b"/")[0])
        return known


def needed(entries: Sequence[Entry], in_template: Callable[[bytes], bool]) -> list[Entry]:
    """Without whiteouts that hide nothing, nor directories opaque inside opaque ones. `entries` are sorted."""
    result: list[Entry] = []
    opaque: bytes | None = None
    for entry in entries:
        if opaque is not None and not entry.path.startswith(opaque):
            opaque = None
        if entry.kind is Kind.WHITEOUT and (opaque is not None or not in_template(entry.path)):
            continue
        if entry.kind is Kind.OPAQUE:
            if opaque is None:
                opaque = entry.path + b"/"
            else:
                entry = entry._replace(kind=Kind.DIR)
        result.append(entry)
    return result


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
        found: list[tuple[bytes, bytes, os.stat_result]] = []
        with os.scandir(join_path(base, folder)) as names:
            for name in names:
                if len(found) > self.bounds.entries:
                    raise _too_large(f"more than {self.bounds.entries} files")
                path = folder + b"/" + name.name if folder else name.name
                if len(path) > MAX_PATH:
                    self.note(path, "its path is too long")
                else:
                    found.append((path, name.path, name.stat(follow_symlinks=False)))
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

    def add(self, path: bytes, kind: Kind | None, status: os.stat_result | None = None) -> bool:
        """Takes one name; `kind` only for directories. False for what is left out."""
        full = join_path(self.root, path)
        try:
            status = status or os.lstat(full)
        except OSError as error:
            raise StorageFailed(
                f"{path[:200]!r} is in the upper but not in the merged view", code="inconsistent"
            ) from error
        mode = status.st_mode
        if stat.S_ISDIR(mode) != (kind is not None):
            raise StorageFailed(f"{path[:200]!r} differs between upper and merged view", code="inconsistent")
        kind = kind or _KINDS.get(stat.S_IFMT(mode))
        if kind is None:
            self.note(path, "sockets and devices are not kept")
            return False
        entry = Entry(
            path,
            kind,
            0o777 if kind is Kind.SYMLINK else stat.S_IMODE(mode),
            self._container_id(path, status.st_uid),
            self._container_id(path, status.st_gid),
            min(max(status.st_mtime_ns, MTIME_RANGE[0]), MTIME_RANGE[-1]),
            status.st_size if kind is Kind.FILE else 0,
            target=os.readlink(full) if kind is Kind.SYMLINK else b"",
            link=self._link(path, status) if status.st_nlink > 1 and kind not in DIRS else b"",
            xattrs=self._xattrs(path, full) if kind is Kind.FILE or kind in DIRS else (),
        )
        self._count(entry, full)
        self.entries[path] = self.rules.marked(entry) if kind in DIRS else entry
        return True

    def _count(self, entry: Entry, full: bytes) -> None:
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
        self.sources.append(Source(entry.link or entry.path, full, entry.size))

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


def _too_large(what: str) -> Invalid:
    return Invalid(f"too large to be saved: {what}", code="too_large", hint="delete what is not needed")
