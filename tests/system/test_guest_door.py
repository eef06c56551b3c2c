"""A guest that binds its socket itself, and shuts it for as long as its memory is saved."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dovecote.errors import DovecoteError, Failed, Invalid
from dovecote.host.guest import Command, Exited, Guest, Output
from dovecote.host.guest.connection import Connection
from dovecote.host.guest.protocol import Kind, render_frame
from tests.system.guest_rig import running as inherited
from tests.system.guest_rig import static_program, until

pytestmark = [pytest.mark.system, pytest.mark.anyio]


@dataclass
class Rig:
    process: subprocess.Popen[bytes]
    socket: Path
    guest: Guest

    async def answers(self) -> bool:
        with contextlib.suppress(DovecoteError):
            return bool(await self.guest.hello())
        return False

    def sockets(self) -> int:
        """That the process, or a helper of it, has open. A command has none."""
        pids = [self.process.pid]
        pids += map(int, Path(f"/proc/{pids[0]}/task/{pids[0]}/children").read_text().split())
        count = 0
        for pid in pids:
            with contextlib.suppress(FileNotFoundError):
                for name in os.listdir(f"/proc/{pid}/fd"):
                    with contextlib.suppress(FileNotFoundError):
                        count += os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:")
        return count


def _spawn(socket: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([static_program(), socket], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


@contextlib.asynccontextmanager
async def running() -> AsyncIterator[Rig]:
    with tempfile.TemporaryDirectory(prefix="guest-door-") as directory:
        socket = Path(directory) / "sock"
        process = _spawn(socket)
        try:
            rig = Rig(process, socket, Guest(socket))
            await until(rig.answers)
            yield rig
        finally:
            process.kill()
            process.wait(10)


async def test_commands_and_their_output_outlive_a_suspension() -> None:
    async with running() as rig:
        script = "echo before; read line; echo after $line"
        started = await rig.guest.start(Command(("/bin/sh", "-c", script), stdin=True, cwd="/"))
        watching = asyncio.ensure_future(_output(rig.guest, started.number))
        before = await rig.guest.hello()
        await rig.guest.suspend()
        with pytest.raises(Failed):
            await watching
        assert rig.sockets() == 0
        assert not await rig.answers()
        rig.socket.unlink()  # what it left is in its way until then
        await until(rig.answers)
        assert (await rig.guest.hello()).id == before.id
        await rig.guest.write_stdin(started.number, b"again\n")
        assert await _output(rig.guest, started.number) == b"before\nafter again\n"


async def test_it_waits_for_no_client_and_no_helper() -> None:
    """A client in the middle of an upload loses it, and its helper has ended when the suspension is answered."""
    async with running() as rig:
        target = rig.socket.with_name("file")
        idle = await Connection.open(rig.socket)

        async def endless() -> AsyncIterator[bytes]:
            yield b"some"
            await asyncio.Event().wait()

        upload = asyncio.ensure_future(rig.guest.write_file(str(target), endless(), user="root"))
        await until(lambda: _true(rig.socket.parent, ".dovecote-"))
        await rig.guest.suspend()
        assert rig.sockets() == 0
        assert await idle.closed(5)
        upload.cancel()
        await asyncio.gather(upload, return_exceptions=True)
        assert not target.exists()


async def test_a_caller_that_leaves_leaves_the_door_open() -> None:
    async with running() as rig:
        for _ in range(20):
            connection = await Connection.open(rig.socket)
            await connection.send(render_frame(Kind.SUSPEND))
            connection.close()
            await until(lambda: _true(rig.socket.parent, "sock"))
            with contextlib.suppress(DovecoteError):
                await rig.guest.hello(timeout=1)
            rig.socket.unlink(missing_ok=True)
            await until(lambda: _true(rig.socket.parent, "sock"))
        await until(rig.answers)


async def test_an_inherited_listener_cannot_be_shut() -> None:
    async with inherited() as rig:
        with pytest.raises(Invalid):
            await rig.guest.suspend()
        assert await rig.guest.hello()


async def _true(directory: Path, name: str) -> bool:
    return any(found.startswith(name) for found in os.listdir(directory))


async def _output(guest: Guest, number: int) -> bytes:
    output = b""
    async for event in guest.attach(number):
        if isinstance(event, Output):
            output += event.data
        elif isinstance(event, Exited):
            break
    return output
