"""Changes by manifests are those that two whole pictures show."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dovecote.host.storage.changes import changes
from dovecote.host.storage.manifest import DIRS, Entry, Kind, order

NAMES = st.sampled_from([b"a", b"b", b"a-"])


@st.composite
def trees(draw: st.DrawFn, *, is_delta: bool) -> list[Entry]:
    """Any small tree; directories hold others, and a delta may hide what is below."""
    found = {b"": Entry(b"", Kind.DIR, 0o755)}
    kinds = [Kind.FILE, Kind.DIR, Kind.SYMLINK, *([Kind.WHITEOUT, Kind.OPAQUE] if is_delta else [])]
    for _ in range(draw(st.integers(0, 10))):
        parent = draw(st.sampled_from(sorted(p for p, e in found.items() if e.kind in DIRS)))
        path = parent + b"/" + draw(NAMES) if parent else draw(NAMES)
        if path in found:
            continue
        kind = draw(st.sampled_from(kinds))
        size = draw(st.integers(1, 2)) if kind is Kind.FILE else 0
        found[path] = Entry(
            path,
            kind,
            0 if kind is Kind.WHITEOUT else draw(st.sampled_from([0o644, 0o755])),
            size=size,
            digest=bytes([size]) * 32 if size else b"",
            target=draw(st.sampled_from([b"x", b"y"])) if kind is Kind.SYMLINK else b"",
        )
    return sorted(found.values(), key=lambda e: order(e.path))


def picture(template: list[Entry], delta: list[Entry]) -> dict[str, tuple[object, ...]]:
    """One entry of the delta after the other is put over the template."""
    seen = {e.path: e for e in template}
    for entry in delta:
        if entry.kind is not Kind.DIR:
            seen = {p: e for p, e in seen.items() if not p.startswith(entry.path + b"/")}
        elif entry.path in seen and seen[entry.path].kind is not Kind.DIR:
            seen.pop(entry.path)
        if entry.kind is Kind.WHITEOUT:
            seen.pop(entry.path, None)
        else:
            seen[entry.path] = entry._replace(kind=Kind.DIR) if entry.kind is Kind.OPAQUE else entry
    return {"/" + p.decode(): (e.kind, (e.digest, e.target), e.mode) for p, e in seen.items()}


@given(trees(is_delta=False), trees(is_delta=True), trees(is_delta=True))
def test_changes_are_those_of_the_two_whole_pictures(template: list[Entry], old: list[Entry], new: list[Entry]) -> None:
    before, after = picture(template, old), picture(template, new)
    expected = {}
    for path in before.keys() | after.keys():
        if path not in before or path not in after:
            expected[path] = "added" if path in after else "removed"
        elif before[path] != after[path]:
            differs = [a != b for a, b in zip(before[path], after[path], strict=True)]
            expected[path] = ("type", "content", "attributes")[differs.index(True)]
    found = changes(template, old, new)
    assert {change.path: change.what for change in found} == expected
    assert len(found) == len(expected)
