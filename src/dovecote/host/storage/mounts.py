"""All mount system calls of Dovecote: images, idmapped clones, overlays, and what the entrance needs inside."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import struct
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dovecote.descriptors import is_readable
from dovecote.errors import StorageFailed, Unsupported
from dovecote.host.storage import loops

# System call numbers are the same on every architecture since 5.0; pivot_root is older.
_OPEN_TREE, _MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT = 428, 429, 430, 431, 432
_OPENAT2, _MOUNT_SETATTR = 437, 442
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}

_AT_FDCWD, _AT_EMPTY_PATH, _AT_RECURSIVE = -100, 0x1000, 0x8000
_CLONE, _CLOEXEC = 1, os.O_CLOEXEC
_F_EMPTY_PATH, _T_EMPTY_PATH = 0x4, 0x40
_SET_FLAG, _SET_STRING, _CMD_CREATE = 0, 1, 6
_NO_REPLACE, _EXCHANGE = 1, 2
_CLONE_NEWNS, _MNT_DETACH, _UMOUNT_NOFOLLOW = 0x20000, 2, 8

RDONLY, NOSUID, NODEV, NOEXEC, NOATIME, IDMAP = 0x1, 0x2, 0x4, 0x8, 0x10, 0x100000
NO_MAGICLINKS, NO_SYMLINKS, BENEATH, IN_ROOT = 0x02, 0x04, 0x08, 0x10

_libc = ctypes.CDLL(None, use_errno=True)


# ---- errors


@contextlib.contextmanager
def reported(what: str) -> Iterator[None]:
    """Turns an OSError into an error of ours that names the step and the errno."""
    try:
        yield
    except OSError as error:
        raise failure(what, error.errno or 0, str(error.strerror or "")) from error


def failure(what: str, number: int, detail: str = "") -> StorageFailed | Unsupported:
    name = errno.errorcode.get(number, str(number))
    message = f"{what}: {name} ({detail or os.strerror(number)})"
    if number in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENODEV):
        return Unsupported(
            message,
            code="kernel_feature",
            hint="a kernel of 6.5 or later with overlayfs, EROFS and btrfs is needed; dovecote doctor says what lacks",
        )
    if number in (errno.ENOSPC, errno.EDQUOT):
        return StorageFailed(message, code="disk_full", hint="free space on the host, or give the disk a bigger limit")
    return StorageFailed(message, code="mount_failed")


def _call(number: int, *arguments: int | bytes | ctypes.Array[ctypes.c_char]) -> int:
    converted = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result: int = _libc.syscall(ctypes.c_long(number), *converted)
    return _checked(result)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


# ---- the calls themselves; they raise OSError


def open_tree(path: str | Path, *, at: int = _AT_FDCWD, recursive: bool = False) -> int:
    """A detached clone of the mount at `path`, as a descriptor; it ends with its last descriptor."""
    flags = _CLONE | _CLOEXEC | (_AT_RECURSIVE if recursive else 0)
    if at != _AT_FDCWD and not str(path):
        flags |= _AT_EMPTY_PATH
    return _call(_OPEN_TREE, at, os.fsencode(path), flags)


def move_mount(mount: int, target: int | str | Path) -> None:
    """Attaches a detached mount at a path, or at the directory that a descriptor stands for."""
    if isinstance(target, int):
        _call(_MOVE_MOUNT, mount, b"", target, b"", _F_EMPTY_PATH | _T_EMPTY_PATH)
    else:
        _call(_MOVE_MOUNT, mount, b"", _AT_FDCWD, os.fsencode(target), _F_EMPTY_PATH)


def set_attributes(mount: int, attributes: int, *, userns: int = 0) -> None:
    packed = struct.pack("QQQQ", attributes, 0, 0, userns)
    _call(_MOUNT_SETATTR, mount, b"", _AT_EMPTY_PATH, packed, len(packed))


def new_mount(kind: str, options: Sequence[tuple[str, str]], *, attributes: int, read_only: bool = False) -> int:
    """A detached mount of a new file system. An option with an empty value is a flag."""
    context = _call(_FSOPEN, kind.encode(), 1)
    try:
        for name, value in options:
            if value:
                _call(_FSCONFIG, context, _SET_STRING, name.encode(), value.encode(), 0)
            else:
                _call(_FSCONFIG, context, _SET_FLAG, name.encode(), 0, 0)
        if read_only:
            _call(_FSCONFIG, context, _SET_FLAG, b"ro", 0, 0)
        _call(_FSCONFIG, context, _CMD_CREATE, 0, 0, 0)
        return _call(_FSMOUNT, context, 1, attributes)
    except OSError as error:
        raise OSError(error.errno, "; ".join([str(error.strerror), *_context_log(context)])) from error
    finally:
        os.close(context)


def _context_log(context: int) -> list[str]:
    """What the kernel says about a mount that it refused."""
    lines: list[str] = []
    with contextlib.suppress(OSError):
        while len(lines) < 8:
            lines.append(os.read(context, 1024).decode(errors="replace").strip())
    return lines


def open_beneath(root: int, path: str, *, resolve: int, flags: int = os.O_PATH | os.O_DIRECTORY) -> int:
    """openat2: opens `path` below the directory `root` without leaving it. `resolve` are the flags above."""
    how = struct.pack("QQQ", flags | os.O_CLOEXEC, 0, resolve)
    return _call(_OPENAT2, root, os.fsencode(path), how, len(how))


def exchange(directory: int, one: str, other: str) -> None:
    """Two names in a directory stand for each other's files from now on."""
    _checked(_libc.renameat2(directory, os.fsencode(one), directory, os.fsencode(other), _EXCHANGE))


