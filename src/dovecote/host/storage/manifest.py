"""What a tree holds, as bytes: a root manifest that names one manifest for each subtree, all by content."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise
from typing import NamedTuple

from blake3 import blake3

from dovecote.errors import StorageFailed

MAX_ENTRIES = 2_000_000
MAX_PATH = 3500  # bytes; leaves room for the mount point in the kernel's limit of 4096
MAX_NAME = 255
MAX_TARGET = 4095
MAX_ID = 65535
MAX_FILE = 1 << 43
MAX_RAW = 1 << 30  # bytes of a manifest before compression
MAX_PARTS = 100_000
PART_ENTRIES = 64  # a smaller subtree is cheaper inside its parent's manifest
TIMES_APART = 64  # entries; of fewer, times cost less inside the manifest
PART_NAMES = frozenset({b"node_modules", b".venv", b"venv", b"site-packages", b"dist-packages", b"vendor"})

NO_DIGEST = b""
MTIME_RANGE = range(-(1 << 63), 1 << 63)


class Kind(IntEnum):
    FILE = 1
    DIR = 2
    OPAQUE = 3  # a directory that hides what the template has below it
    SYMLINK = 4
    WHITEOUT = 5  # the template has something here that is deleted
    FIFO = 6


DIRS = (Kind.DIR, Kind.OPAQUE)


class Entry(NamedTuple):
    """One name in a tree. A named tuple because trees have tens of thousands: a dataclass takes four times as long."""

    path: bytes  # relative, b"" is the root
    kind: Kind
    mode: int = 0  # permission bits, 0o7777
    uid: int = 0  # container ids
    gid: int = 0
    mtime_ns: int = 0
    size: int = 0  # of a file, its content in bytes
    digest: bytes = NO_DIGEST  # blake3 of a file's content, empty for an empty file
    target: bytes = b""  # of a symbolic link
    link: bytes = b""  # names that share it are the same file: path of the first of them
    xattrs: tuple[tuple[bytes, bytes], ...] = ()  # sorted by name


@dataclass(frozen=True)
class Part:
    """A subtree with a manifest of its own. `path` is b"" for the rest of the tree. `times`: digest of its entries'
    times, when they are not in the manifest."""

    path: bytes
    digest: bytes
    entries: int
    times: bytes = NO_DIGEST


@dataclass(frozen=True)
class Root:
    """A tree. `template` is the digest of the tree that it is a delta over, or empty."""

    template: bytes
    files: int
    total_bytes: int
    parts: tuple[Part, ...]


def order(path: bytes) -> bytes:
    """Sorts a directory before what it holds, and keeps each subtree together."""
    return path.replace(b"/", b"\0")


def digest_of(raw: bytes) -> bytes:
    return blake3(raw).digest()


def normalized(entries: Iterable[Entry]) -> list[Entry]:
    """Sorted, with hard links named after their first path; a link that lost its other names is a plain file."""
    result = sorted(entries, key=lambda e: order(e.path))
    groups: dict[bytes, list[int]] = {}
    for i, entry in enumerate(result):
        if entry.link:
            groups.setdefault(entry.link, []).append(i)
    for members in groups.values():
        first = result[members[0]]
        for i in members:
            link = first.path if len(members) > 1 else b""
            # One inode has one set of attributes: those of the name that comes first.
            result[i] = first._replace(path=result[i].path, link=link)
    return result


def split(entries: Sequence[Entry]) -> list[tuple[bytes, list[Entry]]]:
    """Parts of a sorted tree with paths relative to each, the rest (b"") first. Links keep their full paths."""
    rest: list[Entry] = []
    parts: list[tuple[bytes, list[Entry]]] = [(b"", rest)]
    i = 0
    while i < len(entries):
        entry = entries[i]
        if entry.kind in DIRS and entry.path.rpartition(b"/")[2] in PART_NAMES:
            below = entry.path + b"/"
            end = i + 1
            while end < len(entries) and entries[end].path.startswith(below):
                end += 1
            if end - i >= PART_ENTRIES:
                cut = len(below)
                parts.append((entry.path, [e._replace(path=e.path[cut:]) for e in entries[i:end]]))
                i = end
                continue
        rest.append(entry)
        i += 1
    return parts


def join(parts: Iterable[tuple[bytes, Sequence[Entry]]]) -> list[Entry]:
    """The whole tree from its parts. Raises StorageFailed `corrupt` when they do not make one."""
    whole: list[Entry] = []
    for path, entries in parts:
        if path:
            prefix = path + b"/"
            whole += [Entry(prefix + e[0] if e[0] else path, *e[1:]) for e in entries]
        else:
            whole += entries
    whole.sort(key=lambda e: order(e[0]))
    dirs = {e.path for e in whole if e.kind in DIRS}
    previous = None
    for path, *_ in whole:
        if path == previous or (path and path.rpartition(b"/")[0] not in dirs) or len(path) > MAX_PATH:
            raise _corrupt(f"parts do not fit together at {path[:200]!r}")
        previous = path
    if not whole or whole[0].path or whole[0].kind not in DIRS:
        raise _corrupt("a tree without a root directory")
    _check_links(whole)
    return whole


def _check_links(whole: Sequence[Entry]) -> None:
    first: dict[bytes, Entry] = {}
    for entry in whole:
        if not entry.link:
            continue
        leader = first.setdefault(entry.link, entry)
        if leader.path != entry.link or entry._replace(path=b"") != leader._replace(path=b""):
            raise _corrupt(f"names of one file differ at {entry.path[:200]!r}")


# A part: header, one record an entry, the variable bytes of all entries in the same order, the sets of xattrs.
_PART = struct.Struct("<4sIIQ")
_PART_MAGIC = b"DVM1"
_RECORD = struct.Struct("<HHBxHHHqQII")  # shared, suffix, kind, mode, uid, gid, mtime_ns, size, link, xattrs
_DIGEST = 32
_LINK_OUTSIDE = 1  # the group has names in other parts: its full path follows
_LINK_INSIDE = 2  # plus the number of the group's first entry


def render_part(path: bytes, entries: Sequence[Entry], *, with_times: bool = True) -> bytes:
    """Bytes of one part; the same entries always give the same bytes. `path` is the part's place in the tree."""
    prefix = path + b"/" if path else b""
    full = [prefix + e.path if e.path else path for e in entries]
    position = {p: i for i, p in enumerate(full)}
    outside = _links_outside(entries, position)
    xattr_sets: dict[tuple[tuple[bytes, bytes], ...], int] = {}
    records: list[bytes] = []
    heap: list[bytes] = []
    last = b""
    for e in entries:
        shared = _shared(last, e.path)
        heap.append(e.path[shared:])
        last = e.path
        size = e.size
        if e.kind is Kind.FILE:
            heap.append(e.digest)
        elif e.kind is Kind.SYMLINK:
            heap.append(e.target)
            size = len(e.target)
        link = 0
        if e.link in outside:
            link = _LINK_OUTSIDE
            heap.append(struct.pack("<H", len(e.link)) + e.link)
        elif e.link:
            link = _LINK_INSIDE + position[e.link]
        xattrs = xattr_sets.setdefault(e.xattrs, len(xattr_sets) + 1) if e.xattrs else 0
        time = e.mtime_ns if with_times else 0
        records.append(
            _RECORD.pack(shared, len(e.path) - shared, e.kind, e.mode, e.uid, e.gid, time, size, link, xattrs)
        )
    body = b"".join(heap)
    sets = b"".join(_render_xattrs(s) for s in xattr_sets)
    return _PART.pack(_PART_MAGIC, len(entries), len(xattr_sets), len(body)) + b"".join(records) + body + sets


