"""What every runtime promises, with the real crun, runc and runsc; and the walls of those that share a kernel."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from dovecote.errors import Conflict, Failed
from dovecote.host.runtime import LEVELS, SHARING
from dovecote.model.sizes import MIB, Limits
from tests.contract.runtime_rig import Rig, command, missing, opened, status, until

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(bool(missing(*SHARING)), reason=missing(*SHARING))]


@pytest.fixture(params=LEVELS)
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    if missing(request.param):
        pytest.skip(missing(request.param))
    async with opened(request.param) as rig:
        yield rig


@pytest.fixture(params=SHARING)
async def shared(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    """Where boxes share the machine's kernel."""
    async with opened(request.param) as rig:
        yield rig


async def settled_descriptors(pid: int) -> dict[str, str]:
    """Of a process that may be opening and closing some of its own while it starts: once they are the four to be."""
    for _ in range(100):
        found = {}
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(FileNotFoundError):
                found[name] = os.readlink(f"/proc/{pid}/fd/{name}")
        if len(found) == 4:
            break
        await anyio.sleep(0.02)
    return found


async def test_first_process_is_nobody_outside_and_root_inside(rig: Rig) -> None:
    box, pid = await rig.running()
    assert status(pid)["Uid"].split() == [str(box.id_base)] * 4
    assert "Uid:\t0\t0\t0\t0" in await rig.ask(box, "read /proc/self/status")


async def test_it_answers_on_its_socket(rig: Rig) -> None:
    box, _ = await rig.running()
    assert await rig.ask(box, "read /proc/sys/kernel/hostname") == "niche\n"


async def test_first_process_has_the_listener_and_nothing_else_of_ours(shared: Rig) -> None:
    _, pid = await shared.running()
    descriptors = await settled_descriptors(pid)
    assert {descriptors.pop(name) for name in "012"} == {"/dev/null"}
    assert list(descriptors) == ["3"]
    assert descriptors["3"].startswith("socket:")


async def test_only_own_processes_are_seen(rig: Rig) -> None:
    box, _ = await rig.running()
    for _ in range(50):  # one that has answered is there until the first process has noticed its end
        seen = [name for name in (await rig.ask(box, "list /proc")).split() if name.isdigit()]
        if len(seen) == 2:
            break
    assert len(seen) == 2  # itself and the one that answers
    assert "1" in seen


async def test_cgroups_and_devices_of_the_machine_are_not_seen(shared: Rig) -> None:
    box, _ = await shared.running()
    mounts = await shared.ask(box, "read /proc/self/mountinfo")
    assert "cgroup" not in mounts
    assert "sysfs /sys " not in mounts
    assert sorted((await shared.ask(box, "list /sys")).split()) == [".", "..", "devices", "kernel"]
    groups = (await shared.ask(box, "read /proc/self/cgroup")).split()
    ours = {"cpu", "cpuacct", "memory", "pids", "freezer", "devices", ""}
    assert all(path == "/" for _, name, path in (line.split(":", 2) for line in groups) if name in ours)
    assert set((await shared.ask(box, "list /dev")).split()) <= {
        ".", "..", "core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin",
        "stdout", "tty", "urandom", "zero",
    }  # fmt: skip


@pytest.mark.parametrize("allow_setuid", [False, True])
async def test_filter_and_capabilities_hold_whether_or_not_setuid_works(shared: Rig, allow_setuid: bool) -> None:
    _, pid = await shared.running(allow_setuid=allow_setuid)
    assert await until(lambda: status(pid)["Seccomp"] == "2")  # the program may not have begun yet
    seen = status(pid)
    assert seen["NoNewPrivs"] == str(int(not allow_setuid))
    kept = "00000000000405fb"  # chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap, bind, chroot
    assert [seen[kind] for kind in ("CapBnd", "CapEff", "CapPrm")] == [kept] * 3
    assert [seen[kind] for kind in ("CapInh", "CapAmb")] == ["0" * 16] * 2


FORBIDDEN = [
    "mount", "bind", "umount", "umount_mask", "remount", "open_tree", "pivot_root", "unshare_user",
    "unshare_mount", "clone_user", "clone_net", "setns", "ptrace_init", "mknod", "keyctl", "add_key", "bpf",
    "perf", "userfaultfd", "io_uring", "open_by_handle", "kexec", "module", "raw", "hostname", "more_files",
    "steal_descriptor",
]  # fmt: skip


