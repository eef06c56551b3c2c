"""An OCI bundle for a box: namespaces, capabilities, mounts, masks and limits of its processes."""

from __future__ import annotations

import json
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dovecote.host.runtime.box import Box
from dovecote.host.runtime.seccomp import profile

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# What apt, sudo, su and servers that drop their own rights use. All act inside of the box's user namespace only.
CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
)

MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/bootconfig",
    "/proc/cmdline",
    "/proc/config.gz",
    "/proc/interrupts",
    "/proc/kallsyms",
    "/proc/kcore",
    "/proc/key-users",
    "/proc/keys",
    "/proc/kmsg",
    "/proc/latency_stats",
    "/proc/modules",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
)

READ_ONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

# The rest of /sys tells about the machine, its disks and its other networks.
SYS_PARTS = ("/sys/devices/system/cpu", "/sys/kernel/mm/transparent_hugepage")

DEV_SHM_BYTES = 512 << 20  # pages in it count against the box's own memory


def write_bundle(box: Box, cgroups_path: str | None) -> Path:
    """Writes `config.json` into the box's directory and returns the directory."""
    (box.directory / "config.json").write_text(json.dumps(render_config(box, cgroups_path)))
    return box.directory


def render_config(box: Box, cgroups_path: str | None = None) -> dict[str, Any]:
    """The OCI runtime configuration. `cgroups_path` is for a runtime that enters the cgroup by itself."""
    return {
        "ociVersion": "1.0.2",
        "process": process(box),
        "root": {"path": str(box.rootfs), "readonly": True},
        "hostname": box.hostname[:63],
        "mounts": _mounts(),
        "linux": {
            "namespaces": namespaces(box, ("user", "pid", "ipc", "uts", "mount", "cgroup")),
            **id_mappings(box),
            "seccomp": profile(),
            "maskedPaths": list(MASKED_PATHS),
            "readonlyPaths": list(READ_ONLY_PATHS),
            **({"cgroupsPath": cgroups_path} if cgroups_path else {}),
        },
    }


def process(box: Box) -> dict[str, Any]:
    # Nobody in a user namespace can raise a limit, so ours is the most that there is.
    open_files = min(box.open_files, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    return {
        "terminal": False,
        "user": {"uid": 0, "gid": 0},
        "args": list(box.argv),
        "env": [f"PATH={PATH}"],
        "cwd": "/",
        # Nothing inheritable: a program of another user gains nothing by being started.
        "capabilities": {kind: list(CAPABILITIES) for kind in ("bounding", "effective", "permitted")},
        "noNewPrivileges": not box.allow_setuid,
        # When the whole machine is short of memory, a sandbox goes before a server.
        "oomScoreAdj": 500,
        "rlimits": [
            {"type": "RLIMIT_NOFILE", "soft": open_files, "hard": open_files},
            {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
        ],
    }


def namespaces(box: Box, kinds: Sequence[str]) -> list[dict[str, str]]:
    network = {"type": "network"} | ({"path": str(box.netns)} if box.netns else {})
    return [{"type": kind} for kind in kinds] + [network]


def id_mappings(box: Box) -> dict[str, Any]:
    mapping = {"containerID": 0, "hostID": box.id_base, "size": box.id_count}
    return {"uidMappings": [mapping], "gidMappings": [mapping]}


def _mounts() -> list[dict[str, Any]]:
    return [
        mount("/proc", "proc", "nosuid", "noexec", "nodev"),
        mount("/dev", "tmpfs", "nosuid", "noexec", "mode=755", "size=65536"),
        mount("/dev/pts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
        mount("/dev/shm", "tmpfs", "nosuid", "noexec", "nodev", "mode=1777", f"size={DEV_SHM_BYTES}"),
        mount("/dev/mqueue", "mqueue", "nosuid", "noexec", "nodev"),
        # A sysfs of its own would need the network namespace to belong to the box, which then could change it; and
        # without that a runtime binds the host's whole /sys, cgroups included.
        mount("/sys", "tmpfs", "ro", "nosuid", "noexec", "nodev", "mode=755", "size=65536"),
        *[mount(part, "bind", "bind", "ro", "nosuid", "noexec", "nodev", source=part) for part in _present(SYS_PARTS)],
    ]


def _present(paths: tuple[str, ...]) -> list[str]:
    return [path for path in paths if Path(path).is_dir()]


def mount(destination: str, kind: str, *options: str, source: str = "") -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": source or kind, "options": list(options)}
