"""Layers of images become trees, or are refused."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from dovecote.errors import Invalid
from dovecote.host.storage.bucket import open_bucket
from dovecote.host.storage.fold import Plan
from dovecote.host.storage.layers import LayerBounds, LayeredTree
from dovecote.host.storage.manifest import Entry, Kind
from dovecote.host.storage.trees import Trees
from dovecote.host.storage.whole import CacheSink, flattened

Member = tuple[str, dict[str, object], bytes]


def file(name: str, data: bytes = b"x", **more: object) -> Member:
    return name, more, data


def folder(name: str, **more: object) -> Member:
    return name, {"type": tarfile.DIRTYPE, "mode": 0o755, **more}, b""


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> Member:
    return name, {"type": kind, "linkname": target}, b""


def tar(*members: Member) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, more, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for field, value in more.items():
                setattr(info, field, value)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def diff_id(raw: bytes) -> str:
    return "sha256:" + hashlib.sha256(raw).hexdigest()


@pytest.fixture
def trees(tmp_path: Path) -> Iterator[Trees]:
    made = Trees(open_bucket(f"file://{tmp_path}/objects"), tmp_path / "cache")
    yield made
    made.close()


def apply(trees: Trees, *layers: bytes, bounds: LayerBounds | None = None) -> dict[str, Entry]:
    tree = LayeredTree(CacheSink(trees.cache), bounds or LayerBounds())
    for layer in layers:
        tree.apply(io.BytesIO(layer), diff_id=diff_id(layer))
    return {entry.path.decode(): entry for entry in tree.entries()}


@pytest.mark.parametrize("press", [bytes, gzip.compress, zstandard.ZstdCompressor().compress])
def test_a_layer_is_read_whatever_it_is_pressed_with(trees: Trees, press: object) -> None:
    raw = tar(file("etc/name", b"dove", uid=7, gid=8, mode=0o4755))
    tree = LayeredTree(CacheSink(trees.cache), LayerBounds())
    tree.apply(io.BytesIO(press(raw)), diff_id=diff_id(raw))  # type: ignore[operator]
    (root, etc, name) = tree.entries()
    assert (root.kind, etc.kind, etc.path) == (Kind.DIR, Kind.DIR, b"etc")
    assert (name.size, name.uid, name.gid, name.mode) == (4, 7, 8, 0o4755)
    assert CacheSink(trees.cache).keep(io.BytesIO(b"dove"), 4) == name.digest


def test_a_saved_image_can_be_mounted_from_a_host_with_an_empty_cache(tmp_path: Path, trees: Trees) -> None:
    """All contents went to the store, large ones too."""
    big = bytes(range(256)) * (20 << 12)
    found = apply(trees, tar(file("small", b"s"), file("big", big)))
    saved = trees.save_entries(list(found.values()))
    assert saved.total_bytes == len(big) + 1
    other = Trees(open_bucket(f"file://{tmp_path}/objects"), tmp_path / "other")
    other.ensure_image(saved.digest)
    other.verify_stored(saved.digest)
    digest = found["big"].digest.hex()
    assert (other.objects_dir / digest[:2] / digest[2:]).read_bytes() == big
    other.close()


def test_a_tree_of_the_same_files_adds_no_content(trees: Trees) -> None:
    data = b"content" * 5000
    first = trees.save_entries(list(apply(trees, tar(file("a", data))).values()))
    packs = sorted(stored.name for stored in trees._bucket.list("packs"))
    second = trees.save_entries(list(apply(trees, tar(file("a", data), file("b", data))).values()))
    assert second.digest != first.digest
    assert sorted(stored.name for stored in trees._bucket.list("packs")) == packs


def test_whiteouts_hide_what_is_below_and_nothing_of_their_own_layer(trees: Trees) -> None:
    below = tar(file("d/old"), file("d/sub/old"), file("gone/a"), file("kept"))
    above = tar(file("d/new"), file("d/.wh..wh..opq", b""), file("gone/.wh.a", b""), file(".wh.nothing", b""))
    assert sorted(apply(trees, below, above)) == ["", "d", "d/new", "gone", "kept"]
    above = tar(file("d/.wh..wh..opq", b""), file("d/new"), file(".wh.gone", b""), file("gone/again"))
    assert sorted(apply(trees, below, above)) == ["", "d", "d/new", "gone", "gone/again", "kept"]


def test_a_name_of_another_kind_replaces_all_that_was_there(trees: Trees) -> None:
    found = apply(trees, tar(file("d/a"), file("f")), tar(file("d", b"now a file"), folder("f")))
    assert sorted(found) == ["", "d", "f"]
    assert (found["d"].kind, found["f"].kind) == (Kind.FILE, Kind.DIR)


def test_hard_links_are_one_file_until_a_layer_replaces_a_name(trees: Trees) -> None:
    below = tar(file("a", b"one"), link("b", "a", tarfile.LNKTYPE), link("c", "./a", tarfile.LNKTYPE))
    found = apply(trees, below)
    assert {found[name].link for name in "abc"} == {b"a"}
    found = apply(trees, below, tar(file("a", b"two"), link("d", "a", tarfile.LNKTYPE)))
    assert (found["a"].link, found["d"].link, found["b"].link, found["c"].link) == (b"a", b"a", b"b", b"b")
    assert found["a"].digest == found["d"].digest != found["b"].digest
    trees.save_entries([found[name] for name in sorted(found)])


def test_a_name_below_a_linked_directory_lands_where_the_link_leads(trees: Trees) -> None:
    below = tar(folder("usr/lib"), link("lib", "usr/lib"), link("abs", "/usr/lib"))
    assert sorted(apply(trees, below, tar(file("lib/a"), file("abs/b")))) == [
        *("", "abs", "lib", "usr", "usr/lib", "usr/lib/a", "usr/lib/b"),
    ]


def test_capabilities_and_user_attributes_travel_and_nothing_of_overlayfs(trees: Trees) -> None:
    capability = b"\1\0\0\2" + bytes([0, 4]) + bytes(14)
    headers = {
        "SCHILY.xattr.security.capability": capability.decode("utf-8", "surrogateescape"),
        "SCHILY.xattr.user.note": "n",
        "SCHILY.xattr.trusted.overlay.redirect": "/etc",
    }
    found = apply(trees, tar(file("ping", pax_headers=headers)))
    assert found["ping"].xattrs == ((b"security.capability", capability), (b"user.note", b"n"))


def test_devices_are_left_out_and_named(trees: Trees) -> None:
    raw = tar(("dev/sda", {"type": tarfile.BLKTYPE, "devmajor": 8}, b""), file("a"))
    tree = LayeredTree(CacheSink(trees.cache), LayerBounds())
    tree.apply(io.BytesIO(raw), diff_id=diff_id(raw))
    assert [entry.path for entry in tree.entries()] == [b"", b"a", b"dev"]
    assert tree.notes == ["b'dev/sda': devices are not kept"]


@pytest.mark.parametrize(
    ("layer", "code"),
    [
        (tar(file("../up")), "bad_layer"),
        (tar(file("a/../../up")), "bad_layer"),
        (tar(link("out", "../.."), file("out/a")), "bad_layer"),
        (tar(link("l1", "l2"), link("l2", "l1"), file("l1/a")), "bad_layer"),
        (tar(link("h", "../../etc/shadow", tarfile.LNKTYPE)), "bad_layer"),
        (tar(link("h", "/etc/shadow", tarfile.LNKTYPE)), "bad_layer"),
        (tar(folder("d"), link("h", "d", tarfile.LNKTYPE)), "bad_layer"),
        (tar(file("f"), file("f/below")), "bad_layer"),
        (tar(file("d/.wh..", b"")), "bad_layer"),
        (tar(file("d/.wh...", b"")), "bad_layer"),
        (tar(file("n" * 256)), "bad_layer"),
        (tar(file("/".join(["n" * 200] * 20))), "bad_layer"),
        (tar(file("a", uid=65536)), "foreign_id"),
        (tar(file("a", gid=4294967294)), "foreign_id"),
        (tar(file("a", pax_headers={"SCHILY.xattr.user.x": "v" * (2 << 20)})), "bad_layer"),
        (tar(file("a", b"data" * 1000))[:1500], "bad_layer"),
        (gzip.compress(tar(file("a", b"data" * 1000)), mtime=0)[:-20], "bad_layer"),
        (b"no tar at all" * 100, "bad_layer"),
    ],
)
def test_a_hostile_or_broken_layer_is_refused(trees: Trees, layer: bytes, code: str) -> None:
    with pytest.raises(Invalid) as refused:
        apply(trees, layer)
    assert refused.value.code == code


def test_a_layer_that_is_not_what_the_image_names_is_refused(trees: Trees) -> None:
    tree = LayeredTree(CacheSink(trees.cache), LayerBounds())
    with pytest.raises(Invalid) as refused:
        tree.apply(io.BytesIO(tar(file("a"))), diff_id="sha256:" + "0" * 64)
    assert refused.value.code == "digest_mismatch"


def test_a_layer_that_unpacks_to_too_much_is_refused(trees: Trees) -> None:
    """In bytes of files, in bytes of anything, and in names."""
    bounds = LayerBounds(entries=100, total_bytes=1 << 20)
    bombs = [
        tar(file("zeros", bytes(2 << 20))),
        gzip.compress(tar() + bytes(4 << 20)),
        tar(*(file(f"n{i}", b"") for i in range(101))),
    ]
    for bomb in bombs:
        with pytest.raises(Invalid) as refused:
            apply(trees, bomb, bounds=bounds)
        assert refused.value.code == "too_large"


def test_a_delta_flattened_is_what_its_user_saw(trees: Trees) -> None:
    template = list(apply(trees, tar(file("a/x"), file("a/y"), file("b/z"), file("c"), file("keep"))).values())
    delta = [
        Entry(b"", Kind.DIR, 0o755),
        Entry(b"a", Kind.DIR, 0o700),
        Entry(b"a/x", Kind.WHITEOUT),
        Entry(b"b", Kind.OPAQUE, 0o755),
        Entry(b"b/new", Kind.FILE, 0o644),
        Entry(b"c", Kind.WHITEOUT),
    ]
    found = flattened(template, delta)
    assert [e.path for e in found] == [b"", b"a", b"a/y", b"b", b"b/new", b"keep"]
    assert [e.kind for e in found if e.path == b"b"] == [Kind.DIR]
    assert [e.mode for e in found if e.path == b"a"] == [0o700]


def test_flattening_reads_no_file_and_keeps_manifests_that_did_not_change(trees: Trees) -> None:
    modules = [file(f"app/node_modules/m{i}", b"m%d" % i) for i in range(80)]
    template = trees.save_entries(list(apply(trees, tar(*modules, file("old"), file("kept"))).values()))
    digest = CacheSink(trees.cache).keep(io.BytesIO(b"new content"), 11)
    changed = [
        Entry(b"", Kind.DIR, 0o755),
        Entry(b"new", Kind.FILE, 0o644, size=11, digest=digest),
        Entry(b"old", Kind.WHITEOUT),
    ]
    delta = trees._save(Plan(changed, [], ()), template=bytes.fromhex(template.digest), previous=None)
    packs = sorted(stored.name for stored in trees._bucket.list("packs"))
    whole = trees.flatten(delta.digest)
    assert sorted(stored.name for stored in trees._bucket.list("packs")) == packs
    paths = [entry.path for entry in trees.entries(whole.digest)]
    assert (b"new" in paths, b"old" in paths, b"kept" in paths, len(paths)) == (True, False, True, 85)
    parts = {part.path: part.digest for part in trees._root(template.digest).parts}
    flat = {part.path: part.digest for part in trees._root(whole.digest).parts}
    assert flat[b"app/node_modules"] == parts[b"app/node_modules"]
    assert flat[b""] != parts[b""]
    trees.verify_stored(whole.digest)
    with pytest.raises(Invalid):
        trees.flatten(whole.digest)


def test_a_whiteout_above_a_very_deep_directory_of_its_own_layer_hides_only_what_is_below(trees: Trees) -> None:
    deep = "/".join(["a"] * 1700)
    found = apply(trees, tar(file("a/old"), file("b/old")), tar(file(f"{deep}/new"), file(".wh.a", b"")))
    assert f"{deep}/new" in found
    assert "a/old" not in found
    assert "b/old" in found


@pytest.mark.parametrize("whiteout", [".wh.a", "a/.wh..wh..opq"])
def test_a_whiteout_keeps_a_file_whose_directory_only_a_layer_below_names(trees: Trees, whiteout: str) -> None:
    found = apply(trees, tar(folder("a"), folder("a/b"), file("a/b/old")), tar(file("a/b/new"), file(whiteout, b"")))
    assert {"a", "a/b", "a/b/new"} <= found.keys()
    assert "a/b/old" not in found
