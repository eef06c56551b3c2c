"""The host's side: the link to the router, our own table, what other firewalls must let pass, forwarding."""

from __future__ import annotations

import json
import os
import re
from ipaddress import IPv4Network
from pathlib import Path

from dovecote.errors import Conflict
from dovecote.host.network import links, namespaces, policy
from dovecote.host.network.netlink import ROUTE, Netlink
from dovecote.host.network.nftables import Rules

HOST_MAC, ROUTER_MAC = bytes.fromhex("02d0c0000001"), bytes.fromhex("02d0c0000002")
ROUTER_INDEX = 2  # of the link inside the router
_FORWARDING = "net/ipv4/ip_forward"
_ALIAS = re.compile(r"dovecote: ip_forward was ([01])")


class Uplink:
    """All that an installation puts into the host's own network namespace. Everything may be repeated."""

    def __init__(self, plan: policy.Plan, host: Path) -> None:
        self._plan = plan
        self._host = host
        self._netlink, self._rules = namespaces.inside(host, lambda: (Netlink(ROUTE), Rules()))

    def close(self) -> None:
        self._netlink.close()
        self._rules.close()

    def ensure(self, router: Netlink) -> None:
        """The rules first: there is no moment in which a link exists unguarded. Raises Conflict."""
        plan = self._plan
        self._check_range()
        self._rules.run(policy.render_host(plan))
        self._ensure_accepts()
        found = links.list_links(self._netlink)
        before = self._forwarding_before(found)
        if plan.link not in found or policy.UPLINK not in links.list_links(router):
            self._connect(router)
            found = links.list_links(self._netlink)
        index = found[plan.link].index
        self._netlink.send(
            [
                links.set_alias(plan.link, f"dovecote: ip_forward was {before}"),
                links.set_up(index),
                links.add_address(index, plan.host_address, plan.router_address),
                links.add_neighbour(index, plan.router_address, ROUTER_MAC),
                links.add_route(plan.network, index, via=plan.router_address, source=plan.host_address),
            ]
        )
        router.send(
            [
                links.set_up(ROUTER_INDEX),
                links.add_address(ROUTER_INDEX, plan.router_address, plan.host_address),
                links.add_neighbour(ROUTER_INDEX, plan.host_address, HOST_MAC),
                links.add_route(IPv4Network("0.0.0.0/0"), ROUTER_INDEX, via=plan.host_address),
            ]
        )
        self._write_forwarding("1")

    def remove(self) -> None:
        plan = self._plan
        found = links.list_links(self._netlink)
        mine = found.pop(plan.link, None)
        self._netlink.send([links.delete_link(plan.link)])
        self._delete_accepts()
        self._rules.run(policy.render_no_table(plan.host_table))
        before = _ALIAS.fullmatch(mine.alias) if mine else None
        if before and not any(_ALIAS.fullmatch(link.alias) for link in found.values()):
            self._write_forwarding(before[1])

    def _check_range(self) -> None:
        network = self._plan.network
        found = links.list_links(self._netlink)
        mine = found[self._plan.link].index if self._plan.link in found else None
        for route in links.list_routes(self._netlink):
            # A wider route (the default, a company's 10.0.0.0/8) may stay: ours is more specific.
            if route.index != mine and route.destination.subnet_of(network):
                raise Conflict(
                    f"this host already has a route to {route.destination}",
                    code="network_in_use",
                    hint="set DOVECOTE_NETWORK to a private range that is free on this host",
                )

    def _connect(self, router: Netlink) -> None:
        plan = self._plan
        self._netlink.send([links.delete_link(plan.link)])
        router.send([links.delete_link(policy.UPLINK)])
        host = os.open(self._host, os.O_RDONLY | os.O_CLOEXEC)
        try:
            # From inside: the kernel lets only the end on this side choose its number.
            there = links.End(policy.UPLINK, ROUTER_MAC, index=ROUTER_INDEX)
            router.send([links.add_veth(there, links.End(plan.link, HOST_MAC, namespace=host))])
        finally:
            os.close(host)

    def _forwarding_before(self, found: dict[str, links.Link]) -> str:
        """What `ip_forward` was before any installation. The aliases of our links keep it, as long as they live."""
        for link in found.values():
            if earlier := _ALIAS.fullmatch(link.alias):
                return earlier[1]
        return namespaces.inside(self._host, lambda: Path("/proc/sys", _FORWARDING).read_text().strip())

    def _write_forwarding(self, value: str) -> None:
        namespaces.inside(self._host, lambda: namespaces.write_sysctl(_FORWARDING, value))

    def _dropping_chains(self) -> list[tuple[str, str, str]]:
        """Other people's base chains on the forward hook that drop what no rule accepts, as Docker and ufw make."""
        chains = (item["chain"] for item in self._rules.run("list chains") if "chain" in item)
        return [
            (chain["family"], chain["table"], chain["name"])
            for chain in chains
            if chain.get("hook") == "forward" and chain.get("policy") == "drop" and chain["family"] in ("ip", "inet")
        ]

    def _ensure_accepts(self) -> None:
        self._delete_accepts()
        link = self._plan.link
        commands = [
            # Narrower words are not needed: our own table drops what is not established, whatever accepts it here.
            # And `iptables` refuses to list a table with rules that it would not have written itself.
            f'insert rule {family} {table} {chain} {side} "{link}" counter accept comment {json.dumps(self._comment)}'
            for family, table, chain in self._dropping_chains()
            for side in ("iifname", "oifname")
        ]
        if commands:
            self._rules.run("\n".join(commands))

    def _delete_accepts(self) -> None:
        commands = []
        for family, table, chain in self._dropping_chains():
            for item in self._rules.run(f"list chain {family} {table} {chain}"):
                rule = item.get("rule")
                if rule and rule.get("comment") == self._comment:
                    commands.append(f"delete rule {family} {table} {chain} handle {rule['handle']}")
        if commands:
            self._rules.run("\n".join(commands))

    @property
    def _comment(self) -> str:
        return f"dovecote {self._plan.installation}"
