"""A host that has nothing of a tree: thousands of contents come into one image first, and into the cache later."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from dovecote.errors import StorageFailed
from dovecote.host.storage import manifests, mounts, settling
from dovecote.host.storage.bucket import Bucket
from dovecote.host.storage.image_files import MANY
from dovecote.host.storage.trees import Trees
from tests.system.tree_files import fill
from tests.system.tree_rig import Rig, assert_same, differences, picture

pytestmark = pytest.mark.system


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.mkdir(mode=0o755)
    fill(path, files=MANY + 200)
    for name in ("twice", "twice-too"):  # one content under two names, each a file of its own
        (path / name).write_bytes(b"the same" * 1000)
    return path


def objects(trees: Trees) -> int:
    return sum(1 for path in trees.objects_dir.rglob("*") if path.is_file())


def settled(trees: Trees, image: Path, before: int) -> None:
    deadline = time.monotonic() + 60
    while image.stat().st_ino == before:
        assert time.monotonic() < deadline, "the image was not replaced"
        time.sleep(0.02)


def saved(bucket: Bucket, source: Path, cache: Path) -> str:
    trees = Trees(bucket, cache)
    try:
        return trees.save_directory(source).digest
    finally:
        trees.close()


def test_a_tree_is_whole_before_its_objects_are_in_the_cache_and_after(
    rig: Rig, bucket: Bucket, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = saved(bucket, source, tmp_path / "first")
    monkeypatch.setattr(settling, "REST", 2.0)
    cold = Trees(bucket, tmp_path / "cold")
    try:
        image = cold.ensure_image(digest)
        number = image.stat().st_ino
        assert objects(cold) == 0
        subprocess.run(["fsck.erofs", image], check=True, timeout=60, capture_output=True)
        first = rig.look(cold, digest)
        assert_same(source, first)
        settled(cold, image, number)
        assert objects(cold) > MANY
        assert image.stat().st_size < 4 << 20  # it points at the objects now
        assert_same(source, rig.look(cold, digest))
        assert_same(source, first)  # and who has the old one keeps it
    finally:
        cold.close()


def test_an_upper_over_such_an_image_folds_to_the_same_tree(
    rig: Rig, bucket: Bucket, source: Path, tmp_path: Path
) -> None:
    digest = saved(bucket, source, tmp_path / "first")
    results = []
    for name in ("first", "cold"):
        trees = Trees(bucket, tmp_path / name)
        try:
            life = rig.life(trees, digest, None)
            (life.root / "a/b/c/f1").chmod(0o600)
            (life.root / "a/b/c").rename(life.root / "a/moved")
            (life.root / "bin/tool").unlink()
            (life.root / "twice").write_bytes(b"other")
            seen, delta = life.end(), life.save()
            assert differences(seen, picture(rig.look(trees, digest, delta.digest)), links=False) == []
            results.append([(e.path, e.kind, e.digest) for e in trees.entries(delta.digest)])
        finally:
            rig.close()
            trees.close()
    assert results[0] == results[1]


def test_files_have_the_same_inode_numbers_in_every_image_of_a_tree(
    bucket: Bucket, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upper remembers by them where its files came from, and lies over the other image after a reboot."""
    os.setxattr(source / "twice", "user.note", b"n")
    digest = saved(bucket, source, tmp_path / "first")
    monkeypatch.setattr(settling, "REST", 1.0)
    cold = Trees(bucket, tmp_path / "cold")
    try:
        image = cold.ensure_image(digest)
        filled = tmp_path / "filled"
        filled.hardlink_to(image)
        settled(cold, image, filled.stat().st_ino)
        assert filled.stat().st_size > image.stat().st_size
        assert _numbers(filled, tmp_path) == _numbers(image, tmp_path)
    finally:
        cold.close()


def _numbers(image: Path, directory: Path) -> dict[str, int]:
    at = directory / "at"
    at.mkdir(exist_ok=True)
    mounts.mount_image(image, at)
    try:
        return {str(each.relative_to(at)): each.lstat().st_ino for each in at.rglob("*")}
    finally:
        mounts.unmount(at)


