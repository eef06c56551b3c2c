"""What runsc promises beyond other runtimes: walls of another kind, and memory that is saved and goes on."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from dovecote.errors import Failed, Unsupported
from dovecote.host.runtime import SHARING
from tests.contract.runtime_rig import Rig, missing, opened, status, until

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(bool(missing("runsc")), reason=missing("runsc"))]


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with opened("runsc") as rig:
        yield rig


FORBIDDEN = [
    "mount", "bind", "umount", "umount_mask", "remount", "open_tree", "pivot_root", "unshare_mount",
    "setns", "bpf", "perf", "userfaultfd", "io_uring", "kexec", "module", "raw", "hostname", "more_files",
    "sysctl", "kcore", "kmsg", "init_memory", "write_sys",
]  # fmt: skip


@pytest.mark.parametrize("allow_setuid", [False, True])
async def test_attacks_fail(rig: Rig, allow_setuid: bool) -> None:
    box, pid = await rig.running(allow_setuid=allow_setuid)
    results = {name: int(await rig.ask(box, f"attack {name}")) for name in FORBIDDEN}
    assert [name for name, error in results.items() if error in (0, 9999)] == []
    assert status(pid)["Seccomp"] == "2"  # of the kernel itself


async def test_what_it_lets_do_stays_inside(rig: Rig) -> None:
    """A device that is made is one of its own kernel's, and a namespace too."""
    box, pid = await rig.running()
    before = os.stat(f"/proc/{pid}/ns/net").st_ino
    for name in ("mknod", "clone_net", "keyctl"):
        await rig.ask(box, f"attack {name}")
    assert os.stat(f"/proc/{pid}/ns/net").st_ino == before
    made = [entry for entry in box.rootfs.rglob("*") if not (entry.is_dir() or entry.is_file())]
    assert made == []


async def test_its_kernel_and_its_files_are_not_the_machines(rig: Rig) -> None:
    box, _ = await rig.running()
    assert os.uname().release not in await rig.ask(box, "read /proc/version")
    assert "gVisor" in await rig.ask(box, "read /proc/version") or "4.4.0" in await rig.ask(box, "read /proc/version")
    mounts = await rig.ask(box, "read /proc/self/mountinfo")
    assert str(rig.directory) not in mounts
    assert set((await rig.ask(box, "list /dev")).split()) <= {
        ".", "..", "fd", "full", "fuse", "net", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout",
        "tty", "ttyS0", "urandom", "zero",
    }  # fmt: skip


async def test_nobody_inside_changes_the_door_once_it_is_shut(rig: Rig) -> None:
    box, _ = await rig.running()
    assert box.door is not None
    os.chown(box.door, 0, 0)
    assert "sock" in await rig.ask(box, "list /run/.dovecote")
    assert await rig.ask(box, "unlink /run/.dovecote/sock") != "0"
    assert await rig.ask(box, "create /run/.dovecote/other") != "0"
    assert sorted(os.listdir(box.door)) == ["guest", "sock"]


@pytest.mark.parametrize("bomb", ["bomb", "hog 400"])
async def test_a_bomb_ends_its_own_box_at_most(rig: Rig, bomb: str) -> None:
    """No limit of processes is known inside, so the cgroup's hits the kernel of the box itself."""
    box, _ = await rig.running()
    other, pid = await rig.running()
    with suppress(ConnectionError, TimeoutError):
        await rig.ask(box, bomb, within=60)
    assert await rig.ask(other, "hog 20") == "exit 0"
    assert (await rig.runtime.list())[other.id] == pid
    assert rig.cgroups.usage(other.cgroup).oom_kills == 0


async def test_memory_goes_on_in_another_box_and_in_its_own(rig: Rig) -> None:
    box, _ = await rig.running()
    assert box.door is not None
    image = rig.directory / "image"
    assert [await rig.ask(box, "count") for _ in range(2)] == ["1", "2"]
    os.chown(box.door, 0, 0)
    await rig.ask(box, "shut")
    assert await until(lambda: not rig.is_open(box))
    (box.door / "sock").unlink()
    await rig.runtime.pause(box.id)
    await rig.runtime.save_memory(box.id, image)
    await rig.runtime.save_memory(box.id, rig.directory / "again")

    fork = await rig.box()
    fork = replace(fork, memory=image)
    await rig.runtime.start(fork)
    assert await rig.answers(fork)
    assert [await rig.ask(fork, "count") for _ in range(2)] == ["3", "4"]
    assert not _has_socket(box.door)

    await rig.runtime.resume(box.id)
    await rig.runtime.resume(box.id)
    os.chown(box.door, box.id_base, box.id_base)
    assert await rig.answers(box)
    assert await rig.ask(box, "count") == "3"


async def test_memory_that_is_none_is_refused_and_leaves_nothing(rig: Rig) -> None:
    box = await rig.box()
    image = rig.directory / "image"
    image.mkdir()
    (image / "checkpoint.img").write_bytes(b"nothing that was ever saved")
    with pytest.raises(Failed) as refused:
        await rig.runtime.start(replace(box, memory=image))
    assert refused.value.code == "runtime_failed"
    assert await rig.runtime.list() == {}
    assert await until(lambda: not rig.cgroups.pids(box.cgroup))


@pytest.mark.parametrize("level", SHARING)
async def test_other_levels_say_who_can(level: str) -> None:
    async with opened(level) as rig:
        assert not rig.runtime.capabilities.can_hibernate
        for act in (rig.runtime.pause("box"), rig.runtime.resume("box"), rig.runtime.save_memory("box", Path("/x"))):
            with pytest.raises(Unsupported) as refused:
                await act
            assert refused.value.code == "cannot_hibernate"
            assert "runsc" in refused.value.hint


def _has_socket(door: Path | None) -> bool:
    assert door is not None
    return (door / "sock").exists()
