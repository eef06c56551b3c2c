"""Manifests: the same content gives the same bytes, and no bytes make the parser do worse than refuse."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovecote.errors import StorageFailed
from dovecote.host.storage.manifest import (
    DIRS,
    MTIME_RANGE,
    Entry,
    Kind,
    Part,
    Root,
    digest_of,
    join,
    normalized,
    parse_objects,
    parse_part,
    parse_root,
    render_part,
    render_root,
    split,
)
from dovecote.host.storage.stored import objects_of
from dovecote.host.storage.times import parse_times, render_times

NAMES = st.one_of(
    st.sampled_from([b"a", b"b", b"node_modules", b".venv", b"a.b", b"-", b"\xff\xfe", b"\n"]),
    st.binary(min_size=1, max_size=40).filter(lambda n: b"/" not in n and b"\0" not in n and n not in (b".", b"..")),
)
XATTRS = st.one_of(
    st.just(()),
    st.dictionaries(
        st.one_of(st.just(b"security.capability"), st.binary(min_size=1, max_size=9).map(lambda n: b"user." + n)),
        st.binary(max_size=30),
        min_size=1,
        max_size=3,
    ).map(lambda d: tuple(sorted(d.items()))),
)


@st.composite
def trees(draw: st.DrawFn) -> list[Entry]:
    """Whole trees, with hard links among their files."""
    found: dict[bytes, Entry] = {b"": Entry(b"", Kind.DIR, 0o755)}
    folders = [b""]
    files: list[bytes] = []
    for _ in range(draw(st.integers(0, 25))):
        folder = draw(st.sampled_from(folders))
        name = draw(NAMES)
        path = folder + b"/" + name if folder else name
        if path in found:
            continue
        kind = draw(st.sampled_from(list(Kind)))
        common = (
            draw(st.integers(0, 0o7777)),
            draw(st.integers(0, 65535)),
            draw(st.integers(0, 65535)),
            draw(st.integers(-(1 << 63), (1 << 63) - 1)),
        )
        if kind in DIRS:
            folders.append(path)
            found[path] = Entry(path, kind, *common, xattrs=draw(XATTRS))
        elif kind is Kind.FILE and files and draw(st.booleans()):
            first = draw(st.sampled_from(files))
            leader = found[first]
            found[first] = leader._replace(link=leader.link or b"\0" + first)
            found[path] = found[first]._replace(path=path)
        elif kind is Kind.FILE:
            size = draw(st.integers(0, 1 << 43))
            digest = digest_of(struct.pack("<Q", size)) if size else b""
            found[path] = Entry(path, kind, *common, size=size, digest=digest, xattrs=draw(XATTRS))
            files.append(path)
        elif kind is Kind.SYMLINK:
            target = draw(st.binary(min_size=1, max_size=60).filter(lambda t: b"\0" not in t))
            found[path] = Entry(path, kind, *common, target=target)
        else:
            found[path] = Entry(path, kind, *common)
    return normalized(found.values())


@given(trees())
def test_a_tree_comes_back_as_it_was(tree: list[Entry]) -> None:
    parts = [(path, parse_part(path, render_part(path, entries))) for path, entries in split(tree)]
    assert join(parts) == tree


@given(trees())
def test_what_a_manifest_points_at_is_known_before_it_is_read(tree: list[Entry]) -> None:
    for path, entries in split(tree):
        assert parse_objects(render_part(path, entries)) == objects_of(entries)


@given(trees(), st.randoms(use_true_random=False))
def test_bytes_do_not_depend_on_the_order_of_reading(tree: list[Entry], random) -> None:  # type: ignore[no-untyped-def]
    shuffled = [e._replace(link=b"\0" + e.link if e.link else b"") for e in tree]
    random.shuffle(shuffled)
    assert render_part(b"", normalized(shuffled)) == render_part(b"", tree)


@given(trees(), st.data())
def test_damaged_bytes_are_refused_or_another_tree(tree: list[Entry], data: st.DataObject) -> None:
    """Whatever happens to a manifest, the parser raises StorageFailed or returns entries, and nothing else."""
    raw = bytearray(render_part(b"", tree))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(raw)))
    for damaged in (bytes(raw), bytes(raw[:cut])):
        try:
            entries = parse_part(b"", damaged)
            assert parse_objects(damaged) == objects_of(entries)
            join([(b"", entries)])
        except StorageFailed as error:
            assert error.code == "corrupt"  # noqa: PT017 - a refusal is one of two good ends


@given(st.binary(max_size=300))
def test_any_bytes_are_refused(raw: bytes) -> None:
    for data in (raw, b"DVM1" + raw):
        try:
            parse_objects(data)
        except StorageFailed as error:
            assert error.code == "corrupt"  # noqa: PT017 - a refusal is one of two good ends
    for magic, parse in ((b"DVM1", lambda r: parse_part(b"", r)), (b"DVT1", parse_root), (b"DVT2", parse_root)):
        with pytest.raises(StorageFailed):
            parse(raw)
        try:
            parse(magic + raw)
        except StorageFailed as error:
            assert error.code == "corrupt"  # noqa: PT017 - a refusal is one of two good ends


@given(st.lists(st.integers(-(1 << 63), (1 << 63) - 1), max_size=90))
def test_times_come_back(times: list[int]) -> None:
    assert parse_times(render_times(times), len(times)) == times


@given(st.lists(st.integers(0, 9), min_size=1, max_size=9), st.data())
def test_damaged_times_are_refused_or_others(times: list[int], data: st.DataObject) -> None:
    raw = bytearray(render_times(times))
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    for damaged in (bytes(raw), bytes(raw[: data.draw(st.integers(0, len(raw)))])):
        try:
            found = parse_times(damaged, len(times))
        except StorageFailed as error:
            assert error.code == "corrupt"  # noqa: PT017 - a refusal is one of two good ends
        else:
            assert len(found) == len(times)
            assert all(time in MTIME_RANGE for time in found)


def test_trees_that_differ_in_times_have_one_manifest() -> None:
    tree = [file(b"%d" % number, mtime_ns=number) for number in range(9)]
    later = [entry._replace(mtime_ns=entry.mtime_ns + 5) for entry in tree]
    assert render_part(b"", tree, with_times=False) == render_part(b"", later, with_times=False)
    assert parse_part(b"", render_part(b"", tree, with_times=False)) == [e._replace(mtime_ns=0) for e in tree]


def test_counts_cannot_ask_for_memory() -> None:
    """A header that claims a billion entries is refused before anything is made for them."""
    for count, sets, heap in ((1_000_000_000, 0, 0), (0, 0, 1 << 60), (5, 6, 0), (1, 1, 0)):
        with pytest.raises(StorageFailed):
            parse_part(b"", struct.pack("<4sIIQ", b"DVM1", count, sets, heap))


def file(path: bytes, **more: object) -> Entry:
    return Entry(path, Kind.FILE, 0o644, size=1, digest=digest_of(path[-1:]), **more)  # type: ignore[arg-type]


def many(folder: bytes, count: int = 80) -> list[Entry]:
    return [Entry(folder, Kind.DIR, 0o755), *(file(folder + b"/f%03d" % i) for i in range(count))]


def test_dependencies_have_a_manifest_of_their_own() -> None:
    """It does not change with the code beside it, nor with the place where it is."""
    here = normalized([Entry(b"", Kind.DIR), Entry(b"a", Kind.DIR), *many(b"a/node_modules"), file(b"a/code.js")])
    there = normalized([Entry(b"", Kind.DIR), *many(b"node_modules"), file(b"other.js")])
    found = []
    for tree in (here, there):
        (rest, _), (path, entries) = split(tree)
        assert rest == b""
        found.append(render_part(path, entries))
    assert found[0] == found[1]


def test_small_dependencies_stay_with_the_rest() -> None:
    tree = normalized([Entry(b"", Kind.DIR), *many(b"node_modules", 5)])
    assert [path for path, _ in split(tree)] == [b""]


def test_links_across_parts_come_back() -> None:
    """One file with names inside and outside of node_modules, first here and then there."""
    for outside in (b"a", b"z"):
        entries = [Entry(b"", Kind.DIR), *many(b"node_modules")]
        entries += [file(b"node_modules/x", link=b"\0")._replace(digest=digest_of(b"l"))]
        entries += [file(outside, link=b"\0")._replace(digest=digest_of(b"l"))]
        tree = normalized(entries)
        parts = split(tree)
        assert len(parts) == 2
        assert join([(p, parse_part(p, render_part(p, e))) for p, e in parts]) == tree


def test_a_link_that_lost_its_other_names_is_a_plain_file() -> None:
    (only,) = normalized([file(b"a", link=b"gone")])
    assert only.link == b""


@pytest.mark.parametrize(
    "path", [b"..", b"a/../b", b"/a", b"a//b", b"a\0b", b"x" * 256, b"/".join([b"y" * 200] * 18), b"a/"]
)
def test_paths_that_lead_elsewhere_are_refused(path: bytes) -> None:
    raw = render_part(b"", [Entry(b"", Kind.DIR), Entry(path, Kind.FIFO)])
    with pytest.raises(StorageFailed):
        parse_part(b"", raw)


@pytest.mark.parametrize("name", [b"trusted.overlay.opaque", b"security.selinux", b"system.posix_acl_access", b"user."])
def test_xattrs_that_speak_to_the_kernel_are_refused(name: bytes) -> None:
    """A forged manifest cannot carry what overlayfs obeys."""
    raw = render_part(b"", [Entry(b"", Kind.DIR, xattrs=((name, b"y"),))])
    with pytest.raises(StorageFailed):
        parse_part(b"", raw)


def test_parts_that_do_not_fit_are_refused() -> None:
    root = Entry(b"", Kind.DIR)
    for parts in (
        [],
        [(b"", [file(b"a")])],
        [(b"", [root]), (b"no/parent", [root])],
        [(b"", [root, Entry(b"a", Kind.DIR)]), (b"a", [root])],
        [(b"", [root, file(b"a"), file(b"a/b")])],
        [(b"", [root, file(b"a", link=b"z")])],
    ):
        with pytest.raises(StorageFailed):
            join(parts)


DIGESTS = st.binary(min_size=32, max_size=32)
TIMES = st.one_of(st.just(b""), DIGESTS.filter(any))


@given(st.lists(st.tuples(NAMES, DIGESTS, TIMES), max_size=5, unique_by=lambda p: p[0]))
def test_a_root_comes_back(parts: list[tuple[bytes, bytes, bytes]]) -> None:
    named = tuple(Part(path, digest, 7, times) for path, digest, times in sorted(parts))
    root = Root(bytes([1]) * 32, 3, 1 << 40, (Part(b"", bytes(32), 1), *named))
    assert parse_root(render_root(root)) == root


def test_a_root_of_before_there_were_times_is_read() -> None:
    raw = struct.pack("<4s32sQQI", b"DVT1", bytes(32), 2, 9, 2)
    raw += struct.pack("<H32sI", 0, b"a" * 32, 3) + struct.pack("<H32sI", 1, b"b" * 32, 70) + b"v"
    assert parse_root(raw) == Root(b"", 2, 9, (Part(b"", b"a" * 32, 3), Part(b"v", b"b" * 32, 70)))
