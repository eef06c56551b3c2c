"""A network of instances, in a namespace that plays the host, beside one that plays the world."""

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

from dovecote.errors import Conflict, NoCapacity, NotFound
from dovecote.host.network import Attachment, Network, find_problems, namespaces
from dovecote.host.network.links import list_links, list_routes
from dovecote.host.network.netlink import ROUTE, Netlink
from dovecote.host.network.nftables import Rules
from dovecote.model.sizes import NetworkPolicy

pytestmark = [pytest.mark.system, pytest.mark.anyio]

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


async def test_the_host_reaches_an_instance(network: Network, world: World) -> None:
    a = await network.attach()
    listener = world.listen(a.netns, 80)
    world.connect(world.host, a.address, 80)
    assert listener.accept()[1][0].startswith("169.254.")
    assert world.pings(world.host, a.address)
    told = world.udp(a.netns, 5000)
    world.udp(world.host).sendto(b"hello", (a.address, 5000))
    assert told.recv(10) == b"hello"


@pytest.mark.parametrize("allow", [(), ("10.213.0.0/24",), ("0.0.0.0/0",)])
async def test_an_instance_does_not_reach_another(network: Network, world: World, allow: tuple[str, ...]) -> None:
    """TCP, UDP and ICMP, whatever their policies say."""
    a, b = [await attach(network, NetworkPolicy(internet=True, allow_cidrs=allow)) for _ in range(2)]
    world.listen(b.netns, 80)
    told = world.udp(b.netns, 5000)
    assert world.reaches(world.host, b.address, 80)
    assert world.pings(world.host, b.address)
    assert not world.reaches(a.netns, b.address, 80)
    assert not world.pings(a.netns, b.address)
    assert not world.tells(a.netns, b.address, 5000, b"from a")
    world.udp(world.host).sendto(b"from the host", (b.address, 5000))
    assert told.recv(20) == b"from the host"


async def test_whether_an_address_belongs_to_an_instance_cannot_be_told(network: Network, world: World) -> None:
    a, b = await attach(network), await attach(network)
    errors = []
    for address in (b.address, "10.213.0.200"):
        client = world.open(a.netns, socket.SOCK_DGRAM)
        client.connect((address, 9))
        client.send(b"x")
        with pytest.raises(OSError) as caught:  # noqa: PT011 - which one is the question
            client.recv(1)
        errors.append(caught.value.errno)
    assert errors[0] == errors[1]


async def test_an_instance_reaches_no_address_of_the_host(network: Network, world: World) -> None:
    a = await attach(network, NetworkPolicy(internet=True, allow_cidrs=("0.0.0.0/0",)))
    listener = world.listen(world.host, 7000)
    told = world.udp(world.host, 7000)
    found = [line.split()[3].split("/")[0] for line in run("ip", "-n", world.host.name, "-o", "-4", "a").splitlines()]
    assert set(HOST_ADDRESSES) < set(found)
    for address in found:
        assert world.reaches(world.host, address, 7000)
        listener.accept()[0].close()
        if address == "127.0.0.1":
            continue  # the instance's own
        assert not world.reaches(a.netns, address, 7000)
        assert not world.pings(a.netns, address)
        assert not world.tells(a.netns, address, 7000, b"from a")
    world.udp(world.host).sendto(b"from the host", ("127.0.0.1", 7000))
    assert told.recv(20) == b"from the host"


async def test_a_port_the_host_forwards_to_a_container_is_the_hosts(network: Network, world: World) -> None:
    a = await attach(network)
    world.listen(world.outside, 8000)
    assert not world.reaches(a.netns, "203.0.113.9", 8080)
    # Without our rule the forwarding would take it there: so it is this rule that keeps it away.
    world.rules(f"flush chain inet dovecote_{world.name} sent")
    assert world.reaches(a.netns, "203.0.113.9", 8080)
    await network.ensure()
    assert not world.reaches(a.netns, "203.0.113.9", 8080)


async def test_metadata_is_never_reached(network: Network, world: World) -> None:
    a = await attach(network, NetworkPolicy(internet=True, allow_cidrs=("169.254.0.0/16", "0.0.0.0/0")))
    world.listen(world.outside, 80)
    assert world.reaches(world.host, METADATA, 80)
    assert not world.reaches(a.netns, METADATA, 80)
    assert not world.pings(a.netns, METADATA)


