"""TCP from the host to a port of one instance: to its address or to its own loopback, and to nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable

from dovecote.errors import Failed, Invalid
from dovecote.host.instances.instance import Instance
from dovecote.host.network import Network

CONNECT_WITHIN = 10.0  # seconds; only a full backlog makes it wait at all
RECEIVED_AT_ONCE = 64 << 10
LOOPBACK = "127.0.0.1"  # instances have no IPv6
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: what was not sent is dropped, and the peer is told so


class Connection:
    """An open one. One task receives and one sends. It ends with its instance, at the latest.

    Raises Failed: `connection_reset` where the other side, or the end of the instance, broke it off.
    """

    def __init__(self, sock: socket.socket, left: Callable[[Connection], None]) -> None:
        self._socket = sock
        self._left = left
        self._loop = asyncio.get_running_loop()
        self._is_cut = self._has_ended = False

    async def receive(self) -> bytes:
        """Some bytes; none when there will be no more."""
        try:
            data = await self._loop.sock_recv(self._socket, RECEIVED_AT_ONCE)
        except OSError as error:
            raise _broken(error) from None
        if not data and self._is_cut:
            raise _broken(None)
        return data

    async def send(self, data: bytes) -> None:
        """Returns when the kernel has taken all of it, however long the server inside takes nothing."""
        try:
            await self._loop.sock_sendall(self._socket, data)
        except OSError as error:
            raise _broken(error) from None

    def end(self) -> None:
        """Nothing more is sent, and the server inside sees the end; what it sends can still be received."""
        self._has_ended = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        """Whoever receives or sends is told that it is over. May be repeated."""
        self._is_cut = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Called when nobody receives or sends. Without an `end` before, the server inside sees a reset."""
        self._left(self)
        if not self._has_ended:
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._socket.close()


async def dial(instance: Instance, network: Network, port: int, *, loopback: bool) -> Connection:
    """Raises Failed (port_closed, port_is_local), Invalid."""
    if not 0 < port < 65536:
        raise Invalid(f"not a port: {port}", hint="1 to 65535")
    sock = await (_to_loopback(instance, network, port) if loopback else _to_address(instance, port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection = Connection(sock, instance.connections.discard)
    instance.connections.add(connection)
    return connection


async def _to_address(instance: Instance, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    if await _connected(sock, (instance.address, port)):
        return sock
    hint = "its server may be going, or have as many connections as it takes"
    raise Failed(f"nothing took the connection to port {port}", code="port_closed", hint=hint)


async def _to_loopback(instance: Instance, network: Network, port: int) -> socket.socket:
    sock = await network.socket_inside(instance.address)
    if await _connected(sock, (LOOPBACK, port)):
        return sock
    raise Failed(
        f"port {port} is open on 127.0.0.1 only, where this isolation level lets nobody in",
        code="port_is_local",
        hint="let the server listen on 0.0.0.0",
    )


async def _connected(sock: socket.socket, where: tuple[str, int]) -> bool:
    try:
        async with asyncio.timeout(CONNECT_WITHIN):
            await asyncio.get_running_loop().sock_connect(sock, where)
    except OSError:  # TimeoutError is one
        sock.close()
        return False
    except BaseException:
        sock.close()
        raise
    return True


def _broken(error: OSError | None) -> Failed:
    why = "it ended" if error is None else error.strerror or "the other side closed it"
    return Failed(f"the connection broke: {why}", code="connection_reset", hint="connect again")
