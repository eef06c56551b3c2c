"""cgroup v2, the unified hierarchy."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

from dovecote.errors import NotFound, Unsupported
from dovecote.host.runtime import cgroups as common
from dovecote.host.runtime.cgroups import CPU_PERIOD_US, Usage, write
from dovecote.model.sizes import Limits

CONTROLLERS = ("cpu", "memory", "pids")


class CgroupsV2:
    """Groups below one parent in the hierarchy mounted at `root`.

    There is no devices controller in v2. Nodes of devices cannot be made or used inside all the same: container root
    has no CAP_MKNOD, and what is mounted for it is `nodev`.
    """

    def __init__(self, root: Path, parent: str) -> None:
        self.parent = parent
        self._root = root

    @property
    def foreign_mounts(self) -> tuple[Path, ...]:
        return ()

    async def create(self, name: str, limits: Limits) -> None:
        await asyncio.to_thread(self._create, name, limits)

    def _create(self, name: str, limits: Limits) -> None:
        group = self._group(name)
        parent = group.parent
        self._enable(self._root)
        parent.mkdir(exist_ok=True)
        self._enable(parent)
        group.mkdir(exist_ok=True)
        self._limit(name, limits)

    def _enable(self, group: Path) -> None:
        """Gives our controllers to the groups below."""
        enabled = (group / "cgroup.subtree_control").read_text().split()
        wanted = [controller for controller in CONTROLLERS if controller not in enabled]
        if not wanted:
            return
        try:
            write(group / "cgroup.subtree_control", " ".join(f"+{controller}" for controller in wanted))
        except OSError as error:
            reasons = {
                errno.EBUSY: "processes run in that group itself: move them to a group below it",
                errno.ENOENT: "that controller is disabled, or in use by cgroup v1",
            }
            raise Unsupported(
                f"cannot enable {', '.join(wanted)} in {group}: {error.strerror}",
                code="cgroup_controllers",
                hint=reasons.get(error.errno or 0, "start as root of the machine, or delegate the group"),
            ) from error

    async def limit(self, name: str, limits: Limits) -> None:
        self._require(name)
        await asyncio.to_thread(self._limit, name, limits)

    def _limit(self, name: str, limits: Limits) -> None:
        group = self._group(name)
        self._make_room(group, limits.memory_bytes)
        write(group / "memory.max", limits.memory_bytes)
        if (group / "memory.swap.max").exists():
            write(group / "memory.swap.max", 0)
        write(group / "cpu.max", f"{common.cpu_quota_us(limits)} {CPU_PERIOD_US}")
        write(group / "cpu.weight", min(10_000, max(1, int(100 * limits.cpus))))
        write(group / "pids.max", limits.pids)

    def _make_room(self, group: Path, wanted: int) -> None:
        """A smaller maximum would kill at once what is above it; so reclaim first, and refuse if that is not enough."""
        excess = int((group / "memory.current").read_text()) - wanted
        if excess <= 0:
            return
        try:
            write(group / "memory.reclaim", excess)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.ENOENT):  # not all of it; a kernel before 5.19
                raise
        if int((group / "memory.current").read_text()) > wanted:
            raise common.memory_in_use(group.name, wanted)

    def path(self, name: str) -> str:
        return "/" + str(common.group_path(Path(), self.parent, name))

    def join_files(self, name: str) -> tuple[Path, ...]:
        return (self._group(name) / "cgroup.procs",)

    async def freeze(self, name: str, *, within: float = common.FREEZE_WITHIN) -> None:
        file, thawed = self.thaw_file(name)
        write(file, 1)
        await common.wait_frozen(name, lambda: self.is_frozen(name), lambda: write(file, thawed), within=within)

    async def thaw(self, name: str) -> None:
        write(*self.thaw_file(name))

    def thaw_file(self, name: str) -> tuple[Path, str]:
        self._require(name)
        return self._group(name) / "cgroup.freeze", "0"

    def is_frozen(self, name: str) -> bool:
        self._require(name)
        return common.read_flat(self._group(name) / "cgroup.events").get("frozen") == 1

    def usage(self, name: str) -> Usage:
        self._require(name)
        group = self._group(name)
        return Usage(
            memory_bytes=int((group / "memory.current").read_text()),
            cache_bytes=common.read_flat(group / "memory.stat").get("file", 0),
            cpu_seconds=common.read_flat(group / "cpu.stat")["usage_usec"] / 1e6,
            pids=int((group / "pids.current").read_text()),
            oom_kills=common.read_flat(group / "memory.events").get("oom_kill", 0),
        )

    def pids(self, name: str) -> list[int]:
        return common.read_pids(self._group(name))

    async def kill(self, name: str) -> None:
        await common.kill_all(name, lambda: self.pids(name), lambda: self._strike(name))

    def _strike(self, name: str) -> None:
        try:
            write(self._group(name) / "cgroup.kill", 1)  # reaches frozen processes, and new ones cannot slip by
        except FileNotFoundError:  # a kernel before 5.14, or the group is gone
            common.send_kill(self.pids(name))

    async def remove(self, name: str) -> None:
        await common.remove_all(name, [self._group(name)])

    def names(self) -> list[str]:
        return common.list_groups(self._root / self.parent)

    async def clear(self) -> None:
        if not self.names():
            await common.remove_all(self.parent, [self._root / self.parent])

    def _group(self, name: str) -> Path:
        return common.group_path(self._root, self.parent, name)

    def _require(self, name: str) -> None:
        if not self._group(name).is_dir():
            raise NotFound(f"no cgroup {self.path(name)}", code="no_cgroup")
