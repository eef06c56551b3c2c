"""Links, addresses, routes and neighbours as rtnetlink messages."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from dovecote.host.network.netlink import (
    ACK,
    CREATE,
    EXCLUSIVE,
    REPLACE,
    Message,
    Netlink,
    attribute,
    nested,
    parse_attributes,
    text,
    u32,
)

AF_INET = 2
_NEWLINK, _DELLINK, _GETLINK, _NEWADDR, _NEWROUTE, _GETROUTE, _NEWNEIGH = 16, 17, 18, 20, 24, 26, 28
_IFLA_ADDRESS, _IFLA_NAME, _IFLA_LINKINFO, _IFLA_ALIAS, _IFLA_NS_FD = 1, 3, 18, 20, 28
_IFLA_GROUP, _DOOMED = 27, 0xD0C
_IFLA_TX_QUEUES, _IFLA_RX_QUEUES = 31, 32
_UP = 1
_LINK_SCOPE, _UNIVERSE = 253, 0
_MAIN_TABLE, _STATIC = 254, 4
_UNICAST, _UNREACHABLE = 1, 7
_PERMANENT = 0x80


@dataclass(frozen=True)
class End:
    """One end of a veth pair. `index` 0 lets the kernel choose; `namespace` is a file descriptor, None is here."""

    name: str
    mac: bytes
    index: int = 0
    is_up: bool = False
    namespace: int | None = None


@dataclass(frozen=True)
class Link:
    index: int
    name: str
    alias: str


@dataclass(frozen=True)
class Route:
    destination: IPv4Network
    index: int


def _link_body(index: int = 0, flags: int = 0) -> bytes:
    return struct.pack("=BxHiII", 0, 0, index, flags, flags)


def _end(end: End) -> bytes:
    attributes = [
        text(_IFLA_NAME, end.name),
        attribute(_IFLA_ADDRESS, end.mac),
        # One queue each: the default is one per processor, memory that thousands of links would pay for nothing.
        u32(_IFLA_TX_QUEUES, 1),
        u32(_IFLA_RX_QUEUES, 1),
    ]
    if end.namespace is not None:
        attributes.append(u32(_IFLA_NS_FD, end.namespace))
    return _link_body(end.index, _UP if end.is_up else 0) + b"".join(attributes)


def add_veth(end: End, peer: End) -> Message:
    kind = nested(_IFLA_LINKINFO, text(1, "veth"), nested(2, attribute(1, _end(peer))))
    return Message(_NEWLINK, ACK | CREATE | EXCLUSIVE, _end(end) + kind, what=f"add link {end.name}")


def set_up(index: int) -> Message:
    return Message(_NEWLINK, ACK, _link_body(index, _UP), what=f"bring up link {index}")


def set_alias(name: str, alias: str) -> Message:
    body = _link_body() + text(_IFLA_NAME, name) + attribute(_IFLA_ALIAS, alias.encode())
    return Message(_NEWLINK, ACK, body, what=f"describe link {name}")


def delete_links(names: Iterable[str]) -> list[Message]:
    """Deletes them as one group: the kernel waits for every processor once, not once a link."""
    group = u32(_IFLA_GROUP, _DOOMED)
    return [
        *(Message(_NEWLINK, ACK, _link_body() + text(_IFLA_NAME, name) + group, (errno.ENODEV,)) for name in names),
        Message(_DELLINK, ACK, _link_body() + group, (errno.ENODEV,), "delete links"),
    ]


def delete_link(name: str) -> Message:
    body = _link_body() + text(_IFLA_NAME, name)
    return Message(_DELLINK, ACK, body, ignore=(errno.ENODEV,), what=f"delete link {name}")


def add_address(index: int, address: IPv4Address, peer: IPv4Address | None = None) -> Message:
    body = struct.pack("=BBBBi", AF_INET, 32, 0, _UNIVERSE if peer is None else _LINK_SCOPE, index)
    body += attribute(2, address.packed) + attribute(1, (peer or address).packed)
    return Message(_NEWADDR, ACK | CREATE | REPLACE, body, what=f"add address {address}")


def add_route(
    destination: IPv4Network, index: int, *, via: IPv4Address | None = None, source: IPv4Address | None = None
) -> Message:
    scope = _LINK_SCOPE if via is None else _UNIVERSE
    attributes = [attribute(1, destination.network_address.packed), u32(4, index)]
    if via is not None:
        attributes.append(attribute(5, via.packed))
    if source is not None:
        attributes.append(attribute(7, source.packed))
    return _route(destination, scope, _UNICAST, attributes)


def add_unreachable(destination: IPv4Network) -> Message:
    return _route(destination, _UNIVERSE, _UNREACHABLE, [attribute(1, destination.network_address.packed)])


def _route(destination: IPv4Network, scope: int, kind: int, attributes: list[bytes]) -> Message:
    body = struct.pack("=8BI", AF_INET, destination.prefixlen, 0, 0, _MAIN_TABLE, _STATIC, scope, kind, 0)
    return Message(_NEWROUTE, ACK | CREATE | REPLACE, body + b"".join(attributes), what=f"add route {destination}")


def add_neighbour(index: int, address: IPv4Address, mac: bytes) -> Message:
    body = struct.pack("=BxxxiHBB", AF_INET, index, _PERMANENT, 0, 0)
    body += attribute(1, address.packed) + attribute(2, mac)
    return Message(_NEWNEIGH, ACK | CREATE | REPLACE, body, what=f"add neighbour {address}")


def list_links(netlink: Netlink) -> dict[str, Link]:
    found = {}
    for body in netlink.dump(_GETLINK, _link_body()):
        attributes = parse_attributes(body[16:])
        name = attributes.get(_IFLA_NAME, b"").rstrip(b"\0").decode()
        alias = attributes.get(_IFLA_ALIAS, b"").rstrip(b"\0").decode()
        found[name] = Link(struct.unpack_from("=i", body, 4)[0], name, alias)
    return found


def list_routes(netlink: Netlink) -> list[Route]:
    """Routes of the main table that leave by a link."""
    found = []
    for body in netlink.dump(_GETROUTE, struct.pack("=8BI", AF_INET, 0, 0, 0, 0, 0, 0, 0, 0)):
        attributes = parse_attributes(body[12:])
        if body[4] == _MAIN_TABLE and 4 in attributes:
            destination = IPv4Network((attributes.get(1, bytes(4)), body[1]))
            found.append(Route(destination, struct.unpack("=I", attributes[4])[0]))
    return found
