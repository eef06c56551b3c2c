"""How many connections from the host an address takes at once: exact, the kernel counts. Blocking.

A chain for each address, because a count belongs to a rule. Elements of a set can have one too, but the kernel (6.18)
takes such an element away, and its limit with it, when nothing has been open for a while.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv4Address

from dovecote.host.network.nftables import Rules

TABLE = "dovecote_limits"  # in the router; apart from the others, whose rules are replaced while connections are open
_TAKES = "takes"  # address -> its chain
_CHAIN = re.compile(r"takes_([0-9]+)_of_[0-9]+")


class Limits:
    """Those of the network namespace of the thread that makes this; may be used from any thread, one at a time."""

    def __init__(self) -> None:
        self._rules = Rules()
        try:
            self._known = parse_limits(self._rules.run(f"list map inet {TABLE} {_TAKES}"))
        except BaseException:
            self._rules.close()
            raise

    def close(self) -> None:
        self._rules.close()

    def known(self) -> frozenset[IPv4Address]:
        return frozenset(self._known)

    def set(self, address: IPv4Address, connections: int) -> None:
        """More at once are reset from now on. Said again it changes nothing: what is open stays counted."""
        before = self._known.get(address)
        if before == connections:
            return
        if before is not None:
            self.drop([address])
        self._rules.run(render_limit(address, connections))
        self._known[address] = connections

    def drop(self, addresses: Iterable[IPv4Address]) -> None:
        """Those without a limit are fine."""
        gone = [address for address in addresses if address in self._known]
        if gone:
            self._rules.run("".join(render_end(address, self._known[address]) for address in gone))
            for address in gone:
                del self._known[address]


def render_table(uplink: str) -> str:
    """Loading it again replaces the one rule that is not an address's and leaves theirs as they are."""
    return f"""
add table inet {TABLE}
add map inet {TABLE} {_TAKES} {{ type ipv4_addr : verdict; }}
add chain inet {TABLE} arriving {{ type filter hook forward priority filter - 1; policy accept; }}
flush chain inet {TABLE} arriving
add rule inet {TABLE} arriving iifname "{uplink}" oifname "i*" meta l4proto tcp ct state new ip daddr vmap @{_TAKES}
"""


def render_limit(address: IPv4Address, connections: int) -> str:
    chain = _chain(address, connections)
    return f"""
add chain inet {TABLE} {chain}
flush chain inet {TABLE} {chain}
add rule inet {TABLE} {chain} ct count over {connections} reject with tcp reset
add element inet {TABLE} {_TAKES} {{ {address} : jump {chain} }}
"""


def render_end(address: IPv4Address, connections: int) -> str:
    chain = _chain(address, connections)
    return f"""
delete element inet {TABLE} {_TAKES} {{ {address} : jump {chain} }}
flush chain inet {TABLE} {chain}
delete chain inet {TABLE} {chain}
"""


def _chain(address: IPv4Address, connections: int) -> str:
    return f"takes_{connections}_of_{int(address)}"


def parse_limits(listed: Iterable[dict[str, object]]) -> dict[IPv4Address, int]:
    """From what nft lists of the map, as JSON."""
    found: dict[IPv4Address, int] = {}
    for item in listed:
        described = item.get("map")
        elements = described.get("elem", []) if isinstance(described, dict) else []
        for address, verdict in elements:
            chain = _CHAIN.fullmatch(verdict["jump"]["target"])
            assert chain, verdict
            found[IPv4Address(address)] = int(chain[1])
    return found
