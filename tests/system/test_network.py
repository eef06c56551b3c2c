"""A network of instances: who reaches whom, what policies open and close, and what is counted."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from dovecote.host.network import Network, find_problems, namespaces
from dovecote.model.sizes import NetworkPolicy
from tests.system.network_world import (
    CLOSED,
    COMPANY,
    HOST_ADDRESSES,
    INTERNET,
    METADATA,
    OPEN,
    RESOLVER,
    WAIT,
    World,
    attach,
    make,
    network,
    run,
    world,
)

__all__ = ["make", "network", "world"]
pytestmark = [pytest.mark.system, pytest.mark.anyio]


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


def test_this_machine_has_what_it_needs() -> None:
    assert find_problems(network="10.213.0.0/24", dns=RESOLVER) == []
