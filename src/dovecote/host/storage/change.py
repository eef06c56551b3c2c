"""What changed in an upper since its mark, a snapshot: found without a walk, written as bytes, put on top of a tree."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from dovecote.errors import StorageFailed
from dovecote.host.storage.btrfs import Plain
from dovecote.host.storage.fold import Replacements, fold_name, kept, needed
from dovecote.host.storage.manifest import DIRS, MAX_PATH, Entry, Kind, normalized, order, parse_part, render_part
from dovecote.host.storage.pool import Touched
from dovecote.host.storage.rules import Rules
from dovecote.host.storage.scan import Bounds, Scan, has_marked_whiteouts, is_whole, join_path
from dovecote.host.storage.sources import Content, Source, filled


class TooTangled(Exception):
    """The change cannot be told apart by names alone; the whole upper has to be looked at."""


@dataclass(frozen=True)
class Change:
    """`replaced`: nothing of the tree stays there and below. `entries` come on top; each path is there once."""

    replaced: frozenset[bytes]
    entries: tuple[Entry, ...]
    sources: tuple[Source, ...] = ()  # content of entries that has yet to be read
    notes: tuple[str, ...] = ()

    def complete(self, contents: Mapping[bytes, Content]) -> Change:
        """With the content that reading `sources` gave."""
        entries = normalized(filled(self.entries, contents))
        return Change(self.replaced, tuple(entries), (), self.notes)


def plan_change(
    upper: bytes,
    mark: bytes,
    merged: bytes,
    changed: Iterable[Touched],
    *,
    id_base: int,
    rules: Rules,
    bounds: Bounds | None = None,
) -> Change:
    """`upper` and `mark` are snapshots of one upper, the mark the older; `merged` is as for `fold.plan_delta`.

    `changed` has everything in `upper` whose inode was written since the mark. A directory among them is compared
    with itself in the mark by name and inode; what it has that is new is taken, with all that is below it. A file with
    several names is taken with all of them. Raises TooTangled where it is not named by all of them, and what
    `plan_delta` raises.
    """
    scan = Scan(merged, upper, id_base, rules, bounds or Bounds())
    linked: set[int] = set()  # of all these, each name is in `changed`
    touched = dict(changed)
    plain = {path: each for path, each in touched.items() if each is not None}
    for path in sorted(touched, key=order):
        if len(path) > MAX_PATH:
            scan.note(path, "its path is too long")
            continue
        known = scan.entries.get(path)
        if (known is not None and not known.link) or rules.excludes(path):
            continue
        full = join_path(upper, path)
        if path in plain:
            scan.add_plain(path, full, plain[path])
            continue
        status = os.lstat(full)
        is_directory = stat.S_ISDIR(status.st_mode)
        if not is_directory and status.st_nlink > 1:
            linked.add(status.st_ino)
        if known is not None or (not is_directory and rules.drops(path)):
            continue
        if is_directory:
            _compare(scan, mark, path, status, plain)
        else:
            parent = path.rpartition(b"/")[0]
            fold_name(scan, path, full, status, {}, marked=has_marked_whiteouts(join_path(upper, parent)))
    _check_links(scan, linked)
    return Change(frozenset(scan.replaced), tuple(scan.entries.values()), tuple(scan.sources), tuple(scan.notes))


def _check_links(scan: Scan, linked: Collection[int]) -> None:
    """A file some of whose names are taken, and others are not, would become two."""
    assert scan.upper is not None
    groups: dict[bytes, list[bytes]] = {}
    for entry in scan.entries.values():
        if entry.link:
            groups.setdefault(entry.link, []).append(entry.path)
    for names in groups.values():
        try:
            status = os.lstat(join_path(scan.upper, names[0]))
        except FileNotFoundError:
            raise TooTangled from None  # below a directory that was moved, in the layer under it
        if status.st_ino not in linked and status.st_nlink != len(names):
            raise TooTangled


def _compare(scan: Scan, mark: bytes, path: bytes, status: os.stat_result, plain: Mapping[bytes, Plain]) -> None:
    """A directory that was there at the mark: its own attributes, and the names that came, went or changed hands."""
    assert scan.upper is not None
    full, older = join_path(scan.upper, path), join_path(mark, path)
    before = _names(older, status.st_ino)
    if before is None or is_whole(full) != is_whole(older):
        raise TooTangled  # it is new, so the directory above it has taken it; or it came to be hidden behind itself
    scan.add(path, Kind.DIR)
    if scan.rules.prunes(path):
        return
    marked = has_marked_whiteouts(full)
    go_on: list[bytes] = []
    for child, found in scan.names(scan.upper, path):
        known = before.pop(found.name, None)
        if known == found.inode():
            continue
        if known is not None:
            # Another one took its name. overlayfs marks a directory only where a lower one is to be hidden.
            scan.replaced.add(child)
        if _take(scan, child, found, plain, marked=marked):
            go_on.append(child)
    scan.replaced.update(path + b"/" + name if path else name for name in before)
    while go_on:
        folder = go_on.pop()
        if not scan.rules.prunes(folder):
            inside = has_marked_whiteouts(join_path(scan.upper, folder))
            for child, found in scan.names(scan.upper, folder):
                if _take(scan, child, found, plain, marked=inside):
                    go_on.append(child)


def _take(scan: Scan, path: bytes, name: os.DirEntry[bytes], plain: Mapping[bytes, Plain], *, marked: bool) -> bool:
    """As `fold_name`."""
    if path in plain:
        scan.add_plain(path, name.path, plain[path])
        return False
    return fold_name(scan, path, name.path, name.stat(follow_symlinks=False), {}, marked=marked)


def _names(directory: bytes, inode: int) -> dict[bytes, int] | None:
    """Inodes by name; None when the directory was not there, or was another one."""
    try:
        if os.lstat(directory).st_ino != inode:
            return None
        with os.scandir(directory) as names:
            return {name.name: name.inode() for name in names}
    except (FileNotFoundError, NotADirectoryError):
        return None


def combined(changes: Iterable[Change], rules: Rules) -> Change:
    """Several, the oldest first, as one. Takes one after the other: each may be of a hundred thousand names."""
    replaced: set[bytes] = set()
    entries: list[Entry] = []
    for change in changes:
        entries = _over(entries, change, rules)
        replaced |= change.replaced
    return Change(frozenset(replaced), tuple(entries))


def applied(
    tree: Sequence[Entry], change: Change, *, rules: Rules, in_template: Callable[[bytes], bool]
) -> list[Entry]:
    """The sorted delta that a sorted delta becomes."""
    return normalized(needed(_over(tree, change, rules), in_template))


def _over(entries: Sequence[Entry], change: Change, rules: Rules) -> list[Entry]:
    taken = {entry.path for entry in change.entries}
    staying = kept(entries, change.replaced, taken, rules)
    # Files with several names in the older tree and in the change are others, whatever their first names.
    staying = [e._replace(link=b"\0o" + e.link) if e.link else e for e in staying]
    # A directory that was opaque stays so until it is replaced: the upper only says that it has been there.
    replacements = Replacements(change.replaced)
    opaque = {e.path for e in entries if e.kind is Kind.OPAQUE and e.path in taken and e.path not in replacements}
    new = [e._replace(kind=Kind.OPAQUE) if e.path in opaque and e.kind in DIRS else e for e in change.entries]
    new = [e._replace(link=b"\0n" + e.link) if e.link else e for e in new]
    return sorted([*staying, *new], key=lambda e: order(e.path))


_HEAD = struct.Struct("<4sII")
_MAGIC = b"DVC1"
MAX_REPLACED = 1_000_000


def render_change(change: Change) -> bytes:
    """Bytes of a completed change."""
    replaced = sorted(change.replaced)
    part = render_part(b"", sorted(change.entries, key=lambda e: order(e.path)))
    names = b"".join(struct.pack("<H", len(path)) + path for path in replaced)
    return _HEAD.pack(_MAGIC, len(replaced), len(names)) + names + part


def parse_change(raw: bytes) -> Change:
    """Raises StorageFailed `corrupt`."""
    try:
        magic, count, size = _HEAD.unpack_from(raw)
        if magic != _MAGIC or count > MAX_REPLACED:
            raise ValueError("bad header")
        replaced: list[bytes] = []
        at = _HEAD.size
        for _ in range(count):
            (length,) = struct.unpack_from("<H", raw, at)
            replaced.append(raw[at + 2 : at + 2 + length])
            at += 2 + length
        if at != _HEAD.size + size or at > len(raw):
            raise ValueError("bad names")
    except (struct.error, ValueError) as error:
        raise StorageFailed(f"a change that cannot be read: {error}", code="corrupt") from error
    return Change(frozenset(replaced), tuple(parse_part(b"", raw[at:])))
