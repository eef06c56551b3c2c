"""The router: a network namespace of the installation, and the wires from it to the instances. Blocking."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Collection, Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from dovecote.host.network import links, namespaces, policy
from dovecote.host.network.conntrack import Conntrack
from dovecote.host.network.limits import Limits, render_table
from dovecote.host.network.netlink import ROUTE, Message, Netlink
from dovecote.host.network.nftables import Rules
from dovecote.host.network.sets import Sets
from dovecote.host.network.uplink import Uplink

NAMED = Path("/run/netns")
_GATEWAY_MAC = bytes.fromhex("02d0c0000003")
_FIRST_INDEX = 16  # number of instance i1's link in the router, less one
_INSTANCE_LINK = 2  # number of eth0 in an instance
_LINK_NAME = re.compile(r"i([1-9][0-9]*)")
_AT_ONCE = 256  # links, so that the answers fit into the socket's buffer
_EVERYWHERE = IPv4Network("0.0.0.0/0")
LINK_TRIES = 100
LINK_PAUSE = 0.02  # seconds


class Router:
    """Makes and removes what is in the kernel. One thread at a time; `ensure` comes first."""

    def __init__(self, plan: policy.Plan, *, run_dir: Path, host: Path) -> None:
        self.plan = plan
        self._host = host
        self.path = NAMED / f"dvc-{plan.installation}"
        self._instances = run_dir / "netns"
        self._netlink: Netlink | None = None

    def ensure(self) -> bool:
        """Makes or heals the router, its uplink and all rules. Says whether the router is new."""
        self._instances.mkdir(parents=True, exist_ok=True, mode=0o700)
        is_new = not namespaces.is_namespace(self.path)
        if is_new:
            namespaces.prepare_directory(NAMED)
            namespaces.delete(self.path)
            namespaces.inside(self._host, lambda: namespaces.create(self.path, lambda _: None))
        self.close()
        self._netlink, rules = namespaces.inside(self.path, self._prepare)
        try:
            rules.run(policy.render_router(self.plan))
            rules.run(render_table(policy.UPLINK))
        finally:
            rules.close()
        uplink = Uplink(self.plan, self._host)
        try:
            uplink.ensure(self._netlink)
        finally:
            uplink.close()
        # Without it an address that nobody has would travel back to the host by the default route, round and round.
        self._netlink.send([links.add_unreachable(self.plan.network)])
        return is_new

    def _prepare(self) -> tuple[Netlink, Rules]:
        _disable_ipv6()
        namespaces.write_sysctl("net/ipv4/ip_forward", "1")
        namespaces.write_sysctl("net/ipv4/conf/all/send_redirects", "0")
        namespaces.write_sysctl("net/ipv4/conf/default/send_redirects", "0")
        return Netlink(ROUTE), Rules()

    def close(self) -> None:
        if self._netlink:
            self._netlink.close()
            self._netlink = None

    def sets(self) -> Sets:
        return namespaces.inside(self.path, lambda: Sets(policy.TABLE))

    def limits(self) -> Limits:
        return namespaces.inside(self.path, Limits)

    def conntrack(self) -> Conntrack:
        return namespaces.inside(self.path, Conntrack)

    def namespace(self, index: int) -> Path:
        return self._instances / f"i{index}"

    def join(self, index: int) -> None:
        """Makes a namespace and wires it. When that fails nothing is left."""
        namespaces.delete(self.namespace(index))
        try:
            namespaces.create(self.namespace(index), lambda descriptor: self._wire(index, descriptor))
        except BaseException:
            self.part([index])
            raise

    def rejoin(self, index: int) -> bool:
        """Wires a namespace that was there before us, where it is not. False when it is no longer there."""
        path = self.namespace(index)
        if not namespaces.is_namespace(path):
            return False
        if index not in self.wired():
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                self._wire_again(index, path, descriptor)
            finally:
                os.close(descriptor)
        return True

    def _wire_again(self, index: int, path: Path, descriptor: int) -> None:
        # The kernel takes the links of a lost router away in its own time, a moment after the router.
        for attempt in range(LINK_TRIES):
            try:
                return namespaces.inside(path, lambda: self._wire(index, descriptor))
            except FileExistsError:
                if attempt == LINK_TRIES - 1:
                    raise
                time.sleep(LINK_PAUSE)

    def _wire(self, index: int, descriptor: int) -> None:
        """Runs in the instance's namespace."""
        assert self._netlink
        _disable_ipv6()
        # The host's ids: container ids lie inside this range whatever their base is.
        namespaces.write_sysctl("net/ipv4/ping_group_range", "0 2147483647")
        namespaces.write_sysctl("net/ipv4/ip_unprivileged_port_start", "0")
        address, mac = self.plan.network[index], _instance_mac(index)
        here = _FIRST_INDEX + index
        self._netlink.send(
            [
                links.add_veth(
                    links.End(f"i{index}", _GATEWAY_MAC, index=here, is_up=True),
                    links.End("eth0", mac, index=_INSTANCE_LINK, namespace=descriptor),
                ),
                links.add_route(IPv4Network(address), here),
                links.add_neighbour(here, address, mac),
            ]
        )
        inside = Netlink(ROUTE)
        try:
            inside.send(_instance_messages(address))
        finally:
            inside.close()

    def part(self, indexes: Collection[int]) -> None:
        """Cuts their wires and lets go of their namespaces. May be repeated."""
        assert self._netlink
        for some in _by(_AT_ONCE, [f"i{index}" for index in indexes]):
            self._netlink.send(links.delete_links(some))
        for index in indexes:
            namespaces.delete(self.namespace(index))

    def wired(self) -> set[int]:
        assert self._netlink
        return {int(found[1]) for name in links.list_links(self._netlink) if (found := _LINK_NAME.fullmatch(name))}

    def known(self) -> set[int]:
        """Numbers that have a wire, or a file of a namespace, mounted or not."""
        files = (_LINK_NAME.fullmatch(path.name) for path in self._instances.iterdir())
        return self.wired() | {int(found[1]) for found in files if found}

    def remove(self) -> None:
        """Everything, also what a crashed process left. May be repeated."""
        self.close()
        uplink = Uplink(self.plan, self._host)
        try:
            uplink.remove()
        finally:
            uplink.close()
        if self._instances.is_dir():
            for path in self._instances.iterdir():
                namespaces.delete(path)
            self._instances.rmdir()
        if namespaces.is_namespace(self.path):
            namespaces.inside(self.path, _delete_links)
        namespaces.delete(self.path)


