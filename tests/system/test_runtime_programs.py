"""Programs that people use work in a box whose root was swapped in, and its walls are still there."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dovecote.host.runtime import SHARING, Box
from dovecote.host.storage import mounts
from dovecote.host.storage.entrance import Entrance
from dovecote.model.sizes import GIB, Limits
from tests.contract.runtime_rig import Rig, missing, status

pytestmark = [
    pytest.mark.system,
    pytest.mark.anyio,
    pytest.mark.skipif(bool(missing(*SHARING)), reason=missing(*SHARING)),
]

LIMITS = Limits(cpus=2.0, memory_bytes=2 * GIB, pids=512, open_files=4096)


class Sandbox:
    """A box with the programs of this machine in it, under an upper that is thrown away."""

    def __init__(self, rig: Rig, box: Box, pid: int) -> None:
        self.rig, self.box, self.pid = rig, box, pid

    async def run(self, line: str) -> str:
        return await self.rig.ask(self.box, f"sh exec 2>&1; {line}", within=120)


@pytest.fixture(params=SHARING)
async def sandbox(request: pytest.FixtureRequest) -> AsyncIterator[Sandbox]:
    rig = Rig(request.param)
    entrance = Entrance()
    upper = rig.directory / "upper"
    try:
        box, pid = await rig.running(LIMITS, allow_setuid=True)
        mounts.mount_at(mounts.tmpfs(max_bytes=GIB, owner=box.id_base), upper)
        for name in ("upper", "work", "objects"):
            (upper / name).mkdir()
            os.chown(upper / name, box.id_base, box.id_base)
        userns = mounts.user_namespace(box.id_base)
        lower = mounts.idmapped(Path("/"), userns)
        root = mounts.overlay([lower], upper / "objects", upper=upper / "upper", work=upper / "work", allow_setuid=True)
        try:
            await entrance.swap_root(pid, root, id_base=box.id_base)
        finally:
            for descriptor in (userns, lower, root):
                os.close(descriptor)
        yield Sandbox(rig, box, pid)
    finally:
        await entrance.stop()
        for box in rig.boxes:
            await rig.cgroups.kill(box.cgroup)
        mounts.unmount(upper, detach=True)
        await rig.close()


async def test_walls_stand_after_the_swap(sandbox: Sandbox) -> None:
    assert status(sandbox.pid)["Seccomp"] == "2"
    attempts = {
        "head -c 1 /proc/kcore | wc -c": "0",
        "cat /proc/cmdline | wc -c": "0",
        "echo x > /proc/sys/kernel/hostname || echo no": "no",
        "echo b > /proc/sysrq-trigger || echo no": "no",
        "echo x > /sys/x || echo no": "no",
        "umount /proc >/dev/null || echo no": "no",
        "umount /proc/kcore >/dev/null || echo no": "no",
        "umount /sys >/dev/null || echo no": "no",
        "mount -t tmpfs x /mnt >/dev/null || echo no": "no",
        "mount --bind /proc /mnt >/dev/null || echo no": "no",
        "unshare -U true 2>/dev/null || echo no": "no",
        "unshare -m true 2>/dev/null || echo no": "no",
        "nsenter -t 1 -n true 2>/dev/null || echo no": "no",
        "chroot / mount -t proc p /mnt >/dev/null || echo no": "no",
        "mknod /tmp/sda b 8 0 2>/dev/null || echo no": "no",
        "ls /proc/1/fd 2>/dev/null || echo no": "no",
        "head -c 1 /proc/1/maps 2>/dev/null | wc -c": "0",
        "cat /proc/1/exe 2>/dev/null | wc -c": "0",
        "ls /sys/fs 2>/dev/null || echo no": "no",
        "id -u": "0",
    }
    found = {line: (await sandbox.run(f"{{ {line}; }} 2>/dev/null")).strip() for line in attempts}
    assert found == attempts


async def test_files_written_belong_to_the_box_outside(sandbox: Sandbox) -> None:
    assert (await sandbox.run("echo hello > /root/new && stat -c %u /root/new && chown 1000 /root/new")).strip() == "0"
    new = sandbox.rig.directory / "upper" / "upper" / "root" / "new"
    assert new.stat().st_uid == sandbox.box.id_base + 1000


async def test_setuid_reaches_container_root_and_no_more(sandbox: Sandbox) -> None:
    line = "cp /usr/bin/id /tmp/id && chmod 4755 /tmp/id && setpriv --reuid 1000 --regid 1000 --clear-groups /tmp/id"
    assert "euid=0(root)" in await sandbox.run(line)


PROGRAMS = {
    "python3": (
        "python3 -c 'import multiprocessing as m, subprocess as s; "
        'print(m.get_context("fork").Pool(2).map(abs, [-3, 4]), s.run(["true"]).returncode)\'',
        "[3, 4] 0",
    ),
    "gcc": (
        "cd /tmp && echo 'int puts(const char*); int main(){puts(\"built\");}' > a.c && gcc -pthread -o a a.c && ./a",
        "built",
    ),
    "node": ('node -e \'require("fs").readFile("/etc/hostname", () => console.log("read"))\'', "read"),
    "npm": ("cd /tmp && HOME=/tmp npm init -y >/dev/null && test -s package.json && echo made", "made"),
    "git": ("cd /tmp && HOME=/tmp git init -q r && git -C r status --short && echo clean", "clean"),
    "apt-get": (
        "mkdir -p /tmp/p/DEBIAN /tmp/p/opt && cd /tmp && echo x > p/opt/niche && "
        "printf 'Package: niche\\nVersion: 1\\nArchitecture: all\\nMaintainer: n <n@n>\\nDescription: n\\n' "
        "> p/DEBIAN/control && dpkg-deb -b p n.deb >/dev/null && chmod 644 n.deb && "
        "apt-get -qq install -y ./n.deb >/tmp/log 2>&1; tail -3 /tmp/log; dpkg-query -W niche",
        "niche\t1",
    ),
    "gdb": (
        "sleep 60 >/dev/null & p=$!; "
        "gdb -batch -nx -ex 'info registers rip' -p $p 2>/dev/null | grep -c '^rip'; kill $p",
        "1",
    ),
    "chromium": (
        "chromium --headless --no-sandbox --disable-gpu --user-data-dir=/tmp/c "
        "--dump-dom 'data:text/html,<script>document.write(6*7)</script>' 2>/dev/null",
        "42",
    ),
}


@pytest.mark.parametrize("program", PROGRAMS)
async def test_program_works(sandbox: Sandbox, program: str) -> None:
    if not shutil.which(program):
        pytest.skip(f"{program} is not installed on this machine")
    line, expected = PROGRAMS[program]
    assert expected in await sandbox.run(f"export PATH HOME=/root; {line}")
