"""Who may send what to whom, as nftables rules. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from ipaddress import AddressValueError, IPv4Address, IPv4Network, NetmaskValueError

from dovecote.errors import Invalid

GATEWAY = IPv4Address("169.254.1.1")  # default route and name server inside every instance; no machine has it
UPLINK = "host"  # the router's link to the host
TABLE = "dovecote"  # in the router
INTERNET, ALLOWED, DENIED, REFUSED, ACTIVE = "internet", "allowed", "denied", "refused", "active"
WATCHED, SENT = "watched", "sent_lately"  # addresses whose traffic with the outside counts, and when they had some
MARKS = (REFUSED, ACTIVE, SENT)  # sets of addresses that may be in them; nothing of it outlives an instance
ACTIVE_SECONDS = 3600
MAX_FLOWS = 4096  # connections that one instance may have open to the outside: the kernel's table is shared

# No policy opens these. 168.63.129.16 is Azure's, the only metadata service outside of the link-local range
# and 100.100.100.200 is Alibaba Cloud's, inside what providers use for their customers' addresses.
NEVER = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "224.0.0.0/3",
        "100.100.100.200/32",
        "168.63.129.16/32",
    )
)
# Internet access does not include these; a policy may grant parts of them by name.
PRIVATE = tuple(
    IPv4Network(text)
    for text in ("10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.0.0.0/24", "192.168.0.0/16", "198.18.0.0/15")
)

_NAME_SERVICE = "meta l4proto { tcp, udp } th dport 53"


@dataclass(frozen=True)
class Plan:
    """All that the rules of one installation depend on."""

    installation: str
    network: IPv4Network
    resolver: IPv4Address

    @property
    def link(self) -> str:
        """Name of the host's link to the router."""
        return f"dvc{self.installation}"

    @property
    def host_table(self) -> str:
        return f"dovecote_{self.installation}"

    @property
    def host_address(self) -> IPv4Address:
        return self._pair()

    @property
    def router_address(self) -> IPv4Address:
        return self._pair() + 1

    def _pair(self) -> IPv4Address:
        # 8192 pairs in 169.254.64.0/18, which no cloud's metadata or DNS address lies in.
        number = int.from_bytes(blake2b(self.installation.encode(), digest_size=2).digest(), "big") % 8192
        return IPv4Address("169.254.64.0") + 2 * number


def parse_network(text: str) -> IPv4Network:
    """The instances' range. Raises Invalid."""
    try:
        network = IPv4Network(text)
    except (AddressValueError, NetmaskValueError, ValueError) as error:
        raise Invalid(
            f"not a range of addresses: {text!r}", hint="set DOVECOTE_NETWORK to a private range, 10.201.0.0/16"
        ) from error
    if not 16 <= network.prefixlen <= 29 or any(network.overlaps(other) for other in NEVER):
        raise Invalid(f"{text} cannot hold instances", hint="set DOVECOTE_NETWORK to a private range from /16 to /29")
    return network


def permits(
    destination: IPv4Address,
    *,
    internet: bool,
    grants: Sequence[IPv4Network],
    network: IPv4Network,
    denials: Sequence[IPv4Network] = (),
) -> bool:
    """Whether an instance may send there: the same decision as the rules make, for flows that are open already."""
    if destination == GATEWAY:
        return internet  # name service
    if destination in network or any(destination in never for never in NEVER):
        return False
    if any(destination in grant for grant in grants):
        return True
    return internet and not any(destination in refused for refused in (*PRIVATE, *denials))


def _list(networks: Sequence[IPv4Network]) -> str:
    return "{ " + ", ".join(str(network) for network in networks) + " }"


