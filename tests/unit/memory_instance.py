"""What a host in memory knows of one instance, and what one leaves behind."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass, field
from datetime import UTC, datetime

from dovecote.control.fleet import SERVER_TAG, Claim, Command, Connection
from dovecote.errors import Failed
from dovecote.model.states import InstanceState, check_instance_move

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@dataclass
class MemoryInstance:
    id: str
    claim: Claim
    address: str
    pid: int
    files: dict[str, bytes]
    generation: int
    quiet_since: float
    state: InstanceState = InstanceState.READY
    commands: list[Running] = field(default_factory=list)
    open_ports: set[int] = field(default_factory=set)
    local_ports: set[int] = field(default_factory=set)  # on its own loopback only
    dialed: list[socket.socket] = field(default_factory=list)  # the servers' ends
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    def dial(self, port: int, loopback: bool) -> Connection:
        if port not in (self.local_ports if loopback else self.open_ports):
            raise Failed(f"nothing took the connection to port {port}", code="port_closed")
        here, there = socket.socketpair()
        here.setblocking(False)
        self.dialed.append(there)
        return Connection(here, lambda _: None)

    def become(self, state: InstanceState) -> None:
        check_instance_move(self.state, state)
        self.state = state

    async def tell(self) -> None:
        async with self.changed:
            self.changed.notify_all()


@dataclass
class Running:
    number: int
    command: Command
    output: bytes = b""
    exit_code: int | None = None

    @property
    def is_running(self) -> bool:
        return self.exit_code is None


@dataclass
class Left:
    disk: str
    files: dict[str, bytes]
    generation: int
    epoch: int


def at_work(instance: MemoryInstance) -> int:
    return sum(1 for running in instance.commands if running.is_running and running.command.tag != SERVER_TAG)
