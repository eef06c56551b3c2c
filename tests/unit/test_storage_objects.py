"""Objects, packs and rules: what may be lost is learned again, and what is damaged is refused."""

import errno
import os
import sqlite3
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from dovecote.errors import StorageFailed
from dovecote.host.storage.bucket import Bucket, local_bucket, open_bucket
from dovecote.host.storage.fold import plan_directory
from dovecote.host.storage.frames import PIECE_BYTES, pack, unpack
from dovecote.host.storage.index import Index, Piece
from dovecote.host.storage.locations import parse_locations, render_locations
from dovecote.host.storage.manifest import digest_of
from dovecote.host.storage.objects import ObjectCache
from dovecote.host.storage.packs import PACK_BYTES, Packs, PackWriter
from dovecote.host.storage.rules import DEFAULT_RULES
from dovecote.host.storage.scan import container_capability
from dovecote.host.storage.sources import SMALL, Source

PACK = "packs/ab/" + "c" * 62
DIGESTS = [digest_of(b"%d" % i) for i in range(3)]
LOCATED = {d: tuple(Piece(PACK, 10 * i + n, 5, 7) for n in range(i + 1)) for i, d in enumerate(DIGESTS)}


def packs_at(directory: Path, bucket: Bucket) -> Packs:
    index = Index(directory / "index.sqlite", identity=bucket.identity())
    return Packs(bucket, index, ObjectCache(directory, index))


def source(directory: Path, name: str, data: bytes) -> Source:
    (directory / name).write_bytes(data)
    return Source(name.encode(), os.fsencode(directory / name), len(data))


def test_locations_come_back() -> None:
    assert parse_locations(render_locations(DIGESTS, LOCATED), DIGESTS) == LOCATED


@given(st.data())
def test_damaged_locations_are_refused_or_others(data: st.DataObject) -> None:
    raw = bytearray(render_locations(DIGESTS, LOCATED))
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(raw)))
    for damaged in (bytes(raw), bytes(raw[:cut])):
        try:
            found = parse_locations(damaged, DIGESTS)
        except StorageFailed as error:
            assert error.code == "corrupt"  # noqa: PT017 - a refusal is one of two good ends
        else:
            assert found.keys() == set(DIGESTS)
            assert all(p.raw <= PIECE_BYTES for pieces in found.values() for p in pieces)


def test_a_frame_cannot_grow() -> None:
    """A megabyte of zeros in forty bytes is not unpacked when ten bytes were recorded."""
    frame = pack(bytes(1 << 20))
    assert unpack(frame, 1 << 20) == bytes(1 << 20)
    without_size = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1 << 20))
    for bad, raw in ((frame, 10), (without_size, 10), (frame[:-3], 1 << 20), (b"no frame", 8), (b"", 0)):
        with pytest.raises(StorageFailed):
            unpack(bad, raw)


def test_a_file_larger_than_a_pack_is_split_and_joined(tmp_path: Path) -> None:
    """It lies in several packs, each of bounded size, and comes back whole on another host."""
    bucket = open_bucket("memory:")
    data = b"".join(os.urandom(1 << 20) for _ in range((PACK_BYTES + PIECE_BYTES * 2 >> 20) + 1))
    writer = PackWriter(packs_at(tmp_path / "a", bucket))
    contents = writer.absorb([source(tmp_path, "large", data), source(tmp_path, "small", b"small")])
    writer.flush()
    digest = contents[b"large"].digest
    assert digest == digest_of(data)
    assert contents[b"large"].size == len(data)
    assert len({p.pack for p in writer.located[digest]}) > 1
    assert all(s.size < PACK_BYTES + 2 * PIECE_BYTES for s in bucket.list("packs"))
    cold = packs_at(tmp_path / "b", bucket)
    cold.fetch(writer.located)
    assert cold.cache.path(digest).read_bytes() == data
    assert cold.cache.missing(writer.located) == []


def test_equal_files_are_stored_once(tmp_path: Path) -> None:
    bucket = open_bucket("memory:")
    packs = packs_at(tmp_path, bucket)
    writer = PackWriter(packs)
    data = os.urandom(1 << 20)
    writer.absorb([source(tmp_path, f"f{i}", data) for i in range(200)])
    writer.flush()
    assert writer.added_bytes < 2 * len(data)
    again = PackWriter(packs)
    again.absorb([source(tmp_path, "f", data)])
    again.flush()
    assert again.added_bytes == 0


def test_a_lost_index_costs_bytes_and_nothing_else(tmp_path: Path) -> None:
    bucket = open_bucket("memory:")
    first = packs_at(tmp_path, bucket)
    writer = PackWriter(first)
    content = writer.absorb([source(tmp_path, "f", b"content" * 100)])[b"f"]
    writer.flush()
    first.index.close()
    (tmp_path / "index.sqlite").write_bytes(b"this is not a database, and long enough to be noticed" * 100)
    for left in ("index.sqlite-wal", "index.sqlite-shm"):
        (tmp_path / left).unlink(missing_ok=True)
    second = packs_at(tmp_path, bucket)
    assert second.locate([content.digest]) == {}
    writer = PackWriter(second)
    writer.absorb_cached([content.digest])
    writer.flush()
    assert second.locate([content.digest]).keys() == {content.digest}