async def test_a_spoofed_source_is_dropped(network: Network, world: World) -> None:
    a, b = await attach(network), await attach(network)
    told = world.udp(world.outside, 6000)
    raw = world.open(a.netns, socket.SOCK_RAW, socket.IPPROTO_RAW)

    def packet(source: str, words: bytes) -> bytes:
        udp = struct.pack("!HHHH", 6000, 6000, 8 + len(words), 0) + words
        ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0)
        return ip + socket.inet_aton(source) + socket.inet_aton(INTERNET) + udp

    for source in (b.address, "192.0.2.1", "8.8.8.8", "169.254.1.1"):
        raw.sendto(packet(source, b"spoofed"), (INTERNET, 0))
    raw.sendto(packet(a.address, b"honest"), (INTERNET, 0))
    assert told.recv(20) == b"honest"


async def test_internet_is_on_or_off_by_policy(network: Network, world: World) -> None:
    on, off, none = await attach(network), await attach(network, CLOSED), await network.attach()
    listener = world.listen(world.outside, 80)
    assert world.reaches(on.netns, INTERNET, 80)
    assert listener.accept()[1][0] == "192.0.2.1"  # as the host, although a FORWARD chain drops by policy
    assert world.pings(on.netns, INTERNET)
    for instance in (off, none):
        assert not world.reaches(instance.netns, INTERNET, 80)
        assert not world.pings(instance.netns, INTERNET)
        assert not world.tells(instance.netns, INTERNET, 9)


async def test_private_networks_open_by_name(network: Network, world: World) -> None:
    world.listen(world.outside, 80)
    on = await attach(network)
    granted = await attach(network, NetworkPolicy(internet=False, allow_cidrs=("10.77.0.0/24", "10.77.0.0/16")))
    assert world.reaches(world.host, COMPANY, 80)
    assert not world.reaches(on.netns, COMPANY, 80)
    assert world.reaches(granted.netns, COMPANY, 80)
    assert not world.reaches(granted.netns, INTERNET, 80)
    await network.apply(granted.address, NetworkPolicy(internet=False, allow_cidrs=("10.77.0.1/32",)))
    assert world.reaches(granted.netns, COMPANY, 80)
    await network.apply(granted.address, CLOSED)
    assert not world.reaches(granted.netns, COMPANY, 80)


async def test_parts_of_the_internet_close_by_name(
    network: Network, make: Callable[..., Network], world: World
) -> None:
    """At once, for open connections too; allowed goes before denied; and who adopts it knows."""
    world.listen(world.outside, 80)
    a = await attach(network, NetworkPolicy())
    pipe = world.connect(a.netns, INTERNET, 80)
    denied = NetworkPolicy(deny_cidrs=(f"{INTERNET}/32",))
    await network.apply(a.address, denied)
    assert not world.reaches(a.netns, INTERNET, 80)
    pipe.send(b"x")
    with pytest.raises(ConnectionResetError):
        pipe.recv(1)
    await network.apply(a.address, NetworkPolicy(allow_cidrs=(f"{INTERNET}/32",), deny_cidrs=(f"{INTERNET}/32",)))
    assert world.reaches(a.netns, INTERNET, 80)
    await network.apply(a.address, denied)
    again = make()
    try:
        await again.ensure()
        await again.adopt({"a": a})
        assert not world.reaches(a.netns, INTERNET, 80)
        await again.apply(a.address, NetworkPolicy())
        assert world.reaches(a.netns, INTERNET, 80)
    finally:
        await again.close()


async def test_names_are_resolved_where_internet_is_on(network: Network, world: World) -> None:
    on, off = await attach(network), await attach(network, CLOSED)
    server = world.udp(world.outside, 53, RESOLVER)
    world.listen(world.outside, 53, RESOLVER)
    client = world.open(on.netns, socket.SOCK_DGRAM)
    client.connect(("169.254.1.1", 53))
    client.send(b"query")
    query, sender = server.recvfrom(10)
    server.sendto(b"answer", sender)
    assert (query, client.recv(10)) == (b"query", b"answer")
    assert world.reaches(on.netns, "169.254.1.1", 53)
    assert not world.reaches(on.netns, "169.254.1.1", 80)
    assert not world.tells(off.netns, "169.254.1.1", 53)
    assert not world.reaches(off.netns, "169.254.1.1", 53)


async def test_the_host_itself_may_be_the_resolver(make: Callable[..., Network], world: World) -> None:
    """At that one port; not at the same port of its other addresses."""
    network = make(dns=HOST_ADDRESSES[0])
    try:
        await network.ensure()
        a = await attach(network)
        listener = world.listen(world.host, 53)
        world.listen(world.host, 80)
        assert world.reaches(a.netns, "169.254.1.1", 53)
        assert listener.accept()[1][0] == a.address
        assert not world.reaches(a.netns, HOST_ADDRESSES[0], 80)
        assert not world.reaches(a.netns, HOST_ADDRESSES[2], 53)
    finally:
        await network.remove()
        await network.close()


