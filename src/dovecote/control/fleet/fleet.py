"""Which hosts there are, and which of them takes the next instance."""

from __future__ import annotations

from collections.abc import Mapping

from dovecote.control.fleet.contract import Host
from dovecote.errors import NoCapacity, NotFound


class Fleet:
    def __init__(self, hosts: Mapping[str, Host]) -> None:
        self._hosts = dict(hosts)

    def place(self, *, prefer: str | None) -> str:
        """The id of a host for the next instance: where its files are, else any."""
        if prefer in self._hosts:
            assert prefer is not None
            return prefer
        for host_id in self._hosts:
            return host_id
        raise NoCapacity("no host has joined", code="no_host", hint="start one with `dovecote serve`", retry_after=5)

    def host(self, host_id: str) -> Host:
        try:
            return self._hosts[host_id]
        except KeyError:
            raise NotFound(f"no host {host_id}", code="no_such_host") from None

    def hosts(self) -> Mapping[str, Host]:
        return self._hosts

    def hosts_of(self, host_id: str | None) -> list[Host]:
        """That one, if it is here; all, where nobody knows which."""
        return [host for each, host in self._hosts.items() if host_id in (None, each)]
