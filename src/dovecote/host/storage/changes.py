"""What differs between two deltas over one template, by their manifests; no file is read."""

from __future__ import annotations

from collections.abc import Sequence

from dovecote.host.storage.manifest import DIRS, Entry, Kind, order
from dovecote.host.storage.whole import flattened
from dovecote.model.trees import Change


def changes(template: Sequence[Entry], old: Sequence[Entry], new: Sequence[Entry]) -> list[Change]:
    """In the order of a tree. Times and hard links do not count; a directory only for its attributes."""
    before = {e.path: e for e in flattened(template, old)}
    after = {e.path: e for e in flattened(template, new)}
    paths = sorted((p for p in before.keys() | after.keys() if before.get(p) != after.get(p)), key=order)
    found = (_change(path, before.get(path), after.get(path)) for path in paths)
    return [change for change in found if change is not None]


def _change(path: bytes, old: Entry | None, new: Entry | None) -> Change | None:
    what = _what(old, new)
    if what is None:
        return None
    # A name that is not UTF-8 is shown, not kept.
    return Change("/" + path.decode("utf-8", "backslashreplace"), what, _size(old), _size(new))


def _what(old: Entry | None, new: Entry | None) -> str | None:
    if old is None or new is None:
        return "added" if old is None else "removed"
    if _type(old) != _type(new):
        return "type"
    if (old.size, old.digest, old.target) != (new.size, new.digest, new.target):
        return "content"
    if (old.mode, old.uid, old.gid, old.xattrs) != (new.mode, new.uid, new.gid, new.xattrs):
        return "attributes"
    return None


def _type(entry: Entry) -> Kind:
    return Kind.DIR if entry.kind in DIRS else entry.kind


def _size(entry: Entry | None) -> int | None:
    return None if entry is None else entry.size
