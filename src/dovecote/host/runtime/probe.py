"""Finds which cgroup driver this machine needs."""

from __future__ import annotations

from pathlib import Path

from dovecote.errors import Unsupported
from dovecote.host.runtime import cgroups_v1, cgroups_v2
from dovecote.host.runtime.cgroups import Cgroups
from dovecote.host.runtime.cgroups_v1 import CgroupsV1
from dovecote.host.runtime.cgroups_v2 import CgroupsV2

CONTROLLERS = {*cgroups_v1.CONTROLLERS, *cgroups_v2.CONTROLLERS, "cpuset", "blkio", "hugetlb", "perf_event"}


def probe_cgroups(parent: str, mountinfo: str | None = None) -> Cgroups:
    """The driver for this machine, with its groups below `parent`, such as `dovecote-a1b2c3`.

    Changes nothing. Raises Unsupported `cgroup_controllers`, which names what is missing.
    """
    text = Path("/proc/self/mountinfo").read_text() if mountinfo is None else mountinfo
    v1, v2 = parse_mounts(text)
    by_controller = {name: place for place, names in v1.items() for name in names}
    lacking = [name for name in cgroups_v1.CONTROLLERS if name not in by_controller]
    if not lacking:
        ours = {by_controller[name] for name in cgroups_v1.CONTROLLERS}
        return CgroupsV1(by_controller, parent, [place for place in (*v1, *v2) if place not in ours])
    for place in v2:
        offered = (place / "cgroup.controllers").read_text().split()
        lacking = [name for name in cgroups_v2.CONTROLLERS if name not in offered]
        if not lacking:
            return CgroupsV2(place, parent)
    raise Unsupported(
        f"cgroup controllers are missing: {', '.join(lacking)}",
        code="cgroup_controllers",
        hint="mount cgroup v2 at /sys/fs/cgroup, or the v1 controllers below it; in a container, run it privileged",
    )


def parse_mounts(mountinfo: str) -> tuple[dict[Path, tuple[str, ...]], list[Path]]:
    """v1 hierarchies with what they are for, and v2 hierarchies, from the text of `/proc/self/mountinfo`."""
    v1: dict[Path, tuple[str, ...]] = {}
    v2: list[Path] = []
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        place = Path(left.split()[4])
        kind, _, options = right.split()[:3]
        if kind == "cgroup":
            v1[place] = tuple(option for option in options.split(",") if option in CONTROLLERS)
        elif kind == "cgroup2":
            v2.append(place)
    return v1, v2