def test_an_index_belongs_to_one_store(tmp_path: Path) -> None:
    """Pointing a host at another store must not make it believe that its content is there."""
    index = Index(tmp_path / "i", identity="one")
    index.add(LOCATED)
    assert index.locate(DIGESTS) == LOCATED
    index.close()
    assert Index(tmp_path / "i", identity="two").locate(DIGESTS) == {}


def test_a_pack_that_is_gone_takes_its_objects_along(tmp_path: Path) -> None:
    index = Index(tmp_path / "i", identity="one")
    other = {digest_of(b"x"): (Piece(PACK[:-1] + "d", 0, 1, 1),)}
    index.add({**LOCATED, **other})
    index.forget_pack(PACK)
    index.add({digest_of(b"y"): (Piece(PACK[:-1] + "e", 0, 1, 1),)})  # must not get the old one's number
    assert index.locate([*DIGESTS, *other]) == other


@pytest.mark.parametrize("keeps", [False, True])
def test_large_files_are_saved_a_piece_at_a_time(tmp_path: Path, keeps: bool) -> None:
    """Two files at once, which do not get smaller, in less memory than one of them has."""
    sources = []
    for name in ("one", "two"):
        with (tmp_path / name).open("wb") as file:
            for _ in range(PIECE_BYTES * 4 >> 20):
                file.write(os.urandom(1 << 20))
        sources.append(Source(name.encode(), os.fsencode(tmp_path / name), PIECE_BYTES * 4))
    packs = packs_at(tmp_path, local_bucket(tmp_path / "store"))
    writer = PackWriter(packs, keeps=keeps)
    tracemalloc.start()
    try:
        contents = writer.absorb(sources)
        writer.flush()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < PIECE_BYTES * 2.8
    assert all(len(writer.located[content.digest]) == 4 for content in contents.values())


