"""A network of instances over time: addresses that rest, healing, adoption, removal."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from dovecote.errors import Conflict, NoCapacity, NotFound
from dovecote.host.network import Network, namespaces
from dovecote.host.network.links import list_links, list_routes
from dovecote.host.network.netlink import ROUTE, Netlink
from dovecote.model.sizes import NetworkPolicy
from tests.system.network_world import (
    CLOSED,
    COMPANY,
    INTERNET,
    OPEN,
    RESOLVER,
    World,
    attach,
    make,
    network,
    run,
    world,
)

__all__ = ["make", "network", "world"]
pytestmark = [pytest.mark.system, pytest.mark.anyio]


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
