"""What a runtime needs to start one container, and what a runtime can do."""

from __future__ import annotations

import os
import re
import shutil
import socket
from dataclasses import dataclass, replace
from pathlib import Path

from dovecote.errors import Invalid, Unsupported
from dovecote.model.sizes import Limits

LISTENER_FD = 3
DOOR = "/run/.dovecote"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class Capabilities:
    """What an isolation level can do; decisions read this and never the level's name."""

    can_swap_root: bool  # the root of a running container can be replaced from outside
    can_hibernate: bool  # memory and processes can be saved and restored
    can_mount_live: bool  # a directory can be mounted into a running container
    extra_memory_bytes: int = 0  # that it takes itself, besides what the processes inside may have
    extra_pids: int = 0

    def roomy(self, limits: Limits) -> Limits:
        """What the cgroup of a box must allow so that its processes have what they may have."""
        memory = limits.memory_bytes + self.extra_memory_bytes
        return replace(limits, memory_bytes=memory, pids=limits.pids + self.extra_pids)


@dataclass(frozen=True)
class Box:
    """One container. PID 1 is `argv`.

    Where roots can be swapped, it is found in `rootfs`, which is a stub, and has the listening socket as descriptor 3.
    Else `rootfs` is the whole root, for it alone and writable; the program is in `door`, a directory that is at `DOOR`
    inside, and binds its socket there. `mounts` are (place inside, directory, read-only), and with `memory` processes
    go on where they were saved (`Runtime.save_memory`).

    `directory` belongs to the caller, who removes it after `Runtime.delete`; the bundle and the runtime's log go there.
    A stub may be shared by any number of boxes: it is mounted read-only (see `ensure_stub`). Every directory on the
    way to a root must be searchable by others, because container root is nobody there.
    `netns` is a path to a network namespace, such as `/run/netns/x`; None gives a new one with nothing in it.
    `cgroup` is a name given to `Cgroups.create` before. `open_files` becomes no more than our own hard limit.
    """

    id: str
    directory: Path
    rootfs: Path
    id_base: int
    netns: Path | None
    cgroup: str
    listener: socket.socket | int | None
    argv: tuple[str, ...]
    hostname: str
    id_count: int = 65536
    allow_setuid: bool = False  # sudo works, because no_new_privs is off then
    open_files: int = 65536
    door: Path | None = None
    mounts: tuple[tuple[str, Path, bool], ...] = ()
    memory: Path | None = None

    def __post_init__(self) -> None:
        parse_box_name(self.id)
        if self.id_base < 65536 or self.id_count < 1:
            raise Invalid(
                f"ids from {self.id_base} are not a range for a box", hint="start at 65536 or above: below are users"
            )
        if not self.argv or not self.argv[0].startswith("/"):
            raise Invalid("a box needs the absolute path of its first program")

    @property
    def listener_fd(self) -> int:
        assert self.listener is not None
        return self.listener if isinstance(self.listener, int) else self.listener.fileno()


def cannot_hibernate(level: str) -> Unsupported:
    return Unsupported(
        f"isolation level {level} cannot save memory and processes",
        code="cannot_hibernate",
        hint="use level runsc, or park the session: files are kept at every level",
    )


def parse_box_name(text: str) -> str:
    """A name that can stand in a path and in a command, or Invalid."""
    if not _NAME.fullmatch(text):
        raise Invalid(f"not a name of a box or a cgroup: {text[:70]!r}", hint="use letters, digits, _ and -")
    return text


STUB_DIRECTORIES = ("dev", "new", "proc", "sys")


def ensure_stub(directory: Path, program: Path, name: str = "guest") -> Path:
    """A root with nothing but `program` in it as `/<name>`, and places to mount. Repeatable; replaces another program.

    The program may be run but not read by container root. The kernel therefore gives a process that runs it no debug
    access, so nobody inside can trace PID 1 or open its descriptors, whatever the program itself forgets.
    """
    for place in (directory, *(directory / place for place in STUB_DIRECTORIES)):
        place.mkdir(mode=0o755, parents=True, exist_ok=True)
        place.chmod(0o755)
    copy = directory / f".{name}.{os.getpid()}"
    shutil.copyfile(program, copy)
    copy.chmod(0o711)
    copy.replace(directory / name)  # a running one keeps its file
    return directory
