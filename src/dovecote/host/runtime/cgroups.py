"""Limits and counts of one instance, freezing it, and finding all its processes. Drivers: v1 (and hybrid), v2."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dovecote.errors import Conflict, DeadlineExceeded, Failed
from dovecote.host.runtime.box import parse_box_name
from dovecote.model.sizes import Limits

FREEZE_WITHIN = 2.0
KILL_WITHIN = 5.0
REMOVE_WITHIN = 3.0
CPU_PERIOD_US = 100_000


@dataclass(frozen=True)
class Usage:
    """What a group uses. `memory_bytes` is what its limit is held against, page cache (`cache_bytes`) included."""

    memory_bytes: int
    cache_bytes: int
    cpu_seconds: float
    pids: int
    oom_kills: int


class Cgroups(Protocol):
    """The groups of one installation, one per instance, below one parent. Every method may be repeated.

    A name that does not exist raises NotFound where the method needs the group. tests/contract/test_cgroups.py and
    test_runtime.py say the rest.
    """

    @property
    def foreign_mounts(self) -> tuple[Path, ...]:
        """Mounted hierarchies that are not ours to use, which a runtime should not see."""

    async def create(self, name: str, limits: Limits) -> None:
        """Makes the group with its limits, devices denied but for the standard ones. Unsupported: no controller."""

    async def limit(self, name: str, limits: Limits) -> None:
        """New limits for what runs. Raises Conflict `memory_in_use` when it already uses more than it may have then."""

    def path(self, name: str) -> str:
        """The group as a runtime names it: `/parent/name`, from the root of each hierarchy."""

    def join_files(self, name: str) -> tuple[Path, ...]:
        """A process of one thread that writes `0` to each of these enters the group, with all that it will start."""

    async def freeze(self, name: str, *, within: float = FREEZE_WITHIN) -> None:
        """Returns when no process of it gets CPU. Raises DeadlineExceeded `freeze_timeout`, and it is thawed then."""

    async def thaw(self, name: str) -> None:
        """Returns when its processes may run again."""

    def thaw_file(self, name: str) -> tuple[Path, str]:
        """A file and what to write to it, for one that must thaw the group without us. Raises NotFound."""

    def is_frozen(self, name: str) -> bool: ...

    def usage(self, name: str) -> Usage: ...

    def pids(self, name: str) -> list[int]:
        """Its processes, by the host's ids; empty when there is no such group."""

    async def kill(self, name: str) -> None:
        """SIGKILL to all, frozen ones too, until none is left. Raises Failed `kill_timeout`."""

    async def remove(self, name: str) -> None:
        """Takes the empty group away, waiting for processes that are about to end. Raises Failed `cgroup_busy`."""

    def names(self) -> list[str]:
        """Of the groups that exist."""

    async def clear(self) -> None:
        """Takes the parent away when no group is left. Called when the installation goes down."""


def cpu_quota_us(limits: Limits) -> int:
    """Microseconds of CPU in each period; the kernel takes no less than a millisecond."""
    return max(1000, int(limits.cpus * CPU_PERIOD_US))


def write(file: Path, value: str | int) -> None:
    """One write(2) with the value, as the kernel wants it."""
    fd = os.open(file, os.O_WRONLY)
    try:
        os.write(fd, str(value).encode())
    finally:
        os.close(fd)


def read_flat(file: Path) -> dict[str, int]:
    """`key value` lines."""
    return {key: int(value) for key, value in (line.split() for line in file.read_text().splitlines())}


def read_pids(group: Path) -> list[int]:
    """Processes of a group and of those below it."""
    found: set[int] = set()
    for directory, _, _ in os.walk(group):
        try:
            found.update(int(line) for line in Path(directory, "cgroup.procs").read_text().split())
        except OSError:  # ENOENT, ENODEV: removed meanwhile
            continue
    return sorted(found - {0})


def list_groups(parent: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(parent) if entry.is_dir())
    except FileNotFoundError:
        return []


async def wait_frozen(name: str, is_frozen: Callable[[], bool], thaw: Callable[[], None], *, within: float) -> None:
    """Freezing is asked for; waits until it is so, or takes it back."""
    deadline = time.monotonic() + within
    try:
        while not is_frozen():
            if time.monotonic() > deadline:
                raise DeadlineExceeded(
                    f"{name} did not freeze within {within:g} s",
                    code="freeze_timeout",
                    hint="a process of it waits for a disk or a file system; it goes on running",
                )
            await asyncio.sleep(0.0002)
    except BaseException:
        thaw()
        raise


async def kill_all(name: str, pids: Callable[[], list[int]], strike: Callable[[], None]) -> None:
    """Calls `strike` until nothing is left."""
    deadline = time.monotonic() + KILL_WITHIN
    while pids():
        strike()
        if time.monotonic() > deadline:
            raise Failed(
                f"{len(pids())} processes of {name} did not end within {KILL_WITHIN:g} s",
                code="kill_timeout",
                hint="they wait in the kernel, most likely for a disk; try again",
            )
        await asyncio.sleep(0.001)


def send_kill(pids: list[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


async def remove_all(name: str, groups: Sequence[Path]) -> None:
    """Removes each group and those below it. A process that was killed still counts for a moment."""
    deadline = time.monotonic() + REMOVE_WITHIN
    left = list(groups)
    while left := [group for group in left if not _remove_tree(group)]:
        if time.monotonic() > deadline:
            raise Failed(
                f"the cgroup {left[0]} is still in use", code="cgroup_busy", hint="kill what runs in it, then try again"
            )
        await asyncio.sleep(0.001)


def _remove_tree(group: Path) -> bool:
    """True when it is gone."""
    for directory, _, _ in os.walk(group, topdown=False):
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            continue
        except OSError:  # EBUSY
            return False
    return True


def memory_in_use(name: str, wanted: int) -> Conflict:
    return Conflict(
        f"{name} uses more than {wanted} bytes of memory and cannot be shrunk to that",
        code="memory_in_use",
        hint="stop something in it first, or choose a larger size",
    )


def group_path(root: Path, parent: str, name: str) -> Path:
    return root / parent / parse_box_name(name)