async def test_a_new_policy_ends_what_it_no_longer_allows(network: Network, world: World) -> None:
    """In both directions; what it still allows goes on, even when only the other side speaks."""
    listener = world.listen(world.outside, 80)
    a = await attach(network, NetworkPolicy(internet=True, allow_cidrs=("10.77.0.0/16",)))
    internet, company = world.connect(a.netns, INTERNET, 80), world.connect(a.netns, COMPANY, 80)
    far_internet, far_company = listener.accept()[0], listener.accept()[0]
    heard = world.udp(a.netns, 5000)
    far = world.udp(world.outside, 5000, INTERNET)
    heard.sendto(b"hi", (INTERNET, 5000))
    sender = far.recvfrom(10)[1]
    far.sendto(b"before", sender)
    assert heard.recv(10) == b"before"

    await network.apply(a.address, NetworkPolicy(internet=False, allow_cidrs=("10.77.0.0/16",)))
    far.sendto(b"after", sender)
    far_company.send(b"still")
    assert company.recv(10) == b"still"
    world.udp(world.host).sendto(b"host", (a.address, 5000))
    assert heard.recv(10) == b"host"
    far_internet.send(b"no")
    internet.send(b"x")
    with pytest.raises(ConnectionResetError):
        internet.recv(10)


async def test_refusing_resets_new_connections_and_spares_open_ones(network: Network, world: World) -> None:
    a, b = await network.attach(), await network.attach()
    listeners = [world.listen(instance.netns, 80) for instance in (a, b)]
    client = world.connect(world.host, a.address, 80)
    server = listeners[0].accept()[0]
    for _ in range(2):
        await network.refuse(a.address)
    assert not world.reaches(world.host, a.address, 80)
    assert world.reaches(world.host, b.address, 80)
    client.send(b"ping")
    server.send(server.recv(10))
    assert client.recv(10) == b"ping"
    for _ in range(2):
        await network.accept(a.address)
    assert world.reaches(world.host, a.address, 80)


async def test_flows_counts_connections_from_the_host_until_they_are_closed(network: Network, world: World) -> None:
    a, b = await attach(network), await attach(network)
    listener = world.listen(a.netns, 80)
    world.listen(world.outside, 80)
    clients = [world.connect(world.host, a.address, 80) for _ in range(3)]
    servers = [listener.accept()[0] for _ in range(3)]
    world.connect(a.netns, INTERNET, 80)  # its own, not counted
    assert (await network.flows(a.address), await network.flows(b.address)) == (3, 0)
    clients[0].shutdown(socket.SHUT_WR)  # half closed: an answer may come
    assert await network.flows(a.address) == 3
    servers[0].close()
    clients[0].close()
    clients[1].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    clients[1].close()  # reset
    assert await network.flows(a.address) == 1
    world.sockets.extend(servers)


async def test_activity_is_what_the_host_sends(network: Network, world: World) -> None:
    a, b, c = await attach(network), await attach(network), await attach(network)
    world.listen(world.outside, 80)
    assert await network.activity() == {}
    world.listen(a.netns, 80)
    world.connect(world.host, a.address, 80)
    world.connect(b.netns, INTERNET, 80)  # its own
    await network.refuse(c.address)
    world.listen(c.netns, 80)
    assert not world.reaches(world.host, c.address, 80)  # refused
    activity = await network.activity()
    assert set(activity) == {a.address}
    assert 0 <= activity[a.address] < WAIT


async def test_traffic_with_the_outside_counts_where_a_policy_says_so(network: Network, world: World) -> None:
    watched = await attach(network, NetworkPolicy(outbound_keeps_awake=True))
    other = await attach(network, OPEN)
    world.listen(world.outside, 80)
    assert await network.sent() == {}
    for attachment in (watched, other):
        assert world.reaches(attachment.netns, INTERNET, 80)
    assert set(await network.sent()) == {watched.address}
    closed = await attach(network, NetworkPolicy(internet=False, outbound_keeps_awake=True))
    assert not world.reaches(closed.netns, INTERNET, 80)
    assert set(await network.sent()) == {watched.address}  # what is refused does not count
    assert await network.activity() == {}