def rename_new(name: str, new: str, *, source: int, target: int) -> None:
    """From one directory to another, where nothing of that name may be. Raises OSError (EEXIST)."""
    _checked(_libc.renameat2(source, os.fsencode(name), target, os.fsencode(new), _NO_REPLACE))


def unmount(path: str | Path, *, detach: bool = False) -> None:
    """Nothing mounted there is fine. Raises StorageFailed with code `busy` when it is in use."""
    flags = _UMOUNT_NOFOLLOW | (_MNT_DETACH if detach else 0)
    try:
        _checked(_libc.umount2(os.fsencode(path), flags))
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise StorageFailed(
                f"{path} is in use", code="busy", hint="stop the instances and commands that use it first"
            ) from error
        if error.errno not in (errno.EINVAL, errno.ENOENT):
            raise failure(f"unmounting {path}", error.errno or 0) from error


def mount_id(mount: int) -> int:
    """The number that /proc/self/mountinfo shows a mount under, from a descriptor in it."""
    for line in Path(f"/proc/self/fdinfo/{mount}").read_text().splitlines():
        if line.startswith("mnt_id:"):
            return int(line.split()[1])
    raise OSError(errno.EBADF, "no mount id")


def point_of(table: bytes, number: int) -> bytes | None:
    """Where a mount is, from the text of a mountinfo."""
    for line in table.splitlines():
        fields = line.split(b" ")
        if int(fields[0]) == number:
            return re.sub(rb"\\([0-7]{3})", lambda octal: bytes([int(octal[1], 8)]), fields[4])
    return None


def unmount_here(point: bytes, *, lazy: bool) -> None:
    """Unmounts in this process's namespace without following a link at the end. Raises OSError (EBUSY)."""
    try:
        _checked(_libc.umount2(point, _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0)))
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOENT, errno.ENOTDIR):
            raise


def enter_mounts(pidfd: int) -> None:
    """Moves this process, which must have one thread, into the mount namespace of another."""
    _checked(_libc.setns(pidfd, _CLONE_NEWNS))


def pivot_into_current_directory() -> None:
    """Makes the current directory the root of the namespace, for all in it, and drops the old root."""
    _call(_PIVOT_ROOT[os.uname().machine], b".", b".")
    _checked(_libc.umount2(b".", _MNT_DETACH))


def _table() -> Iterator[tuple[Path, str]]:
    """Each mount point of this namespace and its source, in the order of mounting."""
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        fields = line.split(b" ")
        point = re.sub(rb"\\([0-7]{3})", lambda octal: bytes([int(octal[1], 8)]), fields[4])
        yield Path(os.fsdecode(point)), os.fsdecode(fields[fields.index(b"-") + 2])


def mounted_below(directory: Path) -> list[Path]:
    """Mount points strictly below a directory, deepest first."""
    found = [point for point, _ in _table() if point != directory and point.is_relative_to(directory)]
    return sorted(found, key=lambda point: len(point.parts), reverse=True)


def source_of(path: Path) -> str | None:
    """The source of what is mounted exactly there, or None when nothing is."""
    found = None
    for point, source in _table():
        if point == path:
            found = source
    return found


# ---- what the rooms use; these raise errors of ours