def test_a_sparse_file_stays_so_on_a_cold_host(rig: Rig, bucket: Bucket, source: Path, tmp_path: Path) -> None:
    for name, size in (("huge", 256 << 20), ("large", 8 << 20)):
        with (source / name).open("wb") as file:
            file.seek(size // 2 + 4095)
            file.write(name.encode())
            file.truncate(size)
    digest = saved(bucket, source, tmp_path / "first")
    cold = Trees(bucket, tmp_path / "cold")
    try:
        found = cold.ensure_image(digest).stat()
        assert found.st_size > 256 << 20
        assert found.st_blocks * 512 < 64 << 20
        assert_same(source, rig.look(cold, digest))
    finally:
        rig.close()
        cold.close()


def test_a_process_that_ended_before_it_came_to_it_leaves_it_to_the_next(
    rig: Rig, bucket: Bucket, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = saved(bucket, source, tmp_path / "first")
    cold = Trees(bucket, tmp_path / "cold")
    number = cold.ensure_image(digest).stat().st_ino
    cold.close()
    monkeypatch.setattr(settling, "REST", 0.0)
    again = Trees(bucket, tmp_path / "cold")
    try:
        image = again.ensure_image(digest)
        settled(again, image, number)
        assert_same(source, rig.look(again, digest))
    finally:
        again.close()


def test_the_few_objects_that_are_here_change_nothing(rig: Rig, bucket: Bucket, source: Path, tmp_path: Path) -> None:
    """Whether they are found or fetched again, the tree is whole, and so is the cache in the end."""
    digest = saved(bucket, source, tmp_path / "first")
    for share in (1, 300, 2):  # one object of all, of every 300, every second one
        cold = Trees(bucket, tmp_path / f"cold{share}")
        try:
            every = list(cold.objects_by_manifest(digest))
            known = [object for _, objects in every for object in objects]
            for name in known[:: len(known) if share == 1 else share]:
                path = cold.object_file(name)
                path.write_bytes((tmp_path / "first/objects" / path.relative_to(cold.objects_dir)).read_bytes())
            assert_same(source, rig.look(cold, digest))
        finally:
            rig.close()
            cold.close()


def test_manifests_that_cannot_be_read_leave_no_image(
    bucket: Bucket, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Contents are on their way by then; nothing of them stays."""
    digest = saved(bucket, source, tmp_path / "first")

    def refuse(*_: object) -> None:
        raise StorageFailed("parts do not fit together", code="corrupt")

    cold = Trees(bucket, tmp_path / "cold")
    try:
        with monkeypatch.context() as patched:
            patched.setattr(manifests, "join", refuse)
            with pytest.raises(StorageFailed, match=digest):
                cold.ensure_image(digest)
        assert not list((tmp_path / "cold/images").iterdir())
        assert cold.ensure_image(digest).exists()
    finally:
        cold.close()


def test_a_store_that_fails_meanwhile_leaves_no_image(
    bucket: Bucket, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = saved(bucket, source, tmp_path / "first")

    def fail(*_: object) -> bytes:
        raise StorageFailed("no answer", code="store_unreachable")

    cold = Trees(bucket, tmp_path / "cold")
    try:
        with monkeypatch.context() as patched:
            patched.setattr(bucket, "get_range", fail)
            with pytest.raises(StorageFailed) as caught:
                cold.ensure_image(digest)
        assert caught.value.code == "store_unreachable"
        assert not list((tmp_path / "cold/images").iterdir())
        assert cold.ensure_image(digest).exists()
    finally:
        cold.close()


def test_an_index_that_is_wrong_is_helped_by_the_store(rig: Rig, bucket: Bucket, source: Path, tmp_path: Path) -> None:
    digest = saved(bucket, source, tmp_path / "first")
    cold = Trees(bucket, tmp_path / "cold")
    try:
        other = Trees(bucket, tmp_path / "first")
        known = [name for _, objects in other.objects_by_manifest(digest) for name in objects]
        located = other._index.locate(known)
        other.close()
        wrong = {name: tuple(piece._replace(offset=piece.offset + 1) for piece in located[name]) for name in known[:50]}
        cold._index.add(located | wrong)
        assert_same(source, rig.look(cold, digest))
    finally:
        rig.close()
        cold.close()


def test_a_spoiled_pack_leaves_no_image(bucket: Bucket, source: Path, tmp_path: Path) -> None:
    digest = saved(bucket, source, tmp_path / "first")
    pack = max((tmp_path / "store/packs").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    content = pack.read_bytes()
    pack.write_bytes(content[:100] + bytes(byte ^ 0xFF for byte in content[100:400]) + content[400:])
    cold = Trees(bucket, tmp_path / "cold")
    try:
        with pytest.raises(StorageFailed) as caught:
            cold.ensure_image(digest)
        assert caught.value.code == "corrupt"
        assert not list((tmp_path / "cold/images").iterdir())
        pack.write_bytes(content)
        assert cold.ensure_image(digest).exists()
    finally:
        cold.close()
