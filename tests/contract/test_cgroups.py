"""What every cgroup driver promises, with real processes: the driver of this machine, and v2 where one is mounted."""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dovecote.errors import Conflict, NotFound
from dovecote.host.runtime import Cgroups, Pauses, probe_cgroups
from dovecote.host.runtime.cgroups_v2 import CgroupsV2
from dovecote.host.runtime.probe import parse_mounts
from dovecote.model.sizes import MIB, Limits
from tests.contract.runtime_rig import status, until

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(bool(os.geteuid()), reason="needs root")]

# Two children that burn, in the group that $1... name.
SPIN = 'for file; do echo 0 > "$file" || exit 97; done; (while :; do :; done) & (while :; do :; done) & wait'


# Pauses the group that $2 names below $1, says so, and never ends.
HOLD = """
import asyncio, sys
from dovecote.host.runtime import Pauses, probe_cgroups
from dovecote.host.runtime.cgroups_v2 import CgroupsV2
from tests.contract.test_cgroups import unified

async def hold():
    v2 = sys.argv[3] == "CgroupsV2" and unified()
    driver = CgroupsV2(unified(), sys.argv[1]) if v2 else probe_cgroups(sys.argv[1])
    async with Pauses(driver).still(sys.argv[2]) as is_still:
        print(is_still, flush=True)
        await asyncio.Event().wait()

asyncio.run(hold())
"""


class Group:
    """One real group, and processes in it."""

    def __init__(self, driver: Cgroups, parent: str) -> None:
        self.driver = driver
        self.parent = parent
        self.name = "box"
        self.started: list[asyncio.subprocess.Process] = []

    async def spin(self) -> None:
        files = [str(file) for file in self.driver.join_files(self.name)]
        self.started.append(await asyncio.create_subprocess_exec("/bin/sh", "-c", SPIN, "spin", *files))
        assert await until(lambda: len(self.driver.pids(self.name)) == 3)

    def ticks(self) -> int:
        """CPU time of its processes, in clock ticks."""
        total = 0
        for pid in self.driver.pids(self.name):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
        return total


def unified() -> Path | None:
    return next(iter(parse_mounts(Path("/proc/self/mountinfo").read_text())[1]), None)


@pytest.fixture(params=["of this machine", "v2"])
async def group(request: pytest.FixtureRequest) -> AsyncIterator[Group]:
    parent = f"dovecote-test-{secrets.token_hex(4)}"
    root = unified()
    if request.param == "v2":
        if root is None:
            pytest.skip("no cgroup v2 is mounted")
        # On a hybrid machine it has no controllers, hence no limits to set: its groups are made as they are.
        (root / parent / "box").mkdir(parents=True)
        driver: Cgroups = CgroupsV2(root, parent)
    else:
        driver = probe_cgroups(parent)
        await driver.create("box", Limits(memory_bytes=64 * MIB))
    group = Group(driver, parent)
    try:
        yield group
    finally:
        await driver.kill(group.name)
        for process in group.started:
            await process.wait()
        await driver.remove(group.name)
        await driver.clear()
        assert not driver.names()


async def test_joining_takes_children_along(group: Group) -> None:
    await group.spin()
    parents = {int(status(pid)["PPid"]) for pid in group.driver.pids(group.name)}
    assert group.started[0].pid in parents


async def test_freeze_stops_and_thaw_goes_on(group: Group) -> None:
    await group.spin()
    assert await until(lambda: group.ticks() > 5)
    for _ in range(2):
        await group.driver.freeze(group.name)
    assert group.driver.is_frozen(group.name)
    frozen = group.ticks()
    assert not await until(lambda: group.ticks() > frozen + 1, within=0.2)
    for _ in range(2):
        await group.driver.thaw(group.name)
    assert not group.driver.is_frozen(group.name)
    assert await until(lambda: group.ticks() > frozen + 5)


async def test_a_pause_stops_all_for_a_moment(group: Group) -> None:
    pauses = Pauses(group.driver)
    await group.spin()
    try:
        for _ in range(2):
            async with pauses.still(group.name) as is_still:
                assert is_still
                assert group.driver.is_frozen(group.name)
            assert not group.driver.is_frozen(group.name)
        async with pauses.still("no-such") as is_still:
            assert not is_still
    finally:
        await pauses.stop()


async def test_whoever_pauses_and_is_killed_leaves_nothing_standing(group: Group) -> None:
    await group.spin()
    holding = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOLD, group.parent, group.name, type(group.driver).__name__, stdout=PIPE, stderr=PIPE
    )
    assert holding.stdout is not None
    assert await holding.stdout.readline() == b"True\n"
    assert group.driver.is_frozen(group.name)
    holding.kill()
    await holding.wait()
    assert await until(lambda: not group.driver.is_frozen(group.name))


@pytest.mark.parametrize("frozen", [False, True])
async def test_kill_reaches_all_also_when_frozen(group: Group, frozen: bool) -> None:
    await group.spin()
    if frozen:
        await group.driver.freeze(group.name)
    await group.driver.kill(group.name)
    assert group.driver.pids(group.name) == []
    await group.driver.kill(group.name)
    assert await group.started[0].wait() == -9


async def test_remove_is_repeatable_and_forgets_the_name(group: Group) -> None:
    assert group.driver.names() == [group.name]
    await group.driver.remove(group.name)
    await group.driver.remove(group.name)
    assert group.driver.names() == []
    with pytest.raises(NotFound):
        await group.driver.freeze(group.name)


async def test_clear_leaves_groups_that_exist(group: Group) -> None:
    await group.driver.clear()
    assert group.driver.names() == [group.name]


async def test_shrinking_below_what_is_used_is_refused() -> None:
    driver = probe_cgroups(f"dovecote-test-{secrets.token_hex(4)}")
    await driver.create("box", Limits(memory_bytes=64 * MIB))
    files = [str(file) for file in driver.join_files("box")]
    script = 'for file; do echo 0 > "$file" || exit 97; done; exec python3 -c "x = bytearray(40 << 20); input()"'
    process = await asyncio.create_subprocess_exec(
        "/bin/sh", "-c", script, "hold", *files, stdin=asyncio.subprocess.PIPE
    )
    try:
        assert await until(lambda: driver.usage("box").memory_bytes > 40 * MIB)
        with pytest.raises(Conflict) as refused:
            await driver.limit("box", Limits(memory_bytes=8 * MIB))
        assert refused.value.code == "memory_in_use"
        assert process.returncode is None
    finally:
        await driver.kill("box")
        await process.wait()
        await driver.remove("box")
        await driver.clear()