@pytest.mark.parametrize("allow_setuid", [False, True])
async def test_attacks_are_not_permitted(shared: Rig, allow_setuid: bool) -> None:
    box, _ = await shared.running(allow_setuid=allow_setuid)
    results = {name: int(await shared.ask(box, f"attack {name}")) for name in FORBIDDEN}
    assert results == dict.fromkeys(FORBIDDEN, errno.EPERM)


async def test_attacks_on_files_of_the_kernel_fail(shared: Rig) -> None:
    box, _ = await shared.running()
    names = ["sysctl", "sysrq", "kcore", "kmsg", "init_descriptors", "init_memory", "write_root", "write_sys", "nice"]
    results = {name: int(await shared.ask(box, f"attack {name}")) for name in names}
    assert 0 not in results.values(), results
    assert 9999 not in results.values(), results


async def test_old_and_unknown_calls_look_absent(shared: Rig) -> None:
    box, _ = await shared.running()
    assert int(await shared.ask(box, "attack clone3")) == errno.ENOSYS
    assert int(await shared.ask(box, "attack personality")) == errno.ENOSYS
    assert int(await shared.ask(box, "attack vsock")) == errno.EAFNOSUPPORT
    assert int(await shared.ask(box, "attack alg")) == errno.EAFNOSUPPORT


async def test_what_programs_need_is_permitted(shared: Rig) -> None:
    box, _ = await shared.running()
    names = ["setuid_bit", "become_user", "personality_same", "trace_own", "null", "random", "terminal"]
    assert {name: await shared.ask(box, f"attack {name}") for name in names} == dict.fromkeys(names, "0")


async def test_memory_bomb_is_killed_alone(shared: Rig) -> None:
    bomb, _ = await shared.running()
    other, _ = await shared.running()
    assert await shared.ask(bomb, "hog 200") == "signal 9"
    assert shared.cgroups.usage(bomb.cgroup).oom_kills == 1
    assert shared.cgroups.usage(other.cgroup).oom_kills == 0
    assert await shared.ask(other, "hog 20") == "exit 0"


async def test_fork_bomb_stops_at_the_limit(shared: Rig) -> None:
    bomb, _ = await shared.running()
    count, error = (await shared.ask(bomb, "bomb")).split()
    assert 20 <= int(count) < 32
    assert int(error) == errno.EAGAIN


async def test_limits_of_a_running_box_change(rig: Rig) -> None:
    box, _ = await rig.running()
    await rig.cgroups.limit(box.cgroup, Limits(memory_bytes=256 * MIB, pids=32))
    assert await rig.ask(box, "hog 150") == "exit 0"


async def test_files_limit_is_set(rig: Rig) -> None:
    box, _ = await rig.running()
    line = next(x for x in (await rig.ask(box, "read /proc/self/limits")).splitlines() if x.startswith("Max open"))
    assert line.split()[3:5] == ["256", "256"]


async def test_frozen_box_gets_no_cpu_and_goes_on_when_thawed(rig: Rig) -> None:
    box, _ = await rig.running()
    await rig.ask(box, "spin")

    def used() -> float:
        return rig.cgroups.usage(box.cgroup).cpu_seconds

    before = used()
    assert await until(lambda: used() > before + 0.02)
    await rig.cgroups.freeze(box.cgroup)
    frozen = used()
    assert not await until(lambda: used() > frozen + 0.002, within=0.3)
    assert rig.cgroups.is_frozen(box.cgroup)
    await rig.cgroups.thaw(box.cgroup)
    assert await until(lambda: used() > frozen + 0.02)


async def test_nothing_is_left_after_kill_and_delete(rig: Rig) -> None:
    box, pid = await rig.running()
    await rig.runtime.kill(box.id)
    await rig.runtime.kill(box.id)
    await rig.runtime.delete(box.id)
    await rig.cgroups.remove(box.cgroup)
    assert rig.cgroups.pids(box.cgroup) == []
    assert rig.cgroups.names() == []
    assert await rig.runtime.list() == {}
    assert await until(lambda: not Path(f"/proc/{pid}").exists())
    assert str(rig.directory) not in Path("/proc/self/mountinfo").read_text()
    assert list((rig.directory / "state" / rig.level).iterdir()) == []
    await rig.runtime.kill(box.id)
    await rig.runtime.delete(box.id)


