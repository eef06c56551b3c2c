"""One connection to a guest: frames out, frames in, everything bounded in size and time."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
from pathlib import Path

from dovecote.errors import Failed
from dovecote.host.guest.protocol import HEAD, MAX_FRAME, Kind, garbage

CONNECT_WITHIN = 5.0  # seconds; only a full backlog makes it wait at all
SEND_WITHIN = 60.0  # seconds for a peer that takes nothing
RECEIVED_AT_ONCE = 64 << 10
FRAMES_AT_ONCE = 64  # received without a wait, after which others have their turn
SENT_AT_ONCE = 256 << 10


def unreachable(why: str) -> Failed:
    return Failed(f"the sandbox's guest cannot be reached: {why}", code="guest_unreachable", hint="it may have ended")


class Connection:
    """Raises Failed: `guest_unreachable`, `guest_protocol`. Raw sockets: half the time of asyncio's streams."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._parsed = 0  # bytes at its beginning
        self._at_once = 0

    @classmethod
    async def open(cls, path: Path, *, timeout: float = CONNECT_WITHIN) -> Connection:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            deadline = asyncio.get_running_loop().time() + timeout
            while not connect_to(sock, path):
                if asyncio.get_running_loop().time() > deadline:
                    raise unreachable("it takes no connections")
                await asyncio.sleep(0.005)
            return cls(sock)
        except OSError as error:
            sock.close()
            raise unreachable(os.strerror(error.errno or 0)) from None
        except BaseException:
            sock.close()
            raise

    async def send(self, *parts: bytes | memoryview) -> None:
        """One frame, in parts so that large ones are not copied together.

        Raises Failed when the guest has closed; its last answer may still be there to receive.
        """
        try:
            sent = self._socket.sendmsg(parts)
        except BlockingIOError:
            sent = 0
        except OSError:
            raise unreachable("it closed the connection") from None
        for part in parts:
            if sent < len(part):
                await self._send_rest(memoryview(part)[sent:])
            sent = max(0, sent - len(part))

    async def _send_rest(self, rest: memoryview) -> None:
        try:
            async with asyncio.timeout(SEND_WITHIN):
                await self._loop.sock_sendall(self._socket, rest)
        except OSError as error:  # TimeoutError is one
            raise unreachable("it takes no data" if isinstance(error, TimeoutError) else "it closed") from None

    async def send_data(self, data: bytes | memoryview) -> None:
        """Cut into frames."""
        view = memoryview(data)
        for at in range(0, len(view), SENT_AT_ONCE):
            part = view[at : at + SENT_AT_ONCE]
            await self.send(HEAD.pack(len(part), Kind.DATA), part)

    async def receive(self, timeout: float | None) -> tuple[int, bytes]:
        """The next frame, whole, within `timeout` seconds."""
        self._at_once += 1
        if self._at_once >= FRAMES_AT_ONCE:
            self._at_once = 0
            await asyncio.sleep(0)  # what is there already is received without one
        frame = self._parse()
        if frame is not None:
            return frame
        try:
            async with asyncio.timeout(timeout):
                while True:
                    data = await self._loop.sock_recv(self._socket, RECEIVED_AT_ONCE)
                    if not data:
                        raise unreachable("it closed the connection")
                    self._keep(data)
                    frame = self._parse()
                    if frame is not None:
                        return frame
        except TimeoutError:
            raise unreachable(f"no answer within {timeout:.0f} s") from None
        except OSError as error:
            raise unreachable(os.strerror(error.errno or 0)) from None

    def has_answer(self) -> bool:
        """Whether the guest has said something already, or has gone. Does not wait."""
        try:
            self._keep(self._socket.recv(RECEIVED_AT_ONCE))
        except BlockingIOError:
            return self._parsed < len(self._buffer)
        except OSError:
            pass
        return True

    async def closed(self, timeout: float) -> bool:
        """Waits until the guest closes. What it still says is not looked at."""
        try:
            async with asyncio.timeout(timeout):
                while await self._loop.sock_recv(self._socket, RECEIVED_AT_ONCE):
                    pass
        except TimeoutError:
            return False
        except OSError:
            pass
        return True

    def close(self) -> None:
        self._socket.close()

    def _keep(self, data: bytes) -> None:
        del self._buffer[: self._parsed]
        self._parsed = 0
        self._buffer += data

    def _parse(self) -> tuple[int, bytes] | None:
        begin = self._parsed + HEAD.size
        if len(self._buffer) < begin:
            return None
        length, kind = HEAD.unpack_from(self._buffer, self._parsed)
        if length > MAX_FRAME:
            raise garbage(f"a frame of {length} bytes")
        if len(self._buffer) < begin + length:
            return None
        payload = bytes(memoryview(self._buffer)[begin : begin + length])
        self._parsed = begin + length
        return kind, payload


def connect_to(sock: socket.socket, path: Path) -> bool:
    """Of one that does not block. False if its backlog is full; raises OSError where nobody listens.

    A path may be of any length, and a link is not followed: it may be a guest's.
    """
    place = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not stat.S_ISSOCK(os.fstat(place).st_mode):
            raise OSError(errno.ENOTSOCK, "")
        sock.connect(f"/proc/self/fd/{place}")
    except BlockingIOError:
        return False
    finally:
        os.close(place)
    return True
