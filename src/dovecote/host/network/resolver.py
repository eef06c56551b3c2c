"""Which name server instances are sent to."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, ip_address
from pathlib import Path

from dovecote.errors import Invalid, Unsupported

RESOLVER_FILES = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))


def parse_nameservers(text: str) -> list[IPv4Address]:
    """The name servers of a resolv.conf that another network namespace can reach over IPv4."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                address = ip_address(words[1].split("%")[0])
            except ValueError:
                continue
            if isinstance(address, IPv4Address) and not address.is_loopback and not address.is_unspecified:
                found.append(address)
    return found


def find_resolver(dns: str, files: Sequence[Path] = RESOLVER_FILES) -> IPv4Address:
    """`dns` if it is set, else the host's own. Raises Invalid, or Unsupported with code `no_resolver`."""
    if dns:
        try:
            chosen = IPv4Address(dns)
        except ValueError as error:
            raise Invalid(f"not an IPv4 address: {dns!r}", hint="set DOVECOTE_DNS to a name server, 9.9.9.9") from error
        if chosen.is_loopback or chosen.is_unspecified:
            raise Invalid(f"instances cannot reach {dns}", hint="set DOVECOTE_DNS to an address that is not loopback")
        return chosen
    for path in files:
        try:
            servers = parse_nameservers(path.read_text(errors="replace"))
        except OSError:
            continue
        if servers:
            return servers[0]
    raise Unsupported(
        "this host has no name server that instances could reach (only a loopback or IPv6 one, or none)",
        code="no_resolver",
        hint="set DOVECOTE_DNS to the address of a name server",
    )
