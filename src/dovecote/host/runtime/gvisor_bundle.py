"""An OCI bundle for a box of gVisor: a whole root from the start, and the door that its first process opens."""

from __future__ import annotations

from typing import Any

from dovecote.host.runtime.box import DOOR, Box
from dovecote.host.runtime.bundle import (
    DEV_SHM_BYTES,
    MASKED_PATHS,
    READ_ONLY_PATHS,
    id_mappings,
    mount,
    namespaces,
    process,
)

RUN_BYTES = 64 << 20


def render_sandbox(box: Box) -> dict[str, Any]:
    """The configuration. The filter of system calls is gVisor's own: what a program calls never reaches the machine."""
    return {
        "ociVersion": "1.0.2",
        "process": process(box),
        "root": {"path": str(box.rootfs), "readonly": False},
        "hostname": box.hostname[:63],
        "mounts": _mounts(box),
        "linux": {
            "namespaces": namespaces(box, ("user", "pid", "ipc", "uts", "mount")),
            **id_mappings(box),
            "maskedPaths": list(MASKED_PATHS),
            "readonlyPaths": list(READ_ONLY_PATHS),
        },
    }


def _mounts(box: Box) -> list[dict[str, Any]]:
    assert box.door is not None
    return [
        mount("/proc", "proc", "nosuid", "noexec", "nodev"),
        mount("/dev", "tmpfs", "nosuid", "noexec", "mode=755", "size=65536"),
        mount("/dev/pts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
        mount("/dev/shm", "tmpfs", "nosuid", "noexec", "nodev", "mode=1777", f"size={DEV_SHM_BYTES}"),
        mount("/sys", "sysfs", "ro", "nosuid", "noexec", "nodev"),
        # gVisor puts a tmpfs of its own over an empty /tmp unless something is named for it; a kind that it does not
        # know it passes over.
        mount("/tmp", "left-as-it-is"),
        mount("/run", "tmpfs", "nosuid", "nodev", "mode=755", f"size={RUN_BYTES}"),
        mount(DOOR, "bind", "bind", "rw", "nosuid", "nodev", source=str(box.door)),
        *[
            mount(at, "bind", "rbind", "ro" if is_read_only else "rw", "nosuid", "nodev", source=str(source))
            for at, source, is_read_only in box.mounts
        ],
    ]
