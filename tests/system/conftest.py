"""Mounts, a store and trees of their own, for tests with real mounts."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dovecote.host.storage.bucket import Bucket, local_bucket
from dovecote.host.storage.trees import Trees
from tests.system.tree_files import fill
from tests.system.tree_rig import Rig


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    try:
        yield rig
    finally:
        rig.close()


@pytest.fixture
def bucket(tmp_path: Path) -> Bucket:
    return local_bucket(tmp_path / "store")


@pytest.fixture
def trees(bucket: Bucket, tmp_path: Path) -> Iterator[Trees]:
    trees = Trees(bucket, tmp_path / "cache")
    try:
        yield trees
    finally:
        trees.close()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.mkdir(mode=0o755)
    fill(path)
    return path


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Trees, str]]:
    """One template for the many cases that only add deltas to it."""
    base = tmp_path_factory.mktemp("shared")
    (base / "source").mkdir(mode=0o755)
    fill(base / "source")
    trees = Trees(local_bucket(base / "store"), base / "cache")
    try:
        yield trees, trees.save_directory(base / "source").digest
    finally:
        trees.close()
