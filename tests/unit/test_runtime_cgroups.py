"""What the cgroup drivers write, on directories that stand for a hierarchy."""

from __future__ import annotations

from pathlib import Path

import pytest

from dovecote.errors import Conflict, DeadlineExceeded, Failed, Invalid, NotFound, Unsupported
from dovecote.host.runtime import cgroups, probe_cgroups
from dovecote.host.runtime.cgroups_v1 import CgroupsV1
from dovecote.host.runtime.cgroups_v2 import CgroupsV2
from dovecote.host.runtime.probe import parse_mounts
from dovecote.model.sizes import MIB, Limits

pytestmark = pytest.mark.anyio

LIMITS = Limits(cpus=0.5, memory_bytes=100 * MIB, pids=64)

V2_FILES = {
    "memory.max": "max",
    "memory.swap.max": "max",
    "memory.current": "4096",
    "memory.stat": "anon 2048\nfile 1024\n",
    "memory.reclaim": "",
    "memory.events": "low 0\noom 3\noom_kill 2\n",
    "cpu.max": "max 100000",
    "cpu.weight": "100",
    "cpu.stat": "usage_usec 2500000\nuser_usec 1\n",
    "pids.max": "max",
    "pids.current": "5",
    "cgroup.freeze": "0",
    "cgroup.events": "populated 1\nfrozen 0\n",
    "cgroup.procs": "",
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A v2 hierarchy with a group `parent/box`; a fake one makes no files by itself."""
    for group in (tmp_path, tmp_path / "parent", tmp_path / "parent" / "box"):
        group.mkdir(exist_ok=True)
        (group / "cgroup.controllers").write_text("cpu io memory pids\n")
        (group / "cgroup.subtree_control").write_text("")
    for name, text in V2_FILES.items():
        (tmp_path / "parent" / "box" / name).write_text(text)
    return tmp_path


def value(file: Path) -> str:
    return file.read_text()


def clean(tree: Path, *names: str) -> Path:
    """Empties files first: the kernel replaces what a file says, an ordinary file keeps its longer tail."""
    group = tree / "parent" / "box"
    for name in names:
        (group / name).write_text("")
    return group


async def test_v2_gives_controllers_along_the_path_and_sets_limits(tree: Path) -> None:
    group = clean(tree, "memory.max", "memory.swap.max", "cpu.max", "cpu.weight", "pids.max")
    await CgroupsV2(tree, "parent").create("box", LIMITS)
    for place in (tree, tree / "parent"):
        assert value(place / "cgroup.subtree_control") == "+cpu +memory +pids"
    assert value(group / "cgroup.subtree_control") == ""
    written = {name: value(group / name) for name in ("memory.max", "memory.swap.max", "cpu.max", "pids.max")}
    assert written == {
        "memory.max": str(100 * MIB),
        "memory.swap.max": "0",
        "cpu.max": "50000 100000",
        "pids.max": "64",
    }
    assert value(group / "cpu.weight") == "50"


async def test_v2_leaves_controllers_that_are_given_already(tree: Path) -> None:
    for place in (tree, tree / "parent"):
        (place / "cgroup.subtree_control").write_text("cpu io memory pids")
    await CgroupsV2(tree, "parent").create("box", LIMITS)
    assert value(tree / "cgroup.subtree_control") == "cpu io memory pids"


async def test_v2_refuses_to_shrink_below_what_is_used(tree: Path) -> None:
    group = clean(tree, "memory.current", "memory.max")
    (group / "memory.current").write_text(str(150 * MIB))
    with pytest.raises(Conflict) as refused:
        await CgroupsV2(tree, "parent").limit("box", LIMITS)
    assert refused.value.code == "memory_in_use"
    assert value(group / "memory.reclaim") == str(50 * MIB)
    assert value(group / "memory.max") == ""


async def test_v2_reads_usage(tree: Path) -> None:
    used = CgroupsV2(tree, "parent").usage("box")
    assert used == cgroups.Usage(memory_bytes=4096, cache_bytes=1024, cpu_seconds=2.5, pids=5, oom_kills=2)


async def test_v2_freezes_only_when_the_kernel_says_so(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "FREEZE_WITHIN", 0.01)
    driver = CgroupsV2(tree, "parent")
    with pytest.raises(DeadlineExceeded) as late:
        await driver.freeze("box")
    assert late.value.code == "freeze_timeout"
    group = tree / "parent" / "box"
    assert value(group / "cgroup.freeze") == "0"  # taken back
    (group / "cgroup.events").write_text("populated 1\nfrozen 1\n")
    await driver.freeze("box")
    assert value(group / "cgroup.freeze") == "1"
    assert driver.is_frozen("box")
    await driver.thaw("box")
    assert value(group / "cgroup.freeze") == "0"


async def test_v2_kill_that_does_not_help_is_reported(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "KILL_WITHIN", 0.01)
    group = tree / "parent" / "box"
    (group / "cgroup.procs").write_text("4194305\n")  # above any pid
    (group / "cgroup.kill").write_text("")
    with pytest.raises(Failed) as failed:
        await CgroupsV2(tree, "parent").kill("box")
    assert failed.value.code == "kill_timeout"
    assert value(group / "cgroup.kill") == "1"


async def test_busy_group_is_reported(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "REMOVE_WITHIN", 0.01)
    with pytest.raises(Failed) as busy:
        await CgroupsV2(tree, "parent").remove("box")
    assert busy.value.code == "cgroup_busy"


async def test_absent_group_is_not_found_but_is_gone_for_kill_and_remove(tree: Path) -> None:
    driver = CgroupsV2(tree, "parent")
    for call in (driver.freeze, driver.thaw):
        with pytest.raises(NotFound):
            await call("other")
    with pytest.raises(NotFound):
        driver.usage("other")
    await driver.kill("other")
    await driver.remove("other")
    assert driver.pids("other") == []


async def test_names_that_leave_the_parent_are_refused(tree: Path) -> None:
    with pytest.raises(Invalid):
        await CgroupsV2(tree, "parent").create("../box", LIMITS)


@pytest.mark.parametrize("old", [50 * MIB, 200 * MIB])
async def test_v1_swap_is_never_below_memory(tmp_path: Path, old: int, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    mounts = {name: tmp_path / name for name in ("cpu", "cpuacct", "memory", "pids", "freezer", "devices")}
    driver = CgroupsV1(mounts, "parent")
    for place in mounts.values():
        (place / "parent" / "box").mkdir(parents=True)
    memory = mounts["memory"] / "parent" / "box"
    (memory / "memory.limit_in_bytes").write_text(str(old))
    (memory / "memory.memsw.limit_in_bytes").write_text(str(old))
    monkeypatch.setattr("dovecote.host.runtime.cgroups_v1.write", lambda file, value: order.append(file.name))
    await driver.limit("box", LIMITS)
    both = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
    assert order[:2] == (both if old > LIMITS.memory_bytes else both[::-1])


HYBRID = """\
25 1 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
26 25 0:23 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
27 25 0:24 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
28 25 0:25 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
29 25 0:26 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer
30 25 0:27 / /sys/fs/cgroup/devices rw - cgroup cgroup rw,devices
31 25 0:28 / /sys/fs/cgroup/systemd rw shared:1 - cgroup cgroup rw,name=systemd
32 25 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
"""


def test_mounts_of_a_hybrid_machine_are_understood() -> None:
    v1, v2 = parse_mounts(HYBRID)
    assert v1[Path("/sys/fs/cgroup/cpu,cpuacct")] == ("cpu", "cpuacct")
    assert v1[Path("/sys/fs/cgroup/systemd")] == ()
    assert v2 == [Path("/sys/fs/cgroup/unified")]


def test_probe_takes_v1_where_its_controllers_are_and_joins_each_hierarchy_once() -> None:
    driver = probe_cgroups("parent", HYBRID)
    assert isinstance(driver, CgroupsV1)
    assert driver.foreign_mounts == (Path("/sys/fs/cgroup/systemd"), Path("/sys/fs/cgroup/unified"))
    assert len(driver.join_files("box")) == 5
    assert driver.path("box") == "/parent/box"


def test_probe_takes_v2_where_it_has_the_controllers_and_names_what_is_missing(tmp_path: Path) -> None:
    line = f"32 25 0:29 / {tmp_path} rw - cgroup2 cgroup2 rw\n"
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    driver = probe_cgroups("parent", line)
    assert isinstance(driver, CgroupsV2)
    assert driver.join_files("box") == (tmp_path / "parent" / "box" / "cgroup.procs",)
    (tmp_path / "cgroup.controllers").write_text("cpu hugetlb\n")
    with pytest.raises(Unsupported, match="memory, pids"):
        probe_cgroups("parent", line)
