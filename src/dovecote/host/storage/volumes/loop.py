"""Volumes as ext4 images, one a volume: the fallback for a host without btrfs."""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import fcntl
import os
import re
import struct
import subprocess
from pathlib import Path

from dovecote.errors import Invalid, NotFound, StorageFailed, Unsupported
from dovecote.host.storage import loops, mounts
from dovecote.host.storage.groups import Usage
from dovecote.host.storage.volumes.opening import open_directory
from dovecote.model.volumes import Mount

TIMEOUT = 120.0  # seconds that a tool of ext4 may take
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,119}")
_FILES = "files"
_SUFFIX = ".ext4"
_SET_CAPACITY = 0x4C07  # LOOP_SET_CAPACITY
_RESIZE_FS = (1 << 30) | (8 << 16) | (ord("f") << 8) | 16  # EXT4_IOC_RESIZE_FS
_BLOCK = 4096
_CAP_SYS_RESOURCE = 24


class LoopVolumes:
    """The image's size is the limit, so what ext4 needs for itself counts. A limit can be raised, never lowered."""

    def __init__(self, images: Path, at: Path) -> None:
        self._images = images
        self._at = at

    async def ensure(self) -> None:
        await asyncio.to_thread(self._ensure)

    async def create(self, name: str, *, max_bytes: int) -> None:
        await asyncio.to_thread(self._create, name, max_bytes)

    async def limit(self, name: str, *, max_bytes: int) -> None:
        await asyncio.to_thread(self._limit, name, max_bytes)

    async def usage(self, name: str) -> Usage:
        return await asyncio.to_thread(self._usage, name)

    async def limit_path(self, name: str, path: str, *, max_bytes: int) -> None:
        raise _no_limits()

    async def unlimit_path(self, name: str, path: str) -> None:
        """There is none."""

    async def path_usage(self, name: str, path: str) -> Usage:
        raise _no_limits()

    async def delete(self, name: str) -> None:
        await asyncio.to_thread(self._delete, name)

    async def list(self) -> list[str]:
        return await asyncio.to_thread(self._list)

    def directory(self, name: str) -> Path:
        return self._at / _checked(name) / _FILES

    def open(self, mount: Mount) -> int:
        return open_directory(self.directory(mount.volume), mount)

    async def remove(self) -> None:
        await asyncio.to_thread(self._remove)

    def _image(self, name: str) -> Path:
        return self._images / f"{_checked(name)}{_SUFFIX}"

    def _list(self) -> builtins.list[str]:
        return sorted(path.name.removesuffix(_SUFFIX) for path in self._images.glob(f"*{_SUFFIX}"))

    def _ensure(self) -> None:
        for directory in (self._images, self._at):
            directory.mkdir(parents=True, exist_ok=True)
            directory.chmod(0o700)
        for partial in self._images.glob("*.new"):  # a create that was cut off
            partial.unlink()
        for name in self._list():
            self._mount(name)

    def _create(self, name: str, max_bytes: int) -> None:
        image = self._image(name)
        if image.exists():
            self._mount(name)
            self._limit(name, max_bytes)
            return
        partial = image.with_suffix(".new")
        with mounts.reported(f"making {partial}"), open(partial, "wb", opener=_private) as file:
            file.truncate(max_bytes)
        _run(format_command(partial))
        partial.rename(image)
        self._mount(name)

    def _mount(self, name: str) -> None:
        at = self._at / name
        if mounts.source_of(at) is None:
            with mounts.reported(f"attaching volume {name}"):
                device, descriptor = loops.attach(self._image(name))
            try:
                mounts.mount_at(mounts.filesystem("ext4", device), at)
            finally:
                os.close(descriptor)
        with contextlib.suppress(FileExistsError):
            (at / _FILES).mkdir(mode=0o755)

    def _limit(self, name: str, max_bytes: int) -> None:
        image = self._there(name)
        wanted, now = max_bytes // _BLOCK * _BLOCK, image.stat().st_size
        if wanted < now:
            raise Unsupported(
                f"volume {name} is an image of {now} bytes, which cannot shrink while it is used",
                code="cannot_shrink",
                hint="make a smaller volume and copy; the btrfs driver can lower a limit",
            )
        if wanted == now:
            return
        if not may_grow():
            raise Unsupported(
                f"volume {name} cannot grow here", code="cannot_grow", hint="ext4 grows for CAP_SYS_RESOURCE only"
            )
        with mounts.reported(f"growing volume {name}"):
            os.truncate(image, wanted)
            for device in loops.devices_of(image.resolve()):
                with open(device, "rb") as opened:
                    fcntl.ioctl(opened, _SET_CAPACITY)
            place = os.open(self._at / name, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.ioctl(place, _RESIZE_FS, struct.pack("Q", wanted // _BLOCK))
            finally:
                os.close(place)

    def _usage(self, name: str) -> Usage:
        image = self._there(name)
        space = os.statvfs(self._at / name)
        total = image.stat().st_size
        return Usage(bytes=total - space.f_bavail * space.f_frsize, max_bytes=total)

    def _delete(self, name: str) -> None:
        if self._image(name).exists():
            at = self._at / name
            mounts.unmount(at, detach=True)
            self._image(name).unlink()
            with contextlib.suppress(FileNotFoundError):
                at.rmdir()

    def _remove(self) -> None:
        for name in self._list():
            mounts.unmount(self._at / name)

    def _there(self, name: str) -> Path:
        image = self._image(name)
        if not image.exists():
            raise NotFound(f"no volume {name}", code="no_such_volume")
        return image


def _no_limits() -> Unsupported:
    return Unsupported(
        "a path in a volume that is an image has no limit of its own",
        code="no_path_limits",
        hint="the drivers btrfs and juicefs have them; or make a volume for the path",
    )


def may_grow() -> bool:
    """Whether the kernel lets this process resize an ext4 that is mounted."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> _CAP_SYS_RESOURCE & 1)
    return False


def format_command(file: Path) -> list[str]:
    """argv. Blocks of 4 KiB at any size and nothing kept for root: whoever writes has the whole of it."""
    return ["mkfs.ext4", "-q", "-F", "-b", str(_BLOCK), "-m", "0", "-E", "lazy_itable_init=1", str(file)]


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise Invalid(f"not a name for a volume: {name[:80]!r}")
    return name


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except FileNotFoundError as error:
        raise Unsupported(f"no {command[0]} on this host", hint="apt-get install e2fsprogs") from error
    except subprocess.TimeoutExpired as error:
        raise StorageFailed(f"{command[0]} did not end in {TIMEOUT:.0f} s") from error
    if done.returncode:
        raise StorageFailed(f"{command[0]} failed: {done.stderr.strip()[-300:]}")
