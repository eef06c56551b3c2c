"""The kernel's table of connections: which of an instance are open, and ending those that may not be."""

from __future__ import annotations

import errno
import struct
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address

from dovecote.host.network.netlink import (
    ACK,
    NETFILTER,
    Message,
    Netlink,
    attribute,
    nested,
    parse_attributes,
    u32,
)

TCP = 6
_CONNTRACK = 1
_GET, _DELETE = (_CONNTRACK << 8 | number for number in (1, 2))
_ORIGINAL, _PROTOCOL_STATE, _FILTER = 1, 4, 25
_TUPLE_ADDRESSES, _TUPLE_PROTOCOL = 1, 2
_SOURCE, _DESTINATION = 1, 2
_BY_SOURCE, _BY_DESTINATION, _BY_PROTOCOL = 1 << 0, 1 << 1, 1 << 3
_HEADER = struct.pack("=BBH", 2, 0, 0)
_BATCH = 256

# SYN_SENT, SYN_RECV, ESTABLISHED, FIN_WAIT, CLOSE_WAIT: bytes may still come or be waited for.
_OPEN_STATES = frozenset({1, 2, 3, 4, 5})


@dataclass(frozen=True)
class Flow:
    """A connection, as its first packet had it."""

    source: IPv4Address
    destination: IPv4Address
    protocol: int
    is_open: bool  # only TCP ever closes
    original: bytes  # the kernel's own words for it


class Conntrack:
    """Connections of the network namespace of the thread that makes this."""

    def __init__(self) -> None:
        self._netlink = Netlink(NETFILTER)

    def close(self) -> None:
        self._netlink.close()

    def sent_by(self, address: IPv4Address) -> list[Flow]:
        return self._list(_BY_SOURCE, nested(_TUPLE_ADDRESSES, attribute(_SOURCE, address.packed)))

    def sent_to(self, address: IPv4Address) -> list[Flow]:
        return self._list(_BY_DESTINATION, nested(_TUPLE_ADDRESSES, attribute(_DESTINATION, address.packed)))

    def of(self, addresses: Collection[IPv4Address]) -> list[Flow]:
        """To or from any of them. The kernel walks its whole table each time, so many are asked for at once."""
        if len(addresses) == 1:
            [address] = addresses
            return self.sent_by(address) + self.sent_to(address)
        return [flow for flow in self._list(0, b"") if flow.source in addresses or flow.destination in addresses]

    def tcp_sent_to(self, addresses: Collection[IPv4Address], source: IPv4Address) -> list[Flow]:
        """TCP from `source` to any of them."""
        chosen, by = attribute(_SOURCE, source.packed), _BY_SOURCE | _BY_PROTOCOL
        if len(addresses) == 1:
            chosen, by = chosen + attribute(_DESTINATION, next(iter(addresses)).packed), by | _BY_DESTINATION
        found = self._list(by, nested(_TUPLE_ADDRESSES, chosen) + nested(_TUPLE_PROTOCOL, attribute(1, bytes([TCP]))))
        return [flow for flow in found if flow.destination in addresses]

    def delete(self, flows: Iterable[Flow]) -> None:
        """Forgets them: their next packet is judged anew. Those already gone are fine."""
        messages = [
            Message(_DELETE, ACK, _HEADER + nested(_ORIGINAL, flow.original), (errno.ENOENT,), "forget a connection")
            for flow in flows
        ]
        for first in range(0, len(messages), _BATCH):
            self._netlink.send(messages[first : first + _BATCH])

    def _list(self, flags: int, tuple_: bytes) -> list[Flow]:
        chosen = nested(_ORIGINAL, tuple_) + nested(_FILTER, u32(1, flags), u32(2, 0)) if flags else b""
        bodies = self._netlink.dump(_GET, _HEADER + chosen)
        return [_parse_flow(parse_attributes(body[4:])) for body in bodies]


def _parse_flow(attributes: dict[int, bytes]) -> Flow:
    original = parse_attributes(attributes[_ORIGINAL])
    addresses = parse_attributes(original[_TUPLE_ADDRESSES])
    protocol = parse_attributes(original[_TUPLE_PROTOCOL])[1][0]
    state = b"\0"
    if protocol == TCP:
        tcp = parse_attributes(parse_attributes(attributes.get(_PROTOCOL_STATE, b"")).get(1, b""))
        state = tcp.get(1, state)
    return Flow(
        IPv4Address(addresses[_SOURCE]),
        IPv4Address(addresses[_DESTINATION]),
        protocol,
        protocol != TCP or state[0] in _OPEN_STATES,
        attributes[_ORIGINAL],
    )
