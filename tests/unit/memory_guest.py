"""The inside of an instance of a host in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import TYPE_CHECKING

from dovecote.control.fleet import SERVER_TAG, Command, Output
from dovecote.errors import Failed, NotFound
from dovecote.host.guest import CommandStatus, Dropped, Exited, Finished, Guest, PortState, Started, Stat
from dovecote.model.states import InstanceState
from tests.unit.memory_calls import Method
from tests.unit.memory_instance import NOW, MemoryInstance, Running

if TYPE_CHECKING:
    from tests.unit.memory_host import MemoryHost


class MemoryGuest(Guest):
    """Files are a dictionary, commands run until they are told to end. A frozen one answers once it is thawed."""

    def __init__(self, host: MemoryHost, instance: MemoryInstance) -> None:
        self._host = host
        self._instance = instance

    async def start(self, command: Command) -> Started:
        await self._reach("start")
        running = Running(len(self._instance.commands) + 1, command)
        self._instance.commands.append(running)
        if command.tag == SERVER_TAG:
            if not self._host.does_last:
                running.exit_code, running.output = 1, b"no such module\n"
            elif self._host.does_open:
                self._instance.open_ports.add(int(command.env["PORT"]))
        elif command.tag == "reinstall":
            running.exit_code, running.output = self._host.installs
        await self._instance.tell()
        return Started(running.number, 1000 + running.number, NOW)

    async def run(self, command: Command, *, stdin: bytes | None = None, max_output: int = 1 << 20) -> Finished:
        await self._reach(None)
        self._host.ran.append((command.argv[-1], self._instance.id))
        exit_code = self._host.exits.get(command.argv[-1], 0)
        return Finished(" ".join(command.argv).encode()[:max_output], b"", exit_code, None, False, False)

    async def attach(self, number: int, *, offset: int = 0) -> AsyncGenerator[Output | Dropped | Exited, None]:
        await self._reach(None)
        running = self._instance.commands[number - 1]
        if running.output[offset:]:
            yield Output("stdout", offset, running.output[offset:])
        async with self._instance.changed:
            await self._instance.changed.wait_for(lambda: not running.is_running)
        yield Exited(running.exit_code, None, False, len(running.output))

    async def list_commands(self) -> list[CommandStatus]:
        await self._reach("list_commands")
        return [
            CommandStatus(
                running.number,
                running.command.tag,
                1000 + running.number,
                running.is_running,
                running.exit_code,
                None,
                False,
                NOW,
                len(running.output),
            )
            for running in self._instance.commands
        ]

    async def stat(self, path: str, *, user: str, follow: bool = True) -> Stat:
        await self._reach(None)
        if path not in self._instance.files:
            raise NotFound(f"no file {path}", code="file_not_found")
        return Stat("file", 0o644, 1000, 1000, len(self._instance.files[path]), 0, "")

    async def release(self, number: int) -> None:
        await self._reach(None)

    async def signal(self, number: int, signo: int) -> None:
        await self._reach(None)
        self._instance.commands[number - 1].exit_code = -signo
        await self._instance.tell()

    async def wait_port(self, port: int, timeout: float) -> PortState:
        await self._reach("wait_port")
        ports = self._instance.open_ports
        if timeout > 0:
            try:
                async with asyncio.timeout(timeout), self._instance.changed:
                    await self._instance.changed.wait_for(lambda: port in ports or not self._is_there())
            except TimeoutError:
                pass
        if not self._is_there():
            raise Failed("the guest does not answer", code="guest_unreachable")
        return PortState(is_open=port in ports, loopback=port in self._instance.local_ports)

    async def read_file(
        self, path: str, *, user: str, offset: int = 0, length: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        await self._reach(None)
        if path not in self._instance.files:
            raise NotFound(f"no file {path}", code="file_not_found")
        yield self._instance.files[path][offset:][:length]

    async def write_file(
        self,
        path: str,
        chunks: AsyncIterator[bytes] | bytes,
        *,
        user: str,
        mode: int | None = None,
        metadata: Mapping[str, str] | None = None,
        make_parents: bool = True,
        fsync: bool = False,
    ) -> None:
        await self._reach(None)
        data = chunks if isinstance(chunks, bytes) else b"".join([chunk async for chunk in chunks])
        self._instance.files[path] = data

    def _is_there(self) -> bool:
        return self._instance.id in self._host.instances

    async def _reach(self, method: Method | None) -> None:
        if method is not None:
            await self._host.enter(method, self._instance.claim.owner)
        async with self._instance.changed:
            await self._instance.changed.wait_for(lambda: self._instance.state is not InstanceState.FROZEN)
        if not self._is_there():
            raise Failed("the guest does not answer", code="guest_unreachable")