def render_router(plan: Plan) -> str:
    """Rules inside the router. Loading them again replaces them and keeps the sets' elements.

    What an instance sends is judged in one place, before routing, packet by packet: so a change of policy holds for
    open connections too, and the answer is the same whether or not another instance has the address.
    """
    size = plan.network.num_addresses
    return f"""
add table inet {TABLE}
flush table inet {TABLE}
table inet {TABLE} {{
  set {INTERNET} {{ type ipv4_addr; }}
  set {ALLOWED} {{ type ipv4_addr . ipv4_addr; flags interval; }}
  set {DENIED} {{ type ipv4_addr . ipv4_addr; flags interval; }}
  set {REFUSED} {{ type ipv4_addr; }}
  set {ACTIVE} {{ type ipv4_addr; size {size}; flags dynamic,timeout; timeout {ACTIVE_SECONDS}s; }}
  set {WATCHED} {{ type ipv4_addr; }}
  set {SENT} {{ type ipv4_addr; size {size}; flags dynamic,timeout; timeout {ACTIVE_SECONDS}s; }}
  set open_flows {{ type ipv4_addr; size {size}; flags dynamic; }}

  chain spoofed {{
    type filter hook prerouting priority raw; policy accept;
    meta nfproto ipv6 drop
    iifname "i*" fib saddr . iif oif missing drop
  }}
  chain names {{
    type nat hook prerouting priority dstnat; policy accept;
    iifname "i*" ip daddr {GATEWAY} ip saddr @{INTERNET} {_NAME_SERVICE} dnat ip to {plan.resolver}
  }}
  chain sent {{
    type filter hook prerouting priority dstnat + 10; policy accept;
    iifname "i*" goto judge
  }}
  chain judge {{
    ct direction reply ct state established,related accept
    ct state invalid drop
    ct state new add @open_flows {{ ip saddr ct count over {MAX_FLOWS} }} goto rejected
    ct status dnat ct original ip daddr {GATEWAY} ip saddr @{INTERNET} goto permitted
    ip daddr {_list([*NEVER, plan.network])} goto rejected
    ip saddr . ip daddr @{ALLOWED} goto permitted
    ip saddr . ip daddr @{DENIED} goto rejected
    ip daddr {_list(PRIVATE)} goto rejected
    ip saddr @{INTERNET} goto permitted
    goto rejected
  }}
  chain permitted {{
    ip saddr @{WATCHED} update @{SENT} {{ ip saddr }}
    accept
  }}
  chain rejected {{
    meta l4proto tcp reject with tcp reset
    reject with icmp admin-prohibited
  }}
  chain forward {{
    type filter hook forward priority filter; policy drop;
    iifname "i*" oifname "{UPLINK}" accept
    iifname "{UPLINK}" oifname "i*" jump arriving
  }}
  chain arriving {{
    ct direction reply ct state established,related goto answered
    ip saddr != {plan.host_address} drop
    ct state invalid drop
    ip daddr @{REFUSED} meta l4proto tcp ct state new reject with tcp reset
    ip daddr @{REFUSED} meta l4proto != tcp ct state new reject with icmp admin-prohibited
    update @{ACTIVE} {{ ip daddr }}
    accept
  }}
  chain answered {{
    ip daddr @{WATCHED} update @{SENT} {{ ip daddr }}
    accept
  }}
  chain input {{
    type filter hook input priority filter; policy drop;
  }}
}}
"""


def render_host(plan: Plan) -> str:
    """Rules in the host's own namespace, in a table of ours.

    `fib daddr type local` stands for whatever addresses the host has at that moment. It is asked before anyone's
    destination NAT, so that a port which another program forwards to a container counts as the host's too.
    """
    return f"""
add table inet {plan.host_table}
flush table inet {plan.host_table}
table inet {plan.host_table} {{
  chain arriving {{
    type filter hook prerouting priority mangle; policy accept;
    iifname "{plan.link}" goto sent
  }}
  chain sent {{
    meta nfproto ipv6 drop
    ct state established,related accept
    ip daddr {plan.resolver} {_NAME_SERVICE} accept
    fib daddr type {{ local, broadcast, anycast, multicast }} goto rejected
  }}
  chain rejected {{
    meta l4proto tcp reject with tcp reset
    reject with icmp admin-prohibited
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
    iifname "{plan.link}" ct state established,related accept
    iifname "{plan.link}" ip daddr {plan.resolver} {_NAME_SERVICE} accept
    iifname "{plan.link}" drop
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    oifname "{plan.link}" ct state established,related accept
    oifname "{plan.link}" drop
    iifname "{plan.link}" ip saddr != {plan.network} drop
  }}
  chain leaving {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {plan.network} oifname != "{plan.link}" masquerade
  }}
}}
"""


def render_no_table(table: str) -> str:
    # Adding first makes it repeatable: deleting a table that is not there is an error.
    return f"add table inet {table}\ndelete table inet {table}\n"
