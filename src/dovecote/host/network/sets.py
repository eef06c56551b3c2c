"""Elements of our nftables sets, by netlink.

Not by libnftables: these calls are on the path of a thaw (0.02 ms against 0.12), and it lists whole seconds only.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from dovecote.host.network.netlink import (
    ACK,
    CREATE,
    NETFILTER,
    Message,
    Netlink,
    attribute,
    iterate_attributes,
    nested,
    parse_attributes,
    text,
)

_NFTABLES = 10
_BEGIN, _END = 0x10, 0x11
_NEW, _GET, _DELETE = (_NFTABLES << 8 | number for number in (12, 13, 14))
_TABLE, _SET, _ELEMENTS = 1, 2, 3
_KEY, _EXPIRATION, _KEY_END = 1, 5, 10
_INET, _UNSPEC = 1, 0


@dataclass(frozen=True)
class Element:
    """An address in a set, or with `destination` an address and a network that it may reach."""

    address: IPv4Address
    destination: IPv4Network | None = None

    def pack(self) -> bytes:
        if self.destination is None:
            return nested(1, nested(_KEY, attribute(1, self.address.packed)))
        first, last = self.destination.network_address, self.destination.broadcast_address
        return nested(
            1,
            nested(_KEY, attribute(1, self.address.packed + first.packed)),
            nested(_KEY_END, attribute(1, self.address.packed + last.packed)),
        )


@dataclass(frozen=True)
class Change:
    set: str
    element: Element
    is_in: bool


class Sets:
    """The sets of one table of the network namespace of the thread that makes this."""

    def __init__(self, table: str) -> None:
        self._table = table
        self._netlink = Netlink(NETFILTER)

    def close(self) -> None:
        self._netlink.close()

    def _message(self, kind: int, change: Change, ignore: tuple[int, ...] = ()) -> Message:
        body = _header(_INET, 0) + text(_TABLE, self._table) + text(_SET, change.set)
        body += nested(_ELEMENTS, change.element.pack())
        flags = ACK | CREATE if kind == _NEW else ACK
        return Message(kind, flags, body, ignore, f"change set {change.set}")

    def apply(self, changes: Sequence[Change]) -> None:
        """All changes or none; those that are so already are fine."""
        if not changes:
            return
        messages = [Message(_BEGIN, 0, _header(_UNSPEC, _NFTABLES), what="begin a change of sets")]
        for change in changes:
            # Adding what is there is no error, deleting what is not is one: so it is added first.
            messages.append(self._message(_NEW, change))
            if not change.is_in:
                messages.append(self._message(_DELETE, change))
        self._netlink.send([*messages, Message(_END, 0, _header(_UNSPEC, _NFTABLES))])

    def list(self, name: str) -> list[tuple[Element, float]]:
        """Elements, and the seconds until each expires (0 where it does not)."""
        body = _header(_INET, 0) + text(_TABLE, self._table) + text(_SET, name)
        try:
            answers = self._netlink.dump(_GET, body)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return []
            raise
        found = []
        for answer in answers:
            for _, item in iterate_attributes(parse_attributes(answer[4:]).get(_ELEMENTS, b"")):
                attributes = parse_attributes(item)
                if _KEY in attributes:
                    found.append((_parse_element(attributes), _parse_expiration(attributes)))
        return found


def _header(family: int, resource: int) -> bytes:
    return struct.pack(">BBH", family, 0, resource)


def _parse_element(attributes: dict[int, bytes]) -> Element:
    key = parse_attributes(attributes[_KEY])[1]
    if len(key) < 8:
        return Element(IPv4Address(key[:4]))
    first = int.from_bytes(key[4:8], "big")
    last = first
    if _KEY_END in attributes:
        last = int.from_bytes(parse_attributes(attributes[_KEY_END])[1][4:8], "big")
    prefix = 32 - (last - first).bit_length()
    return Element(IPv4Address(key[:4]), IPv4Network((first, prefix)))


def _parse_expiration(attributes: dict[int, bytes]) -> float:
    milliseconds = attributes.get(_EXPIRATION)
    return int.from_bytes(milliseconds, "big") / 1000 if milliseconds else 0.0