async def test_open_connections_are_counted_for_many_at_once(network: Network, world: World) -> None:
    a, b = await attach(network, OPEN), await attach(network, OPEN)
    assert await network.flows_to([a.address, b.address]) == {}
    world.listen(a.netns, 80)
    connection = world.connect(world.host, a.address, 80)
    assert await network.flows_to([a.address, b.address, "10.213.0.250"]) == {a.address: 1}
    connection.close()


async def test_nobody_outside_reaches_an_instance_directly(network: Network, world: World) -> None:
    a = await attach(network)
    told = world.udp(a.netns, 5000)
    run("ip", "-n", world.outside.name, "route", "add", "10.213.0.0/24", "via", "192.0.2.1")
    world.udp(world.outside).sendto(b"from outside", (a.address, 5000))
    world.udp(world.host).sendto(b"from the host", (a.address, 5000))
    assert told.recv(20) == b"from the host"


async def test_an_unused_address_fails_at_once(network: Network, world: World) -> None:
    with pytest.raises(OSError, match="No route to host"):
        world.connect(world.host, "10.213.0.77", 80)


async def test_an_instance_has_no_ipv6_and_low_ports_are_free(network: Network, world: World) -> None:
    a = await network.attach()

    def inside(path: str) -> str:
        return namespaces.inside(a.netns, Path(path).read_text)

    assert inside("/proc/thread-self/net/if_inet6") == ""
    assert inside("/proc/sys/net/ipv4/ip_unprivileged_port_start") == "0\n"
    assert inside("/proc/sys/net/ipv4/ping_group_range").split() == ["0", "2147483647"]


async def test_a_detached_address_rests(make: Callable[..., Network]) -> None:
    network = make("10.213.0.0/29", rest=3600)
    try:
        await network.ensure()
        instances = [await network.attach() for _ in range(6)]
        with pytest.raises(NoCapacity) as full:
            await network.attach()
        for _ in range(2):
            await network.detach(instances[0].address)
        with pytest.raises(NoCapacity) as resting:
            await network.attach()
        with pytest.raises(NotFound):
            await network.refuse(instances[0].address)
        assert full.value.retry_after is None
        assert resting.value.retry_after
        # Another process must know it too.
        again = make("10.213.0.0/29", rest=3600)
        await again.ensure()
        await again.adopt({str(instance.index): instance for instance in instances[1:]})
        with pytest.raises(NoCapacity):
            await again.attach()
        await again.close()
    finally:
        await network.remove()
        await network.close()


async def test_nothing_of_an_earlier_owner_is_left_at_an_address(make: Callable[..., Network], world: World) -> None:
    network = make("10.213.0.0/29", rest=0)
    world.listen(world.outside, 80)
    try:
        await network.ensure()
        owners = [await attach(network, NetworkPolicy(allow_cidrs=("10.77.0.0/16",))) for _ in range(6)]
        listener = world.listen(owners[0].netns, 80)
        world.connect(world.host, owners[0].address, 80)
        await network.refuse(owners[0].address)
        await network.detach(owners[0].address)
        listener.close()
        heir = await network.attach()
        assert heir.address == owners[0].address
        world.listen(heir.netns, 80)
        assert (await network.flows(heir.address), await network.activity()) == (0, {})
        assert world.reaches(world.host, heir.address, 80)
        assert not world.reaches(heir.netns, INTERNET, 80)
        assert not world.reaches(heir.netns, COMPANY, 80)
    finally:
        await network.remove()
        await network.close()


async def test_ensuring_again_disturbs_nothing(network: Network, world: World) -> None:
    a, b = await attach(network, NetworkPolicy(allow_cidrs=("10.77.0.0/16",))), await network.attach()
    listener = world.listen(a.netns, 80)
    world.listen(world.outside, 80)
    client = world.connect(world.host, a.address, 80)
    server = listener.accept()[0]
    await network.refuse(b.address)
    world.listen(b.netns, 80)
    await network.ensure()
    client.send(b"ping")
    server.send(server.recv(10))
    assert client.recv(10) == b"ping"
    assert world.reaches(a.netns, INTERNET, 80)
    assert world.reaches(a.netns, COMPANY, 80)
    assert not world.reaches(world.host, b.address, 80)
    assert world.rules("list chain ip filter FORWARD").count("dovecote") == 2


async def test_what_somebody_removed_is_healed(network: Network, world: World) -> None:
    a = await attach(network)
    world.listen(a.netns, 80)
    run("ip", "-n", world.host.name, "link", "del", f"dvc{world.name}")
    world.rules(f"delete table inet dovecote_{world.name}")
    with pytest.raises(OSError, match=r"unreachable|No route|timed out"):
        world.connect(world.host, a.address, 80)
    await network.ensure()
    assert world.reaches(world.host, a.address, 80)


