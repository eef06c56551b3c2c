"""Trees of 200,000 files: manifests and images of them are made, and memory for it has a bound."""

import struct
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from dovecote.host.storage.bucket import open_bucket
from dovecote.host.storage.change import Change, render_change
from dovecote.host.storage.contents import BLOCK
from dovecote.host.storage.erofs import render_image
from dovecote.host.storage.frames import pack
from dovecote.host.storage.manifest import Entry, Kind, digest_of, join, parse_part, render_part, split
from dovecote.host.storage.stored import packed_locations
from dovecote.host.storage.trees import Trees

FILES = 200_000
FOLDERS = 200
BYTES_PER_ENTRY = 2000  # of memory, for a tree and what is made of it


@pytest.fixture(scope="module")
def entries() -> list[Entry]:
    """Half of it lies in a dependency directory, half beside it; every second file is empty."""
    return list(_tree())


def _tree() -> Iterator[Entry]:
    yield Entry(b"", Kind.DIR, 0o755)
    digests = [digest_of(b"%d" % i) for i in range(1000)]
    for top in (b"app", b"node_modules"):
        yield Entry(top, Kind.DIR, 0o755)
        for folder in range(FOLDERS):
            path = b"%s/%03d" % (top, folder)
            yield Entry(path, Kind.DIR, 0o755)
            for file in range(FILES // FOLDERS // 2):
                size = file % 2
                digest = digests[(folder + file) % 1000] if size else b""
                yield Entry(b"%s/%04d" % (path, file), Kind.FILE, 0o644, 1000, 1000, 10**18, size, digest)


def test_manifests_of_a_large_tree_come_back(entries: list[Entry]) -> None:
    parts = [(path, render_part(path, some)) for path, some in split(entries)]
    assert [path for path, _ in parts] == [b"", b"node_modules"]
    assert join((path, parse_part(path, raw)) for path, raw in parts) == entries


def test_an_image_of_a_large_tree_has_all_inodes_and_a_bounded_size(entries: list[Entry]) -> None:
    """Its first block counts them; a file takes a slot of some hundred bytes, whatever its content."""
    image = b"".join(render_image(entries, uuid=bytes(16)))
    assert int.from_bytes(image[1024 + 16 : 1024 + 24], "little") == len(entries)
    assert int.from_bytes(image[1024 + 36 : 1024 + 40], "little") * BLOCK == len(image)
    assert len(image) < 400 * len(entries)


def test_memory_for_an_image_is_bounded(entries: list[Entry]) -> None:
    """Pieces are handed out one by one: the image itself is never held."""
    some = entries[: len(entries) // 4]
    tracemalloc.start()
    try:
        for _ in render_image(some, uuid=bytes(16)):
            pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < BYTES_PER_ENTRY * len(some)


def test_memory_for_folding_does_not_grow_with_the_number_of_changes(tmp_path: Path) -> None:
    """Somebody may touch the same files again and again: each slot of the log then names all of them."""
    for name in ("template", "upper"):
        (tmp_path / name).mkdir()
    trees = Trees(open_bucket("memory:"), tmp_path / "cache")
    template = trees.save_directory(tmp_path / "template").digest
    tree = trees.save_delta(tmp_path / "upper", tmp_path / "upper", id_base=0, template=template).digest
    files = 5_000
    touched = [Entry(b"%05d" % n, Kind.FILE, 0o644) for n in range(files)]
    raw = pack(render_change(Change(frozenset(), (Entry(b"", Kind.DIR, 0o755), *touched))))
    payload = struct.pack("<I", len(raw)) + raw + packed_locations([], {})
    tracemalloc.start()
    try:
        assert trees.fold(tree, [payload] * 24).files == files
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        trees.close()
    assert most < files * BYTES_PER_ENTRY
