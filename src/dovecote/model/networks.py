"""Networks that a policy allows or denies by address."""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import IPv4Network, collapse_addresses

from dovecote.errors import Invalid, Unsupported
from dovecote.model.sizes import NetworkPolicy

MOST = 64  # networks that one policy allows, and as many that it denies
_HOST_NAME = re.compile(r"(\*\.)?([a-zA-Z0-9_-]+\.)*[a-zA-Z][a-zA-Z0-9-]*\.?")


def parse_networks(texts: Sequence[str]) -> tuple[IPv4Network, ...]:
    """Without overlaps. Raises Invalid (invalid_cidr), Unsupported (no_domain_rules) for names of hosts."""
    networks = []
    for text in texts:
        if _HOST_NAME.fullmatch(text):
            raise Unsupported(
                f"what may be reached is said by address, not by name: {text[:80]!r}",
                code="no_domain_rules",
                hint="write addresses and networks, 203.0.113.7/32 or 203.0.113.0/24",
            )
        try:
            networks.append(IPv4Network(text))
        except ValueError as error:
            raise Invalid(
                f"not an IPv4 network: {text[:80]!r}",
                code="invalid_cidr",
                hint="write it like 10.1.0.0/16 or 10.1.2.3/32",
            ) from error
    collapsed = tuple(collapse_addresses(networks))
    if len(collapsed) > MOST:
        raise Invalid(f"{len(collapsed)} networks are named, {MOST} are possible", code="invalid_cidr")
    return collapsed


def parse_policy(policy: NetworkPolicy) -> NetworkPolicy:
    """The policy itself, where a host can keep it. Raises as `parse_networks` does."""
    parse_networks(policy.allow_cidrs)
    parse_networks(policy.deny_cidrs)
    return policy