def user_namespace(id_base: int, count: int = 65536) -> int:
    """A descriptor of a new user namespace that maps 0..count-1 to id_base...; the caller keeps and closes it.

    `cat` lives for the moment in which the map is written: its echo says that it is inside the new namespace.
    """
    with reported(f"making a user namespace at {id_base}"):
        child = subprocess.Popen(
            ["unshare", "--user", "cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
        )
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(b"\n")
            child.stdin.flush()
            if not is_readable(child.stdout.fileno(), within=10.0) or not child.stdout.read(1):
                raise OSError(errno.EPERM, "no user namespace could be made; is user.max_user_namespaces 0?")
            for name in ("uid_map", "gid_map"):
                Path(f"/proc/{child.pid}/{name}").write_text(f"0 {id_base} {count}\n")
            return os.open(f"/proc/{child.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            child.kill()
            child.wait(timeout=10)
            child.stdin.close()
            child.stdout.close()


def mount_at(mount: int, at: Path) -> None:
    """Attaches a detached mount at a directory, which is made, and closes its descriptor."""
    try:
        with reported(f"mounting at {at}"):
            at.mkdir(parents=True, exist_ok=True)
            move_mount(mount, at)
    finally:
        os.close(mount)


def mount_image(path: Path, at: Path, *, loop: bool = False) -> None:
    """Mounts an EROFS image read-only. nosuid is right here: what may be setuid is said by the overlay above.

    From the file itself with Linux 6.12 and later, else, or with `loop`, through a loop device.
    """
    attributes = RDONLY | NODEV | NOSUID
    with reported(f"mounting image {path}"):
        if not loop:
            try:
                mount = new_mount("erofs", [("source", str(path))], attributes=attributes, read_only=True)
            except OSError as error:
                if error.errno != errno.ENOTBLK:
                    raise
                loop = True
        if loop:
            device, descriptor = loops.attach(path, read_only=True)
            try:
                mount = new_mount("erofs", [("source", device)], attributes=attributes, read_only=True)
            finally:
                os.close(descriptor)
    mount_at(mount, at)


def filesystem(kind: str, source: str, options: Mapping[str, str] | None = None) -> int:
    """A block device's file system as a detached mount: nodev, nosuid, noatime."""
    with reported(f"mounting {source}"):
        parameters = [("source", source), *(options or {}).items()]
        return new_mount(kind, parameters, attributes=NODEV | NOSUID | NOATIME)


def idmapped(path: Path, userns: int) -> int:
    """A detached clone of the mount at `path` whose ids are seen through a user namespace."""
    with reported(f"mapping the ids of {path}"):
        clone = open_tree(path)
        try:
            set_attributes(clone, IDMAP, userns=userns)
        except OSError:
            os.close(clone)
            raise
        return clone


def can_stack_detached() -> bool:
    """Whether a mount that is attached nowhere can be a layer of an overlay. A late probe would be a failed claim."""
    return is_kernel(6, 15)


def is_kernel(major: int, minor: int) -> bool:
    """This one or a later one."""
    here = re.findall(r"\d+", os.uname().release)[:2]
    return (int(here[0]), int(here[1])) >= (major, minor)


def overlay(
    lowers: Sequence[Path | int],
    objects: Path | None,
    *,
    upper: Path | None = None,
    work: Path | None = None,
    allow_setuid: bool = False,
) -> int:
    """An overlay as a detached mount; without an upper it is read-only.

    `lowers` are directories or detached mounts, the topmost first; `objects` is the data-only layer that the
    metacopy entries of images point into, which needs Linux 6.5; None where lowers are plain directories. Detached
    lowers need `can_stack_detached`.
    Layers are named by descriptor: a value of fsconfig ends at 256 bytes, and no path of ours shows inside.
    """
    with contextlib.ExitStack() as opened, reported("mounting an overlay"):

        def named(layer: Path | int) -> str:
            if isinstance(layer, Path):
                layer = os.open(layer, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                opened.callback(os.close, layer)
            return f"/proc/self/fd/{layer}"

        options = [
            ("source", "root"),
            ("lowerdir", ":".join(named(layer) for layer in lowers) + (f"::{named(objects)}" if objects else "")),
            ("metacopy", "on"),
            ("redirect_dir", "on" if upper else "follow"),
            ("index", "off"),
            ("xino", "auto"),
        ]
        attributes = NODEV | (0 if allow_setuid else NOSUID)
        if upper and work:
            options += [("upperdir", named(upper)), ("workdir", named(work))]
        else:
            attributes |= RDONLY
        mount = new_mount("overlay", options, attributes=attributes)
    if upper and os.fstatvfs(mount).f_flag & os.ST_RDONLY:
        os.close(mount)
        # The kernel does this without an error when it cannot use the work directory.
        raise StorageFailed(
            f"the overlay over {upper} came up read-only", code="mount_failed", hint="its work directory is not usable"
        )
    return mount


def tmpfs(*, max_bytes: int, owner: int, mode: int = 0o755) -> int:
    """A detached tmpfs that belongs to `owner`, a host id."""
    with reported("mounting a tmpfs"):
        options = [
            ("source", "tmpfs"),
            ("size", str(max_bytes)),
            ("nr_inodes", str(max(1024, max_bytes // 4096))),
            ("mode", f"{mode:o}"),
            ("uid", str(owner)),
            ("gid", str(owner)),
        ]
        return new_mount("tmpfs", options, attributes=NODEV | NOSUID)
