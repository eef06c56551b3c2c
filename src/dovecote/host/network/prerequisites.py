"""What this host lacks for a network of instances; changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from dovecote.errors import DovecoteError
from dovecote.host.network import links, namespaces, policy
from dovecote.host.network.conntrack import Conntrack
from dovecote.host.network.netlink import ROUTE, Netlink
from dovecote.host.network.nftables import Rules
from dovecote.host.network.resolver import RESOLVER_FILES, find_resolver


@dataclass(frozen=True)
class Problem:
    """One thing that is missing, and what to do about it."""

    message: str
    hint: str


def find_problems(*, network: str, dns: str, resolver_files: Sequence[Path] = RESOLVER_FILES) -> list[Problem]:
    """Tries it: a namespace that vanishes afterwards gets a link, both sets of rules and a look at connections."""
    problems = []
    plan = policy.Plan("doctor", IPv4Network("10.201.0.0/16"), IPv4Address("192.0.2.1"))
    try:
        plan = policy.Plan(plan.installation, policy.parse_network(network), find_resolver(dns, resolver_files))
    except DovecoteError as error:
        problems.append(Problem(error.message, error.hint))
    try:
        namespaces.trial(lambda: _try(plan))
    except DovecoteError as error:
        problems.append(Problem(error.message, error.hint or "the kernel needs nf_tables with nat, fib and conntrack"))
    except PermissionError as error:
        problems.append(Problem(f"not allowed: {error}", "run as root, with CAP_SYS_ADMIN and CAP_NET_ADMIN"))
    except OSError as error:
        problems.append(Problem(f"the kernel refused: {error}", "the kernel needs network namespaces, veth, conntrack"))
    return problems


def _try(plan: policy.Plan) -> None:
    netlink, rules = Netlink(ROUTE), Rules()
    try:
        netlink.send([links.add_veth(links.End("a", bytes(5) + b"\2"), links.End("b", bytes(5) + b"\4"))])
        rules.run(policy.render_router(plan))
        rules.run(policy.render_host(plan))
        conntrack = Conntrack()
        conntrack.sent_by(policy.GATEWAY)
        conntrack.close()
    finally:
        netlink.close()
        rules.close()