def _instance_mac(index: int) -> bytes:
    return b"\x02\xd0" + index.to_bytes(4, "big")


def _instance_messages(address: IPv4Address) -> list[Message]:
    gateway = policy.GATEWAY
    return [
        links.set_up(1),
        links.set_up(_INSTANCE_LINK),
        links.add_address(_INSTANCE_LINK, address),
        links.add_route(IPv4Network(gateway), _INSTANCE_LINK),
        links.add_route(_EVERYWHERE, _INSTANCE_LINK, via=gateway, source=address),
        links.add_neighbour(_INSTANCE_LINK, gateway, _GATEWAY_MAC),
    ]


def _by(size: int, names: list[str]) -> Iterator[list[str]]:
    return (names[first : first + size] for first in range(0, len(names), size))


def _disable_ipv6() -> None:
    for scope in ("all", "default"):
        try:
            namespaces.write_sysctl(f"net/ipv6/conf/{scope}/disable_ipv6", "1")
        except FileNotFoundError:  # a kernel without IPv6
            return


def _delete_links() -> None:
    """The wires die here and now, not when the last process of an instance ends."""
    netlink = Netlink(ROUTE)
    try:
        names = [name for name in links.list_links(netlink) if _LINK_NAME.fullmatch(name)]
        for some in _by(_AT_ONCE, names):
            netlink.send(links.delete_links(some))
    finally:
        netlink.close()
