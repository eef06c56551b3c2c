"""A namespace that plays the host of a network of instances, beside one that plays the world."""

from __future__ import annotations

import secrets
import socket
import struct
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest

from dovecote.host.network import Attachment, Network, namespaces
from dovecote.host.network.nftables import Rules
from dovecote.model.sizes import NetworkPolicy

WAIT = 10.0
OPEN, CLOSED = NetworkPolicy(internet=True), NetworkPolicy(internet=False)
INTERNET, COMPANY, RESOLVER, METADATA = "198.51.100.7", "10.77.0.1", "192.0.2.2", "169.254.169.254"
HOST_ADDRESSES = ("192.0.2.1", "10.99.0.1", "203.0.113.9")  # the last is public
# As Docker makes it, and a port that it forwards to a container.
DOCKER = """
add table ip filter
add chain ip filter FORWARD { type filter hook forward priority filter; policy drop; }
add table ip nat
add chain ip nat PREROUTING { type nat hook prerouting priority dstnat; policy accept; }
add rule ip nat PREROUTING ip daddr 203.0.113.9 tcp dport 8080 dnat to 198.51.100.7:8000
"""


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=WAIT).stdout


@dataclass
class World:
    """Two namespaces, and every socket that a test opens in them or in an instance."""

    name: str = field(default_factory=lambda: secrets.token_hex(3))
    sockets: list[socket.socket] = field(default_factory=list)

    @property
    def host(self) -> Path:
        return Path("/run/netns", f"dvth{self.name}")

    @property
    def outside(self) -> Path:
        return Path("/run/netns", f"dvto{self.name}")

    def build(self) -> None:
        host, outside = self.host.name, self.outside.name
        run("ip", "netns", "add", host)
        run("ip", "netns", "add", outside)
        run("ip", "-n", host, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", outside)
        for address in HOST_ADDRESSES:
            run("ip", "-n", host, "address", "add", f"{address}/30", "dev", "eth0")
        for address in (f"{RESOLVER}/30", f"{INTERNET}/32", f"{COMPANY}/32", f"{METADATA}/32"):
            run("ip", "-n", outside, "address", "add", address, "dev", "eth0")
        for name in (host, outside):
            run("ip", "-n", name, "link", "set", "lo", "up")
            run("ip", "-n", name, "link", "set", "eth0", "up")
        run("ip", "-n", host, "route", "add", "default", "via", RESOLVER)
        run("ip", "-n", outside, "route", "add", "default", "via", HOST_ADDRESSES[0])
        self.rules(DOCKER)
        namespaces.inside(self.host, lambda: namespaces.write_sysctl("net/ipv4/ping_group_range", "0 0"))

    def clean(self) -> None:
        for opened in self.sockets:
            opened.close()
        for path in (self.host, self.outside):
            subprocess.run(["ip", "netns", "del", path.name], capture_output=True, timeout=WAIT, check=False)

    def rules(self, commands: str) -> str:
        """nft in the host; what it lists, as text."""
        rules = namespaces.inside(self.host, Rules)
        try:
            return str(rules.run(commands))
        finally:
            rules.close()

    def open(self, where: Path, kind: int, protocol: int = 0) -> socket.socket:
        opened = namespaces.inside(where, lambda: socket.socket(socket.AF_INET, kind, protocol))
        opened.settimeout(WAIT)
        self.sockets.append(opened)
        return opened

    def listen(self, where: Path, port: int, address: str = "0.0.0.0") -> socket.socket:
        listener = self.open(where, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(64)
        return listener

    def udp(self, where: Path, port: int = 0, address: str = "0.0.0.0") -> socket.socket:
        opened = self.open(where, socket.SOCK_DGRAM)
        opened.bind((address, port))
        return opened

    def connect(self, where: Path, address: str, port: int) -> socket.socket:
        client = self.open(where, socket.SOCK_STREAM)
        client.connect((address, port))
        return client

    def reaches(self, where: Path, address: str, port: int) -> bool:
        """Whether a connection opens; that it is refused rather than lost in silence is part of the promise."""
        try:
            self.connect(where, address, port).close()
        except (ConnectionRefusedError, ConnectionResetError):
            return False
        return True

    def tells(self, where: Path, address: str, port: int, words: bytes = b"?") -> bool:
        """Whether a datagram leaves without being refused. Refusals come back at once, on the same path."""
        client = self.open(where, socket.SOCK_DGRAM)
        client.connect((address, port))
        client.send(words)
        client.settimeout(0.2)
        try:
            client.recv(1)
        except TimeoutError:
            return True
        except OSError:
            return False
        return True

    def pings(self, where: Path, address: str) -> bool:
        client = self.open(where, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
        client.connect((address, 0))
        client.send(struct.pack("!BBHHH", 8, 0, 0, 0, 1) + b"dove")
        try:
            return client.recv(100)[0] == 0
        except TimeoutError:
            raise
        except OSError:
            return False


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    try:
        world.build()
        yield world
    finally:
        world.clean()


@pytest.fixture
def make(world: World, tmp_path: Path) -> Callable[..., Network]:
    def build(network: str = "10.213.0.0/24", rest: float = 30.0, dns: str = RESOLVER) -> Network:
        return Network(
            installation=world.name,
            network=network,
            run_dir=tmp_path,
            dns=dns,
            address_rest=timedelta(seconds=rest),
            host_namespace=world.host,
        )

    return build


@pytest.fixture
async def network(make: Callable[..., Network]) -> AsyncIterator[Network]:
    network = make()
    try:
        await network.ensure()
        yield network
    finally:
        await network.remove()
        await network.close()


async def attach(network: Network, policy: NetworkPolicy = OPEN) -> Attachment:
    attachment = await network.attach()
    await network.apply(attachment.address, policy)
    return attachment
