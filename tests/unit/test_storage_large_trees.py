"""Trees of 200,000 files: manifests and images of them are made, and memory for it has a bound."""

import tracemalloc
from collections.abc import Iterator

import pytest

from dovecote.host.storage.erofs import BLOCK, render_image
from dovecote.host.storage.manifest import Entry, Kind, digest_of, join, parse_part, render_part, split

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
