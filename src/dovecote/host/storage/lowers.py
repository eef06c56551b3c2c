"""How trees become lower layers on this host: images over shared objects, or plain directories. Tried, not guessed."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from blake3 import blake3

from dovecote.errors import DovecoteError, Unsupported
from dovecote.host.storage import mounts
from dovecote.host.storage.erofs import write_image
from dovecote.host.storage.manifest import Entry, Kind
from dovecote.host.storage.objects import object_name
from dovecote.host.storage.plain import lay_out

IMAGES, PLAIN, AUTO = "images", "plain", "auto"
WAYS = (IMAGES, PLAIN)
_TEXT = b"dovecote"
_ID_BASE = 1 << 20
_DATA_ONLY = (6, 5)  # overlayfs has layers that only hold data
_ENTRIES = [
    Entry(b"", Kind.DIR, 0o755),
    Entry(b"file", Kind.FILE, 0o644, 7, 8, size=len(_TEXT), digest=blake3(_TEXT).digest()),
]


def pick(wanted: str, near: Path, *, attempts: Mapping[str, Callable[[Path], None]] | None = None) -> str:
    """`wanted`, or of `auto` the first way that works on the file system of `near`, a directory that exists.

    Raises Unsupported (no_lowers) with what stood in the way of each.
    """
    attempts = attempts or {IMAGES: try_images, PLAIN: try_plain}
    reasons = []
    for way in WAYS if wanted == AUTO else (wanted,):
        try:
            with tempfile.TemporaryDirectory(prefix=".dovecote-lowers-", dir=near) as scratch:
                attempts[way](Path(scratch))
            return way
        except (DovecoteError, OSError) as error:
            if _is_full(error):  # nothing can be tried: the version has to tell, or a full disk would end all
                return way if wanted != AUTO else IMAGES if mounts.is_kernel(*_DATA_ONLY) else PLAIN
            reasons.append(f"{way}: {error.message if isinstance(error, DovecoteError) else error}")
    raise Unsupported(
        f"trees cannot be mounted on this host ({'; '.join(reasons)})",
        code="no_lowers",
        hint="Linux 6.5 with EROFS and overlayfs, or overlayfs and a data directory on ext4, XFS or btrfs, whose ids "
        "Linux 5.19 can map",
    )


def _is_full(error: DovecoteError | OSError) -> bool:
    if isinstance(error, DovecoteError):
        return error.code == "disk_full"
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def try_images(scratch: Path) -> None:
    """Mounts an image over objects, its ids mapped, and reads through it. Raises DovecoteError, OSError."""
    place = scratch / "objects" / object_name(_ENTRIES[1].digest)
    place.parent.mkdir(parents=True)
    place.write_bytes(_TEXT)
    write_image(_ENTRIES, scratch / "image", uuid=bytes(16))
    mounts.mount_image(scratch / "image", scratch / "lower")
    try:
        _look(scratch, scratch / "objects")
    finally:
        mounts.unmount(scratch / "lower", detach=True)


def try_plain(scratch: Path) -> None:
    """The same with a plain directory."""
    place = scratch / "objects" / object_name(_ENTRIES[1].digest)
    place.parent.mkdir(parents=True)
    place.write_bytes(_TEXT)
    lay_out(_ENTRIES, scratch / "objects", scratch / "lower")
    _look(scratch, None)


def _look(scratch: Path, objects: Path | None) -> None:
    (scratch / "upper").mkdir()
    with contextlib.ExitStack() as opened:
        userns = mounts.user_namespace(_ID_BASE)
        opened.callback(os.close, userns)
        opened.callback(mounts.unmount, scratch / "mapped", detach=True)
        mounts.mount_at(mounts.idmapped(scratch / "lower", userns), scratch / "mapped")
        merged = mounts.overlay([scratch / "upper", scratch / "mapped"], objects)
        opened.callback(os.close, merged)
        file = os.open("file", os.O_RDONLY | os.O_CLOEXEC, dir_fd=merged)
        opened.callback(os.close, file)
        seen = os.fstat(file)
        if os.read(file, 100) != _TEXT or (seen.st_uid, seen.st_gid) != (_ID_BASE + 7, _ID_BASE + 8):
            raise Unsupported("what was mounted shows other bytes or other owners than were written")
