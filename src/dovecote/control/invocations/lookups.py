"""Finds the addresses of names that tenants chose: a name whose servers are dead holds up its own tenant alone."""

from __future__ import annotations

import asyncio
import ipaddress
from concurrent.futures import ThreadPoolExecutor
from socket import SOCK_STREAM, getaddrinfo
from weakref import WeakValueDictionary

AT_ONCE, OF_A_TENANT = 32, 4  # the resolver of the machine gives up on a dead name after half a minute or so

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Lookups:
    """In threads of their own, few of them for one tenant: the others are never all taken by dead names of his."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="names")
        self._turns: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def find(self, tenant_id: str, host: str, port: int) -> list[Address]:
        """Raises socket.gaierror, UnicodeError. Whoever stops waiting leaves a thread behind that still counts."""
        turn = self._turns.setdefault(tenant_id, asyncio.Semaphore(OF_A_TENANT))
        await turn.acquire()
        try:
            looking = asyncio.get_running_loop().run_in_executor(self._threads, _look, host, port)
        except BaseException:
            turn.release()
            raise

        def looked(done: asyncio.Future[list[Address]]) -> None:
            turn.release()
            done.exception()  # heard of by whoever still waits

        looking.add_done_callback(looked)
        return await asyncio.shield(looking)


def _look(host: str, port: int) -> list[Address]:
    found = getaddrinfo(host, port, type=SOCK_STREAM)
    return [ipaddress.ip_address(each[4][0]) for each in found]
