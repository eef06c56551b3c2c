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
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from dovecote.host.runtime import Box, Cgroups, OCIRuntime, ensure_stub, find_runtime, probe_cgroups
from dovecote.model.sizes import MIB, Limits

PROBE = Path(__file__).with_name("runtime_probe.c")
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

    def open_runtime(self) -> OCIRuntime:
        return find_runtime(self.level, self.directory / "state", self.cgroups)

    async def box(self, limits: Limits = LIMITS, **changes: Any) -> Box:
        """One that is ready to be started: listener, directory and cgroup are there."""
        name = f"box-{self.name}-{len(self.boxes)}"
        directory = self.directory / name
        directory.mkdir(mode=0o700)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(directory / "sock"))
        listener.listen(64)
        self.listeners.append(listener)
        box = Box(
            id=name,
            directory=directory,
            rootfs=self.stub,
            id_base=1_000_000_000 + secrets.randbelow(10_000) * 65536,
            netns=None,
            cgroup=name,
            listener=listener,
            argv=("/guest",),
            hostname="niche",
            open_files=limits.open_files,
        )
        box = replace(box, **changes)
        self.boxes.append(box)
        await self.cgroups.create(box.cgroup, limits)
        return box

    async def running(self, limits: Limits = LIMITS, **changes: Any) -> tuple[Box, int]:
        box = await self.box(limits, **changes)
        return box, await self.runtime.start(box)

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
