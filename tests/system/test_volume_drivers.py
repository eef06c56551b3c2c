"""The driver of volumes is what they lie in already, else the first that is found to work."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dovecote.errors import Unsupported
from dovecote.host.storage import loops, mounts
from dovecote.host.storage.volumes import LoopVolumes, Volumes
from dovecote.host.storage.volumes.picking import AUTO, BTRFS, JUICEFS, LOOP, pick_driver, small_images, small_pool

pytestmark = [pytest.mark.system, pytest.mark.anyio]


class Lax(LoopVolumes):
    """Takes more than it was told to."""

    async def create(self, name: str, *, max_bytes: int) -> None:
        await super().create(name, max_bytes=4 * max_bytes)


@pytest.fixture
def data() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="dovecote-drivers-") as name:
        yield Path(name)
        assert mounts.mounted_below(Path(name)) == []
        assert list(Path(name).glob(".dovecote-*")) == []


def fails(_: Path) -> Volumes:
    class Broken(LoopVolumes):
        async def ensure(self) -> None:
            raise Unsupported("no btrfs in this kernel")

    return Broken(_ / "images", _ / "at")


def lax(scratch: Path) -> Volumes:
    return Lax(scratch / "images", scratch / "at")


async def test_the_first_that_works_is_taken(data: Path) -> None:
    assert await pick_driver(AUTO, data) == BTRFS
    assert await pick_driver(AUTO, data, attempts={BTRFS: fails, LOOP: small_images}) == LOOP
    assert loops.devices_of(data / "pool") == []


async def test_one_that_does_not_hold_to_its_limits_is_not(data: Path) -> None:
    assert await pick_driver(AUTO, data, attempts={LOOP: lax, BTRFS: small_pool}) == BTRFS
    with pytest.raises(Unsupported, match="limits") as caught:
        await pick_driver(AUTO, data, attempts={LOOP: lax})
    assert caught.value.code == "no_volumes"


async def test_volumes_that_are_there_decide(data: Path) -> None:
    (data / "volumes").mkdir()
    assert await pick_driver(AUTO, data, attempts={BTRFS: fails, LOOP: small_images}) == LOOP
    (data / "volumes/vol_a.ext4").touch()
    assert await pick_driver(AUTO, data) == LOOP
    (data / "volumes.btrfs").touch()
    assert await pick_driver(AUTO, data) == BTRFS


async def test_one_that_is_asked_for_is_not_tried(data: Path) -> None:
    assert await pick_driver(JUICEFS, data, attempts={}) == JUICEFS
