"""Which registries tenants may name: those of the internet, and what the operator lists."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Sequence

from dovecote.errors import Forbidden, Invalid

ANSWER_WITHIN = 10.0  # seconds for a resolver
_LISTED = re.compile(r"(?:\[[0-9A-Fa-f:]+\]|[A-Za-z0-9.-]+)(?::[0-9]{1,5})?")
Resolve = Callable[[str], Awaitable[Sequence[str]]]


def parse_registries(text: str) -> frozenset[str]:
    """`localhost:5000, registry.intra` as the operator writes it. Raises Invalid."""
    listed = frozenset(each.strip().lower() for each in text.split(",") if each.strip())
    for each in listed:
        if not _LISTED.fullmatch(each):
            raise Invalid(f"not a registry: {each[:100]!r}", hint="DOVECOTE_REGISTRIES is host:port,host:port")
    return listed


async def resolve(host: str) -> Sequence[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [str(address[0]) for _, _, _, _, address in found]


class Registries:
    def __init__(self, listed: frozenset[str], *, resolve: Resolve = resolve) -> None:
        self._listed = listed
        self._resolve = resolve

    async def check(self, registry: str) -> bool:
        """True for one that the operator lists. `registry` is a host, with a port where one was named.

        Raises Forbidden (registry_refused) for an address that is not of the internet. Only a courtesy: names may lead
        elsewhere a moment later, so what is fetched without being listed is fetched behind the fence.
        """
        if registry.lower() in self._listed:
            return True
        host = registry[1:].partition("]")[0] if registry.startswith("[") else registry.partition(":")[0]
        try:
            async with asyncio.timeout(ANSWER_WITHIN):
                addresses = [host] if _is_address(host) else await self._resolve(host)
        except (OSError, TimeoutError, UnicodeError):
            return False  # skopeo says it better
        if not all(_is_public(address) for address in addresses):
            raise Forbidden(
                f"the registry {registry[:200]} is at an address of a private network",
                code="registry_refused",
                hint="the operator can list it in DOVECOTE_REGISTRIES",
            )
        return False


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_public(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    inner = getattr(address, "ipv4_mapped", None) or address
    return bool(inner.is_global) and not inner.is_multicast