def test_what_is_lost_is_forgotten_bit_by_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects in packs that are gone, and checks of other boots; what came while the store was listed stays."""
    lost, stays, new = (f"{PACK[:-1]}{letter}" for letter in "def")
    digests = [digest_of(b"%d" % number) for number in range(30)]
    monkeypatch.setattr("dovecote.host.storage.index.boot_id", lambda: "before")
    index = Index(tmp_path / "i", identity="one")
    index.add_checked(digests)
    index.close()
    monkeypatch.setattr("dovecote.host.storage.index.boot_id", lambda: "now")
    index = Index(tmp_path / "i", identity="one")
    index.add({digest: (Piece(stays if number % 3 else lost, number, 1, 1),) for number, digest in enumerate(digests)})
    index.add_checked(digests[:5])

    def listed() -> list[str]:
        index.add({digests[0]: (Piece(new, 0, 1, 1),)})
        return [stays]

    assert index.forget_lost(listed, most=7) < 20
    assert sum(index.forget_lost(lambda: [stays, new], most=7) for _ in range(6)) > 0
    assert index.forget_lost(lambda: [stays, new]) == 0
    kept = {digest for number, digest in enumerate(digests) if number % 3 or not number}
    assert index.locate(digests).keys() == kept
    assert index.checked(digests) == set(digests[:5])
    index.close()
    with sqlite3.connect(tmp_path / "i") as db:
        assert {digest for (digest,) in db.execute("SELECT digest FROM objects")} == kept
        assert db.execute("SELECT count(*) FROM checked").fetchone() == (5,)


def test_a_half_written_object_is_not_there(tmp_path: Path) -> None:
    packs = packs_at(tmp_path, open_bucket("memory:"))
    digest = digest_of(b"whole")
    with pytest.raises(RuntimeError), packs.cache.writer() as part:  # noqa: PT012
        part.write(b"who")
        raise RuntimeError
    assert packs.cache.missing([digest]) == [digest]
    assert not list((tmp_path / "tmp").iterdir())


def test_an_object_that_was_changed_is_missing_to_the_next_boot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packs = packs_at(tmp_path, open_bucket("memory:"))
    digest = digest_of(b"whole")
    packs.cache.put(digest, b"whole")
    packs.cache.note_checked([digest])
    packs.index.close()
    packs.cache.path(digest).write_bytes(b"hole!")
    monkeypatch.setattr("dovecote.host.storage.index.boot_id", lambda: "another boot")
    again = packs_at(tmp_path, open_bucket("memory:"))
    assert again.cache.missing([digest]) == [digest]
    assert not again.cache.path(digest).exists()


def test_objects_are_for_root_only(tmp_path: Path) -> None:
    packs = packs_at(tmp_path, open_bucket("memory:"))
    packs.cache.put(digest_of(b"x"), b"x")
    assert packs.cache.path(digest_of(b"x")).stat().st_mode & 0o7777 == 0o600
    assert packs.cache.objects_dir.stat().st_mode & 0o7777 == 0o700


@pytest.mark.parametrize(
    ("path", "kept"),
    [
        (b"run", True),
        (b"run/lock", False),
        (b"run/a/b", False),
        (b"running/a", True),
        (b"home/run/a", True),
        (b"var/cache/apt/pkgcache.bin", False),
        (b"var/cache/other", True),
        (b"home/u/.npm/_cacache/x/y", False),
        (b".npm/_cacache/x", False),
        (b"home/u/.npm/_cacache", True),
        (b"home/u/.npm/_logs/debug-0.log", False),
        (b"tmp/node-compile-cache/v24/0c", False),
        (b"home/tmp/node-compile-cache/v24", True),
        (b"home/u/x.npm/_cacache/y", True),
        (b"root/.cache/pip/http/a\nb", False),
        (b"root/.cache/piper/a", True),
        (b"a\nb/.cache/pip/x", False),
        (b"", True),
    ],
)
def test_default_rules(path: bytes, kept: bool) -> None:
    assert DEFAULT_RULES.excludes(path) is not kept


def test_capabilities_are_kept_for_container_root_only() -> None:
    second = bytes([1, 0, 0, 2]) + bytes(range(16))
    third = bytes([1, 0, 0, 3]) + bytes(range(16)) + (100_000).to_bytes(4, "little")
    assert container_capability(third, 100_000) == second
    assert container_capability(second, 0) == second
    for value, base in ((third, 200_000), (second, 100_000), (b"", 0), (third[:-1], 100_000)):
        assert container_capability(value, base) is None


def test_times_beyond_the_format_are_clamped(tmp_path: Path) -> None:
    (tmp_path / "far").write_bytes(b"")
    os.utime(tmp_path / "far", (15_000_000_000, 15_000_000_000))  # in the year 2445
    entries = plan_directory(os.fsencode(tmp_path)).complete({})
    assert [e.mtime_ns for e in entries if e.path == b"far"] == [(1 << 63) - 1]


def test_many_threads_may_put_at_once(tmp_path: Path) -> None:
    """Each object is whole under its own name, whoever else writes it, and nothing half-written stays behind."""
    cache = packs_at(tmp_path, open_bucket("memory:")).cache
    contents = [bytes([1 + i % 251]) * (i % 9) + b"%d" % i for i in range(2000)] + [bytes(9), bytes(5000)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda data: cache.put(digest_of(data), data), contents * 2))
    assert all(cache.path(digest_of(data)).read_bytes() == data for data in contents)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_store_that_is_full_fails_the_save_of_a_large_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often it is tried: no piece of it may count as the whole."""
    bucket = local_bucket(tmp_path / "store")
    packs = packs_at(tmp_path / "cache", bucket)
    large = source(tmp_path, "large", os.urandom(PIECE_BYTES * 2 + 1))
    put, room = bucket.put_new, [1]

    def full(name: str, data: bytes) -> None:
        if not room:
            raise StorageFailed("no space left", code="disk_full")
        room.pop()
        put(name, data)

    monkeypatch.setattr(bucket, "put_new", full)
    for _ in range(2):
        with pytest.raises(StorageFailed) as caught:
            PackWriter(packs).absorb([large])
        assert caught.value.code == "disk_full"
    monkeypatch.setattr(bucket, "put_new", put)
    writer = PackWriter(packs)
    content = writer.absorb([large])[b"large"]
    writer.flush()
    assert sum(piece.raw for piece in writer.located[content.digest]) == large.size == content.size


def test_a_full_disk_leaves_no_half_written_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = packs_at(tmp_path, open_bucket("memory:")).cache

    def full(fd: int, data: bytes) -> None:
        os.write(fd, data[:3])
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr("dovecote.host.storage.objects.write_all", full)
    with pytest.raises(StorageFailed) as refused:
        cache.put(digest_of(b"content"), b"content")
    assert refused.value.code == "disk_full"
    assert cache.missing([digest_of(b"content")]) == [digest_of(b"content")]
    assert list((tmp_path / "tmp").iterdir()) == []


def test_what_runs_is_stored_without_a_copy_on_this_host(tmp_path: Path) -> None:
    """A checkpoint's small files are in the store, not in the cache; they come into it when they are asked for."""
    packs = packs_at(tmp_path, open_bucket("memory:"))
    writer = PackWriter(packs, keeps=False)
    content = writer.absorb([source(tmp_path, "f", b"content" * 100)])[b"f"]
    writer.flush()
    assert packs.cache.missing([content.digest]) == [content.digest]
    packs.fetch(packs.locate([content.digest]))
    assert packs.cache.path(content.digest).read_bytes() == b"content" * 100


def test_a_file_that_grew_since_it_was_listed_is_taken_whole(tmp_path: Path) -> None:
    packs = packs_at(tmp_path, open_bucket("memory:"))
    listed = source(tmp_path, "f", b"as it was")
    for data in (b"as it was, and some more", os.urandom(SMALL + 1), b"less"):
        (tmp_path / "f").write_bytes(data)
        content = PackWriter(packs).absorb([listed])[b"f"]
        assert (content.digest, content.size) == (digest_of(data), len(data))
