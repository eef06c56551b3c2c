"""Plans what a tree holds: from a plain directory, or from what one life of an instance changed."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from dovecote.host.storage.manifest import DIRS, Entry, Kind, normalized, order
from dovecote.host.storage.rules import DEFAULT_RULES, Rules
from dovecote.host.storage.scan import Bounds, Scan, has_marked_whiteouts, is_whiteout, is_whole, join_path
from dovecote.host.storage.sources import Content, Source, filled


@dataclass(frozen=True)
class Plan:
    """A tree whose files have yet to be read. `complete` it with what reading `sources` gave."""

    entries: list[Entry]
    sources: list[Source]
    notes: tuple[str, ...]  # what was left out, and why

    def complete(self, contents: Mapping[bytes, Content]) -> list[Entry]:
        """The tree, sorted and whole."""
        return normalized(filled(self.entries, contents))


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
