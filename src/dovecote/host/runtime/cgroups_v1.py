"""cgroup v1, also where an empty v2 is mounted beside it (hybrid)."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Mapping, Sequence
from pathlib import Path

from dovecote.errors import NotFound
from dovecote.host.runtime import cgroups as common
from dovecote.host.runtime.cgroups import CPU_PERIOD_US, Usage, write
from dovecote.model.sizes import Limits

CONTROLLERS = ("cpu", "cpuacct", "memory", "pids", "freezer", "devices")

# null, zero, full, random, urandom, tty, ptmx and the pseudo-terminals; to use, never to make.
DEVICES = ("1:3", "1:5", "1:7", "1:8", "1:9", "5:0", "5:2", "136:*")


class CgroupsV1:
    """Groups in each of the hierarchies that have our controllers. `mounts` says where a controller is mounted."""

    def __init__(self, mounts: Mapping[str, Path], parent: str, foreign_mounts: Sequence[Path] = ()) -> None:
        self.parent = parent
        self._mounts = {controller: mounts[controller] for controller in CONTROLLERS}
        self._hierarchies = list(dict.fromkeys(self._mounts.values()))  # cpu and cpuacct are often one
        self._foreign = tuple(foreign_mounts)

    @property
    def foreign_mounts(self) -> tuple[Path, ...]:
        return self._foreign

    async def create(self, name: str, limits: Limits) -> None:
        await asyncio.to_thread(self._create, name, limits)

    def _create(self, name: str, limits: Limits) -> None:
        for root in self._hierarchies:
            common.group_path(root, self.parent, name).mkdir(parents=True, exist_ok=True)
        devices = self._group("devices", name)
        write(devices / "devices.deny", "a")
        for number in DEVICES:
            write(devices / "devices.allow", f"c {number} rw")
        self._limit(name, limits)

    async def limit(self, name: str, limits: Limits) -> None:
        self._require(name)
        await asyncio.to_thread(self._limit, name, limits)  # the kernel may have to reclaim memory first

    def _limit(self, name: str, limits: Limits) -> None:
        self._limit_memory(name, limits.memory_bytes)
        cpu = self._group("cpu", name)
        write(cpu / "cpu.cfs_period_us", CPU_PERIOD_US)
        write(cpu / "cpu.cfs_quota_us", common.cpu_quota_us(limits))
        write(cpu / "cpu.shares", max(2, int(1024 * limits.cpus)))
        write(self._group("pids", name) / "pids.max", limits.pids)

    def _limit_memory(self, name: str, wanted: int) -> None:
        memory = self._group("memory", name)
        files = [memory / "memory.limit_in_bytes", memory / "memory.memsw.limit_in_bytes"]
        if wanted > int(files[0].read_text()):
            files.reverse()  # memory and swap together may never be less than memory
        for file in files:
            if not file.exists():  # the kernel was started without accounting of swap
                continue
            try:
                write(file, wanted)
            except OSError as error:
                if error.errno == errno.EBUSY:
                    raise common.memory_in_use(name, wanted) from error
                raise

    def path(self, name: str) -> str:
        return "/" + str(common.group_path(Path(), self.parent, name))

    def join_files(self, name: str) -> tuple[Path, ...]:
        # A thread that moves itself by `tasks` takes no lock of the whole machine; by `cgroup.procs` it costs a
        # millisecond in each hierarchy.
        return tuple(common.group_path(root, self.parent, name) / "tasks" for root in self._hierarchies)

    async def freeze(self, name: str, *, within: float = common.FREEZE_WITHIN) -> None:
        state, thawed = self.thaw_file(name)
        write(state, "FROZEN")
        await common.wait_frozen(name, lambda: self.is_frozen(name), lambda: write(state, thawed), within=within)

    async def thaw(self, name: str) -> None:
        write(*self.thaw_file(name))

    def thaw_file(self, name: str) -> tuple[Path, str]:
        self._require(name)
        return self._group("freezer", name) / "freezer.state", "THAWED"

    def is_frozen(self, name: str) -> bool:
        self._require(name)
        return (self._group("freezer", name) / "freezer.state").read_text().strip() == "FROZEN"

    def usage(self, name: str) -> Usage:
        self._require(name)
        memory = self._group("memory", name)
        return Usage(
            memory_bytes=int((memory / "memory.usage_in_bytes").read_text()),
            cache_bytes=common.read_flat(memory / "memory.stat").get("total_cache", 0),
            cpu_seconds=int((self._group("cpuacct", name) / "cpuacct.usage").read_text()) / 1e9,
            pids=int((self._group("pids", name) / "pids.current").read_text()),
            oom_kills=common.read_flat(memory / "memory.oom_control").get("oom_kill", 0),
        )

    def pids(self, name: str) -> list[int]:
        return common.read_pids(self._group("freezer", name))

    async def kill(self, name: str) -> None:
        await common.kill_all(name, lambda: self.pids(name), lambda: self._strike(name))

    def _strike(self, name: str) -> None:
        common.send_kill(self.pids(name))
        with contextlib.suppress(FileNotFoundError):
            write(self._group("freezer", name) / "freezer.state", "THAWED")  # a frozen process dies once it may run

    async def remove(self, name: str) -> None:
        await common.remove_all(name, [common.group_path(root, self.parent, name) for root in self._hierarchies])

    def names(self) -> list[str]:
        return sorted({name for root in self._hierarchies for name in common.list_groups(root / self.parent)})

    async def clear(self) -> None:
        if not self.names():
            await common.remove_all(self.parent, [root / self.parent for root in self._hierarchies])

    def _group(self, controller: str, name: str) -> Path:
        return common.group_path(self._mounts[controller], self.parent, name)

    def _require(self, name: str) -> None:
        if not self._group("freezer", name).is_dir():
            raise NotFound(f"no cgroup {self.path(name)}", code="no_cgroup")