def _links_outside(entries: Sequence[Entry], position: dict[bytes, int]) -> set[bytes]:
    # A group whose first name is here may still have names elsewhere, which only the whole tree knows: split() keeps
    # full paths, and a group that is listed whole here has its first name here. Names elsewhere repeat that path, and
    # join() puts them together again, so only a group that starts elsewhere must say where.
    return {e.link for e in entries if e.link and e.link not in position}


def _shared(a: bytes, b: bytes) -> int:
    end = min(len(a), len(b))
    if a[:end] == b[:end]:
        return end
    low, high = 0, end
    while low < high:
        middle = (low + high + 1) // 2
        if a[:middle] == b[:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _render_xattrs(xattrs: tuple[tuple[bytes, bytes], ...]) -> bytes:
    lines = [struct.pack("<HI", len(k), len(v)) + k + v for k, v in xattrs]
    return struct.pack("<H", len(lines)) + b"".join(lines)


def parse_part(path: bytes, raw: bytes, times: Sequence[int] = ()) -> list[Entry]:
    """The entries of a part, with these `times` where it has none itself.

    Raises StorageFailed `corrupt` for anything that render_part would not write.
    """
    try:
        return list(_parse_part(path, raw, times))
    except (struct.error, ValueError, IndexError) as error:
        raise _corrupt(f"a manifest that cannot be read: {error}") from error


def parse_objects(raw: bytes) -> list[bytes]:
    """Digests of the files of a part that have content, each once, in its order; faster than `parse_part`, and without
    its checks. Raises StorageFailed `corrupt`."""
    try:
        _, count, _, _ = _PART.unpack_from(raw)
        at = _PART.size + count * _RECORD.size
        found: dict[bytes, None] = {}
        for _, more, kind, _, _, _, _, size, link, _ in _RECORD.iter_unpack(raw[_PART.size : at]):
            at += more
            if kind == Kind.FILE and size:
                found[raw[at : at + _DIGEST]] = None
                at += _DIGEST
            elif kind == Kind.SYMLINK:
                at += size
            if link == _LINK_OUTSIDE:
                at += 2 + int.from_bytes(raw[at : at + 2], "little")
        return list(found)
    except struct.error as error:
        raise _corrupt(f"a manifest that cannot be read: {error}") from error


def _parse_part(path: bytes, raw: bytes, times: Sequence[int]) -> Iterator[Entry]:
    magic, count, set_count, heap_size = _PART.unpack_from(raw)
    heap_at = _PART.size + count * _RECORD.size
    sets_at = heap_at + heap_size
    if magic != _PART_MAGIC or count > MAX_ENTRIES or set_count > count or sets_at > len(raw):
        raise ValueError("bad header")
    if times and len(times) != count:
        raise ValueError("another number of times")
    heap = raw[heap_at:sets_at]
    xattr_sets = _parse_xattr_sets(raw[sets_at:], set_count)
    prefix = path + b"/" if path else b""
    full: list[bytes] = []
    at = 0
    last = last_order = b""
    kinds = {int(k): k for k in Kind}
    for shared, more, number, mode, uid, gid, mtime_ns, size, link, xattrs in _RECORD.iter_unpack(
        raw[_PART.size : heap_at]
    ):
        kind = kinds.get(number) or _refuse("kind")
        name = last[:shared] + heap[at : at + more]
        name_order = order(name)
        if len(name) != shared + more or (full and name_order <= last_order) or not _is_path(name):
            raise ValueError("bad path")
        at += more
        last, last_order = name, name_order
        digest = target = link_path = b""
        if kind is Kind.FILE:
            if size:
                digest = heap[at : at + _DIGEST]
                at += _DIGEST
                if len(digest) != _DIGEST or size > MAX_FILE:
                    raise ValueError("bad file")
        elif kind is Kind.SYMLINK:
            if not 0 < size <= MAX_TARGET:
                raise ValueError("bad symbolic link")
            target = heap[at : at + size]
            at += size
            if len(target) != size or b"\0" in target:
                raise ValueError("bad symbolic link")
            size = 0
        elif size:
            raise ValueError("a size where none is")
        if mode > 0o7777 or not (name or kind in DIRS) or (not full and path and name):
            raise ValueError("bad entry")
        full.append(prefix + name if name else path)
        if link:
            if kind in DIRS or kind is Kind.WHITEOUT:
                raise ValueError("a hard link to what cannot have one")
            if link == _LINK_OUTSIDE:
                (length,) = struct.unpack_from("<H", heap, at)
                link_path = heap[at + 2 : at + 2 + length]
                at += 2 + length
                if len(link_path) != length or not link_path or not _is_path(link_path):
                    raise ValueError("bad hard link")
            else:
                link_path = full[link - _LINK_INSIDE]
        time = times[len(full) - 1] if times else mtime_ns
        yield Entry(name, kind, mode, uid, gid, time, size, digest, target, link_path, xattr_sets[xattrs])
    if at != heap_size:
        raise ValueError("bytes left over")


def _refuse(what: str) -> Kind:
    raise ValueError(f"bad {what}")


def _parse_xattr_sets(raw: bytes, count: int) -> list[tuple[tuple[bytes, bytes], ...]]:
    sets: list[tuple[tuple[bytes, bytes], ...]] = [()]
    at = 0
    for _ in range(count):
        (lines,) = struct.unpack_from("<H", raw, at)
        at += 2
        pairs = []
        for _ in range(lines):
            name_size, value_size = struct.unpack_from("<HI", raw, at)
            name = raw[at + 6 : at + 6 + name_size]
            value = raw[at + 6 + name_size : at + 6 + name_size + value_size]
            at += 6 + name_size + value_size
            if len(name) != name_size or len(value) != value_size or not is_kept_xattr(name) or value_size > 65535:
                raise ValueError("bad xattr")
            pairs.append((name, value))
        if not pairs or any(a[0] >= b[0] for a, b in pairwise(pairs)):
            raise ValueError("xattrs out of order")
        sets.append(tuple(pairs))
    if at != len(raw):
        raise ValueError("bytes left over")
    return sets


def is_kept_xattr(name: bytes) -> bool:
    """Only these travel: `trusted.*` is how overlayfs speaks to itself, and nobody inside may write it."""
    return name == b"security.capability" or (name.startswith(b"user.") and 5 < len(name) <= MAX_NAME)


def _is_path(path: bytes) -> bool:
    if not path:
        return True
    if len(path) > MAX_PATH or b"\0" in path:
        return False
    names = path.split(b"/")
    return not (b"" in names or b"." in names or b".." in names) and max(map(len, names)) <= MAX_NAME


_ROOT = struct.Struct("<4s32sQQI")
_ROOT_MAGIC, _WITHOUT_TIMES = b"DVT2", b"DVT1"
_NAMED = struct.Struct("<H32s32sI")
_NAMED_WITHOUT_TIMES = struct.Struct("<H32sI")
_NONE = bytes(_DIGEST)


def render_root(root: Root) -> bytes:
    head = _ROOT.pack(_ROOT_MAGIC, root.template or _NONE, root.files, root.total_bytes, len(root.parts))
    named = (_NAMED.pack(len(p.path), p.digest, p.times or _NONE, p.entries) + p.path for p in root.parts)
    return head + b"".join(named)


def parse_root(raw: bytes) -> Root:
    """Raises StorageFailed `corrupt`."""
    try:
        magic, template, files, total_bytes, count = _ROOT.unpack_from(raw)
        if magic not in (_ROOT_MAGIC, _WITHOUT_TIMES) or not 1 <= count <= MAX_PARTS:
            raise ValueError("bad header")
        parts: list[Part] = []
        at = _ROOT.size
        for _ in range(count):
            if magic == _ROOT_MAGIC:
                length, digest, times, entries = _NAMED.unpack_from(raw, at)
                at += _NAMED.size
            else:
                length, digest, entries = _NAMED_WITHOUT_TIMES.unpack_from(raw, at)
                times = _NONE
                at += _NAMED_WITHOUT_TIMES.size
            path = raw[at : at + length]
            at += length
            if len(path) != length or not _is_path(path) or (parts and order(path) <= order(parts[-1].path)):
                raise ValueError("bad part")
            parts.append(Part(path, digest, entries, NO_DIGEST if times == _NONE else times))
        if at != len(raw) or parts[0].path or sum(p.entries for p in parts) > MAX_ENTRIES:
            raise ValueError("bad parts")
        return Root(b"" if template == _NONE else template, files, total_bytes, tuple(parts))
    except (struct.error, ValueError) as error:
        raise _corrupt(f"a root manifest that cannot be read: {error}") from error


def _corrupt(message: str) -> StorageFailed:
    return StorageFailed(message, code="corrupt", hint="restore the object store from its backup, or go back a save")
