"""Stores, caches and images that are damaged or break off: nothing wrong is mounted, and what can be healed is."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dovecote.errors import StorageFailed
from dovecote.host.storage.bucket import Bucket, local_bucket
from dovecote.host.storage.trees import Trees
from tests.system.tree_changes import CHANGES
from tests.system.tree_files import write
from tests.system.tree_rig import Rig, assert_same, differences, one_life, picture

pytestmark = pytest.mark.system


def broken(call: Callable[[], object], digest: str) -> None:
    with pytest.raises(StorageFailed) as caught:
        call()
    assert caught.value.code == "corrupt"
    assert digest in caught.value.message
    assert caught.value.hint


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    os.chmod(path, 0o600)
    path.write_bytes(data)


@pytest.mark.parametrize("kind", ["packs", "manifests", "times", "trees", "locations"])
@pytest.mark.parametrize("how", ["flip", "cut", "delete"])
def test_a_damaged_store_restores_nothing(
    trees: Trees, bucket: Bucket, source: Path, tmp_path: Path, kind: str, how: str
) -> None:
    """It says which tree, and there is no image that anybody could mount."""
    digest = trees.save_directory(source).digest
    victim = max((p for p in (tmp_path / "store" / kind).rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    if how == "flip":
        flip(victim, victim.stat().st_size // 2)
    elif how == "cut":
        os.truncate(victim, victim.stat().st_size // 2)
    else:
        victim.unlink()
    cold = Trees(bucket, tmp_path / "cold")
    try:
        broken(lambda: cold.ensure_image(digest), digest)
        broken(lambda: cold.ensure_image(digest), digest)
        assert not list((tmp_path / "cold/images").iterdir())
    finally:
        cold.close()


def test_a_lost_pack_is_noticed_before_the_disk_is_freed(trees: Trees, source: Path, tmp_path: Path) -> None:
    saved = trees.save_directory(source)
    trees.verify_stored(saved.digest)
    for pack in (tmp_path / "store/packs").rglob("*"):
        if pack.is_file():
            os.truncate(pack, pack.stat().st_size // 2)
    broken(lambda: trees.verify_stored(saved.digest), saved.digest)


def test_a_store_that_lost_packs_gets_them_again(rig: Rig, bucket: Bucket, source: Path, tmp_path: Path) -> None:
    """The index of a host is not believed against the store."""
    first = Trees(bucket, tmp_path / "cache")
    first.save_directory(source)
    first.close()
    shutil.rmtree(tmp_path / "store/packs")
    shutil.rmtree(tmp_path / "store/manifests")
    second = Trees(bucket, tmp_path / "cache")
    saved = second.save_directory(source)
    second.close()
    cold = Trees(bucket, tmp_path / "cold")
    try:
        assert_same(source, rig.look(cold, saved.digest))
    finally:
        cold.close()


def reboot(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("index", "image_files"):
        monkeypatch.setattr(f"dovecote.host.storage.{module}.boot_id", lambda: "another boot")


def test_a_reboot_checks_the_cache_and_heals_it(
    rig: Rig, trees: Trees, bucket: Bucket, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut left objects and the image damaged: they come from the store again."""
    digest = trees.save_directory(source).digest
    image = trees.ensure_image(digest)
    good = image.read_bytes()
    trees.close()
    flip(image, len(good) // 2)
    for i, victim in enumerate(sorted(p for p in (tmp_path / "cache/objects").rglob("*") if p.is_file())):
        if i % 3 == 0:
            os.truncate(victim, victim.stat().st_size // 2)
    reboot(monkeypatch)
    again = Trees(bucket, tmp_path / "cache")
    try:
        assert again.ensure_image(digest).read_bytes() == good
        assert_same(source, rig.look(again, digest))
    finally:
        again.close()


def test_an_image_that_somebody_touched_is_not_mounted(trees: Trees, source: Path) -> None:
    digest = trees.save_directory(source).digest
    image = trees.ensure_image(digest)
    good = image.read_bytes()
    status = image.stat()
    flip(image, 5000)
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert trees.ensure_image(digest).read_bytes() == good


def test_a_checked_image_needs_no_store(trees: Trees, source: Path, tmp_path: Path) -> None:
    """Waking on the same host goes on while the store is away, also in the next process."""
    digest = trees.save_directory(source).digest
    trees.ensure_image(digest)
    bucket = local_bucket(tmp_path / "store")
    again = Trees(bucket, tmp_path / "cache")
    (tmp_path / "store").rename(tmp_path / "away")
    try:
        assert trees.ensure_image(digest) == again.ensure_image(digest)
        cold = "0" * 64
        with pytest.raises(StorageFailed) as caught:
            again.ensure_image(cold)
        assert caught.value.code == "store_unreachable"
    finally:
        again.close()


class Breaks(Bucket):
    """Fails at the n-th write."""

    left = 1 << 30

    def _put(self, name: str, data: bytes, *, new: bool) -> None:
        self.left -= 1
        if self.left < 0:
            raise StorageFailed("the store went away", code="store_unreachable")
        super()._put(name, data, new=new)


def test_a_save_that_breaks_anywhere_leaves_the_earlier_tree(rig: Rig, source: Path, tmp_path: Path) -> None:
    """At each write in turn; and when it is tried again, it is as if nothing had happened."""
    inner = local_bucket(tmp_path / "store")
    bucket = Breaks(inner._store, directory=inner._directory)
    trees = Trees(bucket, tmp_path / "cache")
    try:
        template = trees.save_directory(source).digest
        first = one_life(rig, trees, template, None, CHANGES["rename and change inside"])
        before = picture(rig.look(trees, template, first.digest))
        life = rig.life(trees, template, first.digest)
        (life.root / "app/node_modules").mkdir(parents=True)
        for i in range(100):
            write(life.root / f"app/node_modules/{i}", f"{i}")
        seen = life.end()
        for allowed in range(100):
            bucket.left = allowed
            try:
                saved = life.save()
                break
            except StorageFailed as error:
                assert error.code == "store_unreachable"  # noqa: PT017
            bucket.left = 1 << 30
            cold = Trees(bucket, tmp_path / f"cold{allowed}")
            assert differences(before, picture(rig.look(cold, template, first.digest))) == []
            cold.close()
        assert allowed >= 3  # what an earlier attempt stored is not stored again
        bucket.left = 1 << 30
        cold = Trees(bucket, tmp_path / "cold")
        assert differences(seen, picture(rig.look(cold, template, saved.digest))) == []
        cold.close()
    finally:
        trees.close()
