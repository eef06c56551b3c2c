"""Which driver keeps the volumes of a host: what they lie in already, else what is found to work by trying it."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from dovecote.errors import DovecoteError, Unsupported
from dovecote.host.storage.volumes.contract import Volumes
from dovecote.host.storage.volumes.loop import LoopVolumes
from dovecote.host.storage.volumes.pool import PoolVolumes

AUTO, BTRFS, LOOP, JUICEFS = "auto", "btrfs", "loop", "juicefs"
POOL, IMAGES = "volumes.btrfs", "volumes"  # below the data directory
_POOL_BYTES = 256 << 20
_LIMIT = 8 << 20
Open = Callable[[Path], Volumes]


def small_pool(scratch: Path) -> Volumes:
    return PoolVolumes(scratch / "pool", scratch / "at", max_bytes=_POOL_BYTES)


def small_images(scratch: Path) -> Volumes:
    return LoopVolumes(scratch / "images", scratch / "at")


def driver_there(wanted: str, data_dir: Path) -> str | None:
    """`wanted`, or of `auto` what volumes lie in already, if there are any."""
    if wanted != AUTO:
        return wanted
    if (data_dir / POOL).exists():
        return BTRFS
    return LOOP if any((data_dir / IMAGES).glob("*")) else None


async def pick_driver(wanted: str, data_dir: Path, *, attempts: Mapping[str, Open] | None = None) -> str:
    """Raises Unsupported (no_volumes) where none works."""
    if known := driver_there(wanted, data_dir):
        return known
    data_dir.mkdir(parents=True, exist_ok=True)
    reasons = []
    for name, open_small in (attempts or {BTRFS: small_pool, LOOP: small_images}).items():
        with tempfile.TemporaryDirectory(prefix=".dovecote-volumes-", dir=data_dir) as scratch:
            driver = open_small(Path(scratch))
            try:
                await _try(driver)
                return name
            except (DovecoteError, OSError) as error:
                reasons.append(f"{name}: {error.message if isinstance(error, DovecoteError) else error}")
            finally:
                await driver.remove()
    raise Unsupported(
        f"no driver of volumes works on this host ({'; '.join(reasons)})",
        code="no_volumes",
        hint="btrfs with quotas, or loop devices and e2fsprogs, are needed; dovecote doctor says what lacks",
    )


async def _try(driver: Volumes) -> None:
    """A volume takes what it may hold and no more."""
    await driver.ensure()
    await driver.create("probe", max_bytes=_LIMIT)
    try:
        with open(driver.directory("probe") / "file", "wb", buffering=0) as file:
            for _ in range(2 * _LIMIT >> 20):
                file.write(os.urandom(1 << 20))
            os.fsync(file.fileno())
    except OSError as error:
        if error.errno in (errno.EDQUOT, errno.ENOSPC):
            return
        raise
    raise Unsupported("it does not hold to its limits")
