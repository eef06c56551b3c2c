"""Quota groups of btrfs by ioctl: what subvolumes may hold, alone and together. Plain calls that raise OSError.

A subvolume counts in the group 0/<its id>, which the kernel makes; 1/<its id> counts it with those nested in it. `top`
is on the top of the file system: from inside a subvolume that is full the kernel would change nothing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from dovecote.host.storage import btrfs

_ASSIGN = btrfs.request(btrfs.WRITE, 41, 24)
_CREATE = btrfs.request(btrfs.WRITE, 42, 16)
_LIMIT = btrfs.request(btrfs.READ, 43, 48)
_LEVEL = 1 << 48
_LIMIT_REFERENCED = 1
_NO_LIMIT = (1 << 64) - 1
_QUOTA_TREE, _RELATION = 8, 246


@dataclass(frozen=True)
class Usage:
    """`max_bytes` is 0 where there is no limit."""

    bytes: int
    max_bytes: int


def of(subvolume: int) -> int:
    """The number of the group that counts a subvolume, by its id, with those nested in it."""
    return _LEVEL | subvolume


def is_there(top: int, group: int) -> bool:
    return _shown(top, group).exists()


def is_simple(top: int) -> bool:
    """Whether what is written counts where it was first written, and at once."""
    with contextlib.suppress(OSError):
        return (btrfs.sysfs(top) / "qgroups" / "mode").read_text().strip() == "squota"
    return False


def make(top: int, group: int) -> None:
    """May be repeated."""
    with contextlib.suppress(FileExistsError):
        fcntl.ioctl(top, _CREATE, struct.pack("QQ", 1, group))


def remove(top: int, group: int) -> None:
    """One without members. May be repeated."""
    with contextlib.suppress(FileNotFoundError):
        fcntl.ioctl(top, _CREATE, struct.pack("QQ", 0, group))


def join(top: int, member: int, group: int) -> None:
    """What the member holds already counts for the group from now on. May be repeated."""
    with contextlib.suppress(FileExistsError):
        fcntl.ioctl(top, _ASSIGN, struct.pack("QQQ", 1, member, group))


def leave(top: int, member: int, group: int) -> None:
    """May be repeated."""
    try:
        fcntl.ioctl(top, _ASSIGN, struct.pack("QQQ", 0, member, group))
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EINVAL):
            raise


def limit(top: int, group: int, max_bytes: int | None) -> None:
    """At once; None for no limit."""
    most = _NO_LIMIT if max_bytes is None else max_bytes
    fcntl.ioctl(top, _LIMIT, bytearray(struct.pack("6Q", group, _LIMIT_REFERENCED, most, 0, 0, 0)))


def related(top: int, group: int) -> list[int]:
    """Members of a group, and groups that it is a member of. Costs what there are."""
    return [found.offset for found in btrfs.search(top, _QUOTA_TREE, group, _RELATION)]


def counts(top: int, group: int) -> Usage:
    """What is reserved was written and is not on the disk yet."""
    held, reserved, most = shown(top, group, "referenced", "rsv_data", "max_referenced")
    return Usage(held + reserved, most)


def shown(top: int, group: int, *names: str) -> list[int]:
    return [int((_shown(top, group) / name).read_text()) for name in names]


def reserved(directory: int, subvolume: int) -> int:
    """Bytes that were written there and are not on the disk yet. Asked often."""
    shown = os.open(f"{btrfs.sysfs(directory)}/qgroups/0_{subvolume}/rsv_data", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return int(os.read(shown, 32))
    finally:
        os.close(shown)


def gather(top: int, subvolume: int) -> None:
    """From now on a subvolume has a group for what is nested in it, with the limit that it has. May be repeated."""
    group = of(subvolume)
    if group in related(top, subvolume):
        return
    make(top, group)
    limit(top, group, counts(top, subvolume).max_bytes or None)
    join(top, subvolume, group)  # the last of it: what was cut off before is not taken for done


def dissolve(top: int, group: int) -> None:
    """One that may have members. May be repeated."""
    for member in related(top, group):
        leave(top, member, group)
    remove(top, group)


def sweep(top: int) -> None:
    """Groups of subvolumes that are gone, removed from inside."""
    names = set(os.listdir(btrfs.sysfs(top) / "qgroups"))
    for name in names:
        level, _, subvolume = name.partition("_")
        if level == "1" and f"0_{subvolume}" not in names:
            dissolve(top, of(int(subvolume)))


def _shown(top: int, group: int) -> Path:
    return btrfs.sysfs(top) / "qgroups" / f"{group >> 48}_{group & (_LEVEL - 1)}"
