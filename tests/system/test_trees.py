"""Trees with real mounts: what was saved is what is seen again, byte by byte."""

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from dovecote.errors import Invalid
from dovecote.host.storage.bucket import Bucket, open_bucket
from dovecote.host.storage.manifest import Kind
from dovecote.host.storage.scan import Bounds
from dovecote.host.storage.sources import SMALL
from dovecote.host.storage.trees import Trees
from tests.system.tree_changes import CHANGES
from tests.system.tree_files import write
from tests.system.tree_rig import Rig, assert_same, one_life

pytestmark = pytest.mark.system


def test_a_template_is_mounted_as_it_was(rig: Rig, trees: Trees, source: Path) -> None:
    saved = trees.save_directory(source)
    assert saved.notes == ()
    assert_same(source, rig.look(trees, saved.digest))
    subprocess.run(["fsck.erofs", trees.ensure_image(saved.digest)], check=True, timeout=60, capture_output=True)


def test_the_same_directory_is_the_same_tree(trees: Trees, source: Path, rig: Rig) -> None:
    """Saving it again costs nothing, and neither where it lies nor the order of its files matters."""
    first = trees.save_directory(source)
    again = trees.save_directory(source)
    assert (again.digest, again.added_bytes) == (first.digest, 0)
    copy = rig.folder("copy")
    subprocess.run(["cp", "-a", f"{source}/.", str(copy)], check=True, timeout=60)
    assert trees.save_directory(copy).digest == first.digest


def test_another_host_restores_from_the_store_alone(
    rig: Rig, trees: Trees, bucket: Bucket, source: Path, tmp_path: Path
) -> None:
    """A cold cache and no listing of the store."""
    saved = trees.save_directory(source)

    class NoListing(Bucket):
        def list(self, prefix: str, *, after: str | None = None):  # type: ignore[no-untyped-def]
            raise AssertionError("a restore must not list the store")

    cold = Trees(NoListing(bucket._store, directory=bucket._directory), tmp_path / "cold")
    try:
        assert_same(source, rig.look(cold, saved.digest))
        assert cold.ensure_image(saved.digest).read_bytes() == trees.ensure_image(saved.digest).read_bytes()
    finally:
        cold.close()


def test_nothing_that_is_too_large_is_saved(rig: Rig, shared: tuple[Trees, str], tmp_path: Path) -> None:
    """A file of holes costs no disk; reading it would never end."""
    _, _ = shared
    trees = Trees(open_bucket("memory:"), tmp_path / "c", bounds=Bounds(entries=30, file_bytes=1 << 30))
    try:
        source = rig.folder("s")
        with open(source / "holes", "wb") as file:
            file.truncate(1 << 40)
        with pytest.raises(Invalid) as caught:
            trees.save_directory(source)
        assert caught.value.code == "too_large"
        os.unlink(source / "holes")
        for i in range(40):
            write(source / f"{i}", "")
        with pytest.raises(Invalid) as caught:
            trees.save_directory(source)
        assert caught.value.code == "too_large"
    finally:
        trees.close()


def test_content_that_is_stored_costs_nothing_again(rig: Rig, shared: tuple[Trees, str]) -> None:
    """A copy of the template's largest file adds names, not bytes."""
    trees, template = shared
    saved = one_life(rig, trees, template, None, lambda r: shutil.copy2(r / "large", r / "copy"))
    assert saved.total_bytes > SMALL
    assert saved.added_bytes < 5000


def test_a_dependency_tree_costs_nothing_again(rig: Rig, shared: tuple[Trees, str]) -> None:
    """A change beside node_modules does not write its manifest again."""
    trees, template = shared

    def install(root: Path) -> None:
        (root / "app/node_modules").mkdir(parents=True)
        for i in range(2000):
            write(root / f"app/node_modules/m{i}.js", random.Random(i).randbytes(100))

    first = one_life(rig, trees, template, None, install)
    second = one_life(rig, trees, template, first.digest, lambda r: write(r / "app/code.js", "let x"))
    assert second.files == 2001
    assert second.added_bytes < 3000


def test_a_moved_session_is_saved_on_its_new_host_without_storing_again(
    rig: Rig, trees: Trees, bucket: Bucket, source: Path, tmp_path: Path
) -> None:
    """The new host knows from the store's hints where the kept files lie."""
    template = trees.save_directory(source).digest
    first = one_life(rig, trees, template, None, CHANGES["big"])
    other = Trees(bucket, tmp_path / "other")
    try:
        second = one_life(rig, other, template, first.digest, lambda r: write(r / "etc/tiny", "x"))
        assert second.added_bytes < 5000
        other.verify_stored(second.digest)
    finally:
        other.close()


def test_a_thousand_directories_and_five_thousand_files(rig: Rig, trees: Trees) -> None:
    source = rig.folder("many")
    for d in range(1000):
        folder = source / f"d{d % 10}" / f"e{d}"
        folder.mkdir(parents=True)
        for f in range(5):
            write(folder / f"f{f}", random.Random(d * 5 + f).randbytes(d))
    saved = trees.save_directory(source)
    assert saved.files == 5000
    assert_same(source, rig.look(trees, saved.digest))
    assert sum(e.kind is Kind.DIR for e in trees.entries(saved.digest)) == 1011
