"""Mounts a FUSE file system whose ids the kernel may map, and answers its first request."""

from __future__ import annotations

import ctypes
import os
import struct
from dataclasses import dataclass

from dovecote.errors import StorageFailed, Unsupported
from dovecote.host.storage import mounts

DEVICE = "/dev/fuse"
_INIT = 26
_REQUEST = struct.Struct("<IIQQIIII")
_REPLY = struct.Struct("<IiQ")
_INIT_IN = struct.Struct("<IIIII")  # major, minor, read ahead, flags, more flags
_INIT_OUT = struct.Struct("<IIIIHHIIHHII24x")
_MINOR = 45
_SETTINGS = 104  # bytes of the request, header and all, that a JuiceFS process is handed
_LARGEST = 128 << 10
_PAGES = _LARGEST // 4096
_INIT_EXT = 1 << 30
_ALLOW_IDMAP = 1 << (40 - 32)
# Reading ahead and in parallel, locks, O_TRUNC with open, writes of more than a page, cached data that is dropped when
# its file changed, attributes with the names of a directory, requests of many pages.
_WANTED = sum(1 << bit for bit in (0, 1, 3, 5, 10, 12, 13, 14, 18, 22)) | _INIT_EXT
_PIDFD_OPEN, _PIDFD_GETFD = 434, 438

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Connection:
    """A mount that is attached nowhere yet, the kernel's end of it, and what was agreed on."""

    mount: int
    device: int
    settings: bytes


def connect(source: str) -> Connection:
    """Raises Unsupported where this kernel cannot map the ids of FUSE (before Linux 6.12) or has none of it."""
    try:
        device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise Unsupported("no FUSE on this host", code="kernel_feature", hint="modprobe fuse") from error
    try:
        with mounts.reported(f"mounting {source}"):
            options = [
                ("source", source),
                ("fd", str(device)),
                ("rootmode", "40000"),
                ("user_id", "0"),
                ("group_id", "0"),
                ("max_read", str(_LARGEST)),
                ("default_permissions", ""),
                ("allow_other", ""),
            ]
            mount = mounts.new_mount("fuse", options, attributes=mounts.NODEV | mounts.NOSUID | mounts.NOATIME)
        try:
            return Connection(mount, device, _agree(device))
        except BaseException:
            os.close(mount)
            raise
    except BaseException:
        os.close(device)
        raise


def _agree(device: int) -> bytes:
    """Answers the kernel's first request; what of it both sides can do is the result."""
    request = bytearray(os.read(device, 1 << 20))
    _, operation, unique, *_ = _REQUEST.unpack_from(request)
    if operation != _INIT or len(request) < _SETTINGS:
        raise StorageFailed("the kernel's FUSE began with something else than an agreement", code="mount_failed")
    major, minor, ahead, flags, more = _INIT_IN.unpack_from(request, _REQUEST.size)
    if not flags & _INIT_EXT or not more & _ALLOW_IDMAP:
        raise Unsupported(
            "this kernel cannot map the ids of FUSE", code="kernel_feature", hint="Linux 6.12 or later is needed"
        )
    flags &= _WANTED
    answer = _INIT_OUT.pack(major, min(minor, _MINOR), ahead, flags, 512, 384, _LARGEST, 1, _PAGES, 0, _ALLOW_IDMAP, 0)
    os.write(device, _REPLY.pack(_REPLY.size + len(answer), 0, unique) + answer)
    _INIT_IN.pack_into(request, _REQUEST.size, major, min(minor, _MINOR), ahead, flags & ~_INIT_EXT, 0)
    return bytes(request[:_SETTINGS])


def device_of(pid: int) -> int:
    """A descriptor of the kernel's end that another process holds. Raises OSError."""
    pidfd = os.pidfd_open(pid)
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            if os.readlink(f"/proc/{pid}/fd/{name}") == DEVICE:
                found: int = _libc.syscall(_PIDFD_GETFD, pidfd, int(name), 0)
                if found < 0:
                    number = ctypes.get_errno()
                    raise OSError(number, os.strerror(number))
                return found
    finally:
        os.close(pidfd)
    raise FileNotFoundError(DEVICE)
