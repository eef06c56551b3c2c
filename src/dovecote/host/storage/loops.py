"""Loop devices by ioctl: a file as a block device that detaches itself when nothing uses it any more."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from pathlib import Path

_GET_FREE, _CONFIGURE = 0x4C82, 0x4C0A
_READ_ONLY, _AUTOCLEAR, _DIRECT_IO = 1, 4, 16
_MAJOR = 7
_ATTEMPTS = 64  # others take the free number between our two calls


def attach(file: Path, *, read_only: bool = False) -> tuple[str, int]:
    """The device's path and a descriptor of it: it lives until the descriptor and all its mounts are gone.

    Direct I/O, so that pages are not kept twice, where the file system below can do it. Raises OSError.
    """
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    backing = os.open(file, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
    try:
        for _ in range(_ATTEMPTS):
            name = f"/dev/loop{fcntl.ioctl(control, _GET_FREE)}"
            device = _open_device(name)
            try:
                _configure(device, backing, file, _READ_ONLY if read_only else 0)
                return name, device
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:
                    raise
        raise OSError(errno.EBUSY, "no loop device stays free")
    finally:
        os.close(backing)
        os.close(control)


def backing_file(device: str) -> Path | None:
    """The file behind /dev/loopN, or None when there is none."""
    try:
        return Path(Path(f"/sys/block/{Path(device).name}/loop/backing_file").read_text().rstrip("\n"))
    except OSError:
        return None


def devices_of(file: Path) -> list[str]:
    """Loop devices that have this file behind them."""
    found = (f"/dev/{entry.name}" for entry in Path("/sys/block").glob("loop*"))
    return [device for device in found if backing_file(device) == file]


def _open_device(name: str) -> int:
    if not os.path.exists(name):  # a /dev without devtmpfs
        os.mknod(name, 0o660 | stat.S_IFBLK, os.makedev(_MAJOR, int(name.removeprefix("/dev/loop"))))
    return os.open(name, os.O_RDWR | os.O_CLOEXEC)


def _configure(device: int, backing: int, file: Path, mode: int) -> None:
    for flags in (mode | _AUTOCLEAR | _DIRECT_IO, mode | _AUTOCLEAR):
        # struct loop_config: descriptor, block size, struct loop_info64, eight reserved words
        info = struct.pack("5Q4I64s64s32s2Q", 0, 0, 0, 0, 0, 0, 0, 0, flags, os.fsencode(file)[:63], b"", b"", 0, 0)
        try:
            fcntl.ioctl(device, _CONFIGURE, struct.pack("II", backing, 0) + info + bytes(64))
            return
        except OSError as error:
            if error.errno != errno.EINVAL or not flags & _DIRECT_IO:
                raise
