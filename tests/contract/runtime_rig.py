"""A place to start real boxes in, which leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from dovecote.host.runtime import DOOR, Box, Cgroups, Runtime, ensure_stub, find_runtime, probe_cgroups
from dovecote.model.sizes import MIB, Limits

PROBE = Path(__file__).with_name("runtime_probe.c")
DOOR_ARGV = (f"{DOOR}/guest", f"{DOOR}/sock")
LIMITS = Limits(cpus=1.0, memory_bytes=64 * MIB, pids=32, open_files=256)


def missing(*levels: str) -> str:
    """Why real boxes cannot be started here; empty when they can."""
    if os.geteuid():
        return "needs root"
    lacking = [tool for tool in (*levels, "cc") if not shutil.which(tool)]
    return f"needs {', '.join(lacking)}" if lacking else ""


class Rig:
    def __init__(self, level: str) -> None:
        self.name = secrets.token_hex(4)
        self.directory = Path(tempfile.mkdtemp(prefix=f"dovecote-rig-{self.name}-"))
        self.directory.chmod(0o711)
        binary = self.directory / "probe"
        subprocess.run(["cc", "-static", "-Os", "-w", "-o", binary, PROBE], check=True, timeout=60)
        self.stub = ensure_stub(self.directory / "stub", binary)
        self.cgroups: Cgroups = probe_cgroups(f"dovecote-test-{self.name}")
        self.level = level
        self.runtime = self.open_runtime()
        self.boxes: list[Box] = []
        self.listeners: list[socket.socket] = []

    def open_runtime(self) -> Runtime:
        return find_runtime(self.level, self.directory / "state", self.cgroups)

    def roomy(self, limits: Limits) -> Limits:
        """With what the runtime takes for itself."""
        extra = self.runtime.capabilities
        memory = limits.memory_bytes + extra.extra_memory_bytes
        return replace(limits, memory_bytes=memory, pids=limits.pids + extra.extra_pids)

    async def box(self, limits: Limits = LIMITS, **changes: Any) -> Box:
        """One that is ready to be started: listener or door, directory and cgroup are there."""
        name = f"box-{self.name}-{len(self.boxes)}"
        directory = self.directory / name
        directory.mkdir(mode=0o711)
        box = Box(
            id=name,
            directory=directory,
            rootfs=self.stub,
            id_base=1_000_000_000 + secrets.randbelow(10_000) * 65536,
            netns=None,
            cgroup=name,
            listener=None,
            argv=("/guest",),
            hostname="niche",
            open_files=limits.open_files,
        )
        box = replace(self._with_socket(box), **changes)
        self.boxes.append(box)
        await self.cgroups.create(box.cgroup, self.roomy(limits))
        return box

    def _with_socket(self, box: Box) -> Box:
        if not self.runtime.capabilities.can_swap_root:
            return self._with_door(box)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(box.directory / "sock"))
        listener.listen(64)
        self.listeners.append(listener)
        return replace(box, listener=listener)

    def _with_door(self, box: Box) -> Box:
        root, door = box.directory / "root", box.directory / "door"
        for place in (root, door, *(root / name for name in ("dev", "new", "proc", "run", "sys", "tmp"))):
            place.mkdir(mode=0o755)
            os.chown(place, box.id_base, box.id_base)
        shutil.copyfile(self.stub / "guest", door / "guest")
        (door / "guest").chmod(0o755)
        (box.directory / "sock").symlink_to(door / "sock")
        return replace(box, rootfs=root, door=door, argv=DOOR_ARGV)

    async def running(self, limits: Limits = LIMITS, **changes: Any) -> tuple[Box, int]:
        box = await self.box(limits, **changes)
        pid = await self.runtime.start(box)
        if box.door:
            assert await self.answers(box)
        return box, pid

    async def answers(self, box: Box) -> bool:
        return await until(lambda: self.is_open(box))

    def is_open(self, box: Box) -> bool:
        with socket.socket(socket.AF_UNIX) as caller:
            caller.settimeout(1)  # where nobody accepts and the queue is full
            return caller.connect_ex(str(box.directory / "sock")) == 0

    async def ask(self, box: Box, line: str, within: float = 30) -> str:
        """What the probe in the box answers."""

        async def converse() -> str:
            reader, writer = await asyncio.open_unix_connection(str(box.directory / "sock"))
            try:
                writer.write(line.encode() + b"\n")
                return (await reader.read(-1)).decode()
            finally:
                writer.close()

        return await asyncio.wait_for(converse(), within)

    async def close(self) -> None:
        for box in self.boxes:
            await self.cgroups.kill(box.cgroup)
            await self.runtime.delete(box.id)
            await self.cgroups.remove(box.cgroup)
        await self.cgroups.clear()
        for listener in self.listeners:
            listener.close()
        shutil.rmtree(self.directory)


@asynccontextmanager
async def opened(level: str) -> AsyncIterator[Rig]:
    rig = Rig(level)
    try:
        yield rig
    finally:
        await rig.close()


async def until(condition: Callable[[], bool], within: float = 10) -> bool:
    """Waits for it; what it is at the end."""
    deadline = time.monotonic() + within
    while not condition() and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    return condition()


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


async def command(*argv: str | Path, within: float = 60) -> tuple[int | None, str]:
    """Exit code, and all that it wrote."""
    process = await asyncio.create_subprocess_exec(
        *argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await asyncio.wait_for(process.communicate(), within)
    return process.returncode, output.decode()
