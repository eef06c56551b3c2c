"""Connections to one instance at once, as the kernel counts them: measured by the server inside."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable

import pytest

from dovecote.host.network import Network
from tests.system.network_world import OPEN, World, attach, make, network, run, world

__all__ = ["make", "network", "world"]
pytestmark = [pytest.mark.system, pytest.mark.anyio]

BOUND = 20.0  # seconds
IDLE = 3.0
LIMIT, CLIENTS = 3, 20


class Counting:
    """A server that says how many of its clients were inside at once at most."""

    def __init__(self, listener: socket.socket, *, holds: float = 0.01) -> None:
        self.inside = self.most = self.served = 0
        self._holds = holds
        self._lock = threading.Lock()
        self._listener = listener
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client = self._listener.accept()[0]
            except OSError:
                return
            with self._lock:
                self.inside += 1
                self.most = max(self.most, self.inside)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        client.settimeout(BOUND)
        with client:
            client.recv(1)
            time.sleep(self._holds)
            with self._lock:  # what the client hears of has left already
                self.inside -= 1
                self.served += 1
            client.sendall(b"!")


def ask(world: World, address: str) -> int:
    """Until it was answered; answers how often it was refused."""
    refused, until = 0, time.monotonic() + BOUND
    while time.monotonic() < until:
        client = world.open(world.host, socket.SOCK_STREAM)
        try:
            client.connect((address, 80))
        except (ConnectionRefusedError, ConnectionResetError):
            client.close()
            refused += 1
            time.sleep(0.002)
            continue
        with client:
            client.sendall(b"?")
            assert client.recv(1) == b"!"
            return refused
    raise TimeoutError(address)


async def test_never_more_than_the_limit_are_inside_and_none_is_lost(network: Network, world: World) -> None:
    a, b = await attach(network), await attach(network)
    await network.limit(a.address, LIMIT)
    server, other = (Counting(world.listen(each.netns, 80)) for each in (a, b))
    refused: list[int] = []
    clients = [threading.Thread(target=lambda: refused.append(ask(world, a.address))) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    for client in clients:
        client.join(BOUND)
    assert (server.served, len(refused)) == (CLIENTS, CLIENTS)
    assert 1 <= server.most <= LIMIT
    assert sum(refused) > 0
    open_ones = [world.connect(world.host, b.address, 80) for _ in range(LIMIT + 5)]  # its neighbour has no limit
    assert other.served == 0
    assert await network.flows(b.address) == len(open_ones)


async def test_a_limit_outlives_new_rules_and_a_new_process_and_ends_with_the_instance(
    network: Network, make: Callable[..., Network], world: World
) -> None:
    a = await attach(network)
    await network.limit(a.address, 2)
    world.listen(a.netns, 80)
    held = [world.connect(world.host, a.address, 80) for _ in range(2)]
    await network.ensure()
    assert not world.reaches(world.host, a.address, 80)
    successor = make(rest=0.0)
    try:
        await successor.ensure()
        await successor.adopt({"a": a})
        await successor.apply(a.address, OPEN)
        await successor.limit(a.address, 2)
        assert not world.reaches(world.host, a.address, 80)
        assert await successor.flows(a.address) == 2
        for each in held:
            each.close()
        await successor.detach(a.address)
        listed = run("ip", "netns", "exec", f"dvc-{world.name}", "nft", "list", "table", "inet", "dovecote_limits")
        assert a.address not in listed
    finally:
        await successor.close()


async def test_an_instance_is_reached_however_many_came_and_went_before_it(network: Network, world: World) -> None:
    for limit in (0, 2):
        for _ in range(30):
            gone = await attach(network)
            if limit:
                await network.limit(gone.address, limit)
            await network.detach(gone.address)
    last = await attach(network)
    await network.limit(last.address, 2)
    world.listen(last.netns, 80)
    held = [world.connect(world.host, last.address, 80) for _ in range(2)]
    assert not world.reaches(world.host, last.address, 80)
    assert await network.flows(last.address) == len(held)


async def test_a_limit_holds_after_a_time_without_connections(network: Network, world: World) -> None:
    """Longer than the kernel's rounds in which it takes away what is not in use."""
    a = await attach(network)
    await network.limit(a.address, 1)
    world.listen(a.netns, 80)
    await asyncio.sleep(IDLE)
    held = world.connect(world.host, a.address, 80)
    assert not world.reaches(world.host, a.address, 80)
    held.close()