async def test_a_new_process_adopts_what_lives_and_removes_the_rest(
    network: Network, make: Callable[..., Network], world: World
) -> None:
    kept = await attach(network, NetworkPolicy(internet=True, allow_cidrs=("10.77.0.0/16",)))
    orphan = await attach(network)
    gone = await network.attach()
    namespaces.delete(gone.netns)
    listener = world.listen(kept.netns, 80)
    world.listen(world.outside, 80)
    client = world.connect(world.host, kept.address, 80)
    server = listener.accept()[0]

    successor = make()
    try:
        await successor.ensure()
        assert await successor.adopt({"kept": kept, "gone": gone}) == {"gone"}
        client.send(b"ping")
        server.send(server.recv(10))
        assert client.recv(10) == b"ping"
        assert world.reaches(kept.netns, INTERNET, 80)
        assert await successor.flows(kept.address) == 1
        assert not orphan.netns.exists()
        with pytest.raises(NotFound):
            await successor.apply(orphan.address, OPEN)
        assert (await successor.attach()).index not in (kept.index, orphan.index, gone.index)
        # It knows what its predecessor granted, and takes it back.
        await successor.apply(kept.address, CLOSED)
        assert not world.reaches(kept.netns, COMPANY, 80)
    finally:
        await successor.close()


async def test_adoption_mends_wires_when_the_router_is_lost(make: Callable[..., Network], world: World) -> None:
    network, successor = make(), make()
    try:
        await network.ensure()
        a = await attach(network)
        world.listen(a.netns, 80)
        await network.close()
        run("ip", "netns", "del", f"dvc-{world.name}")
        await successor.ensure()
        assert await successor.adopt({"a": a}) == frozenset()
        assert world.reaches(world.host, a.address, 80)
        await successor.apply(a.address, OPEN)
        world.listen(world.outside, 80)
        assert world.reaches(a.netns, INTERNET, 80)
    finally:
        await successor.remove()
        await successor.close()


async def test_removing_leaves_nothing(make: Callable[..., Network], world: World, tmp_path: Path) -> None:
    def state() -> tuple[object, ...]:
        netlink = namespaces.inside(world.host, lambda: Netlink(ROUTE))
        links, routes = set(list_links(netlink)), list_routes(netlink)
        netlink.close()
        forward = namespaces.inside(world.host, Path("/proc/sys/net/ipv4/ip_forward").read_text)
        tables = world.rules("list ruleset")
        return links, routes, forward, "dovecote" in tables, tables.count("accept")

    namespaces.inside(world.host, lambda: namespaces.write_sysctl("net/ipv4/ip_forward", "0"))
    before = state()
    network = make()
    try:
        await network.ensure()
        await attach(network)
        assert state() != before
    finally:
        for _ in range(2):
            await network.remove()
        await network.close()
    assert state() == before
    assert not Path("/run/netns", f"dvc-{world.name}").exists()
    assert list(tmp_path.iterdir()) == []
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


async def test_forwarding_returns_to_what_it_was_with_the_last_installation(world: World, tmp_path: Path) -> None:
    namespaces.inside(world.host, lambda: namespaces.write_sysctl("net/ipv4/ip_forward", "0"))
    both = [
        Network(
            installation=f"{world.name}{number}",
            network=f"10.213.{number}.0/24",
            run_dir=tmp_path / str(number),
            dns=RESOLVER,
            address_rest=timedelta(),
            host_namespace=world.host,
        )
        for number in range(2)
    ]
    seen = []
    try:
        for network in both:
            await network.ensure()
    finally:
        for network in both:
            await network.remove()
            await network.close()
            seen.append(namespaces.inside(world.host, Path("/proc/sys/net/ipv4/ip_forward").read_text))
    assert seen == ["1\n", "0\n"]


async def test_a_range_that_the_host_already_routes_is_refused(make: Callable[..., Network], world: World) -> None:
    run("ip", "-n", world.host.name, "route", "add", "10.213.0.0/25", "via", RESOLVER)
    network = make()
    try:
        with pytest.raises(Conflict) as caught:
            await network.ensure()
        assert caught.value.code == "network_in_use"
    finally:
        await network.remove()
        await network.close()


def test_this_machine_has_what_it_needs() -> None:
    assert find_problems(network="10.213.0.0/24", dns=RESOLVER) == []