async def test_delete_ends_what_runs(rig: Rig) -> None:
    box, pid = await rig.running()
    await rig.ask(box, "spin")
    await rig.runtime.delete(box.id)
    assert await until(lambda: not Path(f"/proc/{pid}").exists())
    assert await until(lambda: not rig.cgroups.pids(box.cgroup))


async def test_frozen_box_can_be_killed_and_removed(rig: Rig) -> None:
    box, _ = await rig.running()
    await rig.cgroups.freeze(box.cgroup)
    await rig.cgroups.kill(box.cgroup)
    await rig.runtime.delete(box.id)
    await rig.cgroups.remove(box.cgroup)
    assert rig.cgroups.names() == []


async def test_list_names_what_runs_and_what_has_ended(rig: Rig) -> None:
    assert await rig.runtime.list() == {}
    alive, pid = await rig.running()
    dead, _ = await rig.running()
    await rig.cgroups.kill(dead.cgroup)
    assert await rig.runtime.list() == {alive.id: pid, dead.id: 0}


async def test_second_start_is_refused_and_the_first_goes_on(rig: Rig) -> None:
    box, pid = await rig.running()
    with pytest.raises(Conflict) as refused:
        await rig.runtime.start(box)
    assert refused.value.code == "exists"
    assert await rig.runtime.list() == {box.id: pid}


async def test_failed_start_tells_why_and_leaves_nothing(rig: Rig) -> None:
    good = await rig.box()
    box = replace(good, argv=("/no-such-program",))
    with pytest.raises(Failed) as failed:
        await rig.runtime.start(box)
    assert failed.value.code == "runtime_failed"
    assert "no-such-program" in failed.value.message
    assert await rig.runtime.list() == {}
    assert await until(lambda: not rig.cgroups.pids(box.cgroup))
    await rig.runtime.start(good)


async def test_start_in_an_absent_network_tells_why(rig: Rig) -> None:
    box = await rig.box(netns=rig.directory / "no-such-network")
    with pytest.raises(Failed, match="no-such-network"):
        await rig.runtime.start(box)


async def test_cancelled_start_leaves_nothing(rig: Rig) -> None:
    box = await rig.box()
    start = asyncio.create_task(rig.runtime.start(box))
    assert await until((box.directory / "launch.log").exists)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    await rig.cgroups.kill(box.cgroup)
    assert await rig.runtime.list() == {}


async def test_network_namespace_is_the_given_one(rig: Rig) -> None:
    name = f"dovecote-test-{rig.name}"
    await command("ip", "netns", "add", name)
    try:
        place = Path("/run/netns") / name
        _, pid = await rig.running(netns=place)
        assert os.stat(f"/proc/{pid}/ns/net").st_ino == place.stat().st_ino
    finally:
        await command("ip", "netns", "delete", name)


STARTER = """
import asyncio, os, signal, socket, sys
from dataclasses import replace
from pathlib import Path
from dovecote.host.runtime import Box, find_runtime, probe_cgroups
from dovecote.model.sizes import Limits
from tests.contract.runtime_rig import DOOR_ARGV

async def main(level, parent, directory, stub):
    directory = Path(directory)
    cgroups = probe_cgroups(parent)
    await cgroups.create("orphan", Limits())
    runtime = find_runtime(level, directory.parent / "state", cgroups)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(directory / "own" if (directory / "door").exists() else directory / "sock"))
    listener.listen(8)
    box = Box("orphan", directory, Path(stub), 1_700_000_000, None, "orphan", listener, ("/guest",), "niche")
    if not runtime.capabilities.can_swap_root:
        box = replace(box, listener=None, rootfs=directory / "root", door=directory / "door", argv=DOOR_ARGV)
        for place in (box.rootfs, box.rootfs / "run", box.door):
            os.chown(place, box.id_base, box.id_base)
    print(await runtime.start(box), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_box_outlives_the_process_that_started_it_and_is_found_again(rig: Rig) -> None:
    box = await rig.box(id="orphan", cgroup="orphan")
    if rig.runtime.capabilities.can_swap_root:
        (box.directory / "sock").unlink()
    parent = f"dovecote-test-{rig.name}"
    code, output = await command(sys.executable, "-c", STARTER, rig.level, parent, box.directory, rig.stub)
    assert code == -9, output
    assert await rig.open_runtime().list() == {"orphan": int(output)}
    assert await rig.answers(box)
    assert "Uid" in await rig.ask(box, "read /proc/self/status")
