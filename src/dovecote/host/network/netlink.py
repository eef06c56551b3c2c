"""Netlink: attributes, messages, and a socket that sends them in batches and checks every answer."""

from __future__ import annotations

import errno
import itertools
import os
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

ROUTE, NETFILTER = 0, 12  # protocols

REQUEST, ACK, DUMP = 0x1, 0x4, 0x300
REPLACE, EXCLUSIVE, CREATE = 0x100, 0x200, 0x400

_ERROR, _DONE = 2, 3
_DUMP_INTERRUPTED = 0x10
_SOL_NETLINK, _CAP_ACK, _EXT_ACK = 270, 10, 11
_NESTED = 0x8000
_ATTRIBUTE = struct.Struct("=HH")
_HEADER = struct.Struct("=IHHII")
_TIMEOUT = 10.0
_DUMP_ATTEMPTS = 5


@dataclass(frozen=True)
class Message:
    """One request. `ignore` are error numbers that mean that it was so already."""

    kind: int
    flags: int
    body: bytes
    ignore: tuple[int, ...] = ()
    what: str = ""


def attribute(kind: int, value: bytes) -> bytes:
    length = 4 + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(-length % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    return attribute(kind | _NESTED, b"".join(attributes))


def text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def iterate_attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < 4:
            return
        yield kind & 0x3FFF, data[at + 4 : at + length]
        at += (length + 3) & ~3


def parse_attributes(data: bytes) -> dict[int, bytes]:
    # Written out, not over the iterator: listings of thousands of elements go through here every second.
    found, at, end = {}, 0, len(data) - 4
    while at <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[at + 4 : at + length]
        at += (length + 3) & ~3
    return found


class Netlink:
    """A netlink socket. It belongs to the network namespace of the thread that makes it, and may be used from any."""

    def __init__(self, protocol: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._socket.bind((0, 0))
        self._socket.settimeout(_TIMEOUT)
        self._socket.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)
        self._socket.setsockopt(_SOL_NETLINK, _EXT_ACK, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    def close(self) -> None:
        self._socket.close()

    def send(self, messages: Sequence[Message]) -> list[bytes]:
        """Sends all in one write, waits for every acknowledgement; returns the bodies that came back.

        The kernel goes on after a message that fails; the first failure that is not ignored is raised as OSError.
        """
        with self._lock:
            pending: dict[int, Message] = {}
            out = bytearray()
            numbered = {next(self._numbers) & 0xFFFFFFFF: message for message in messages}
            for number, message in numbered.items():
                out += _HEADER.pack(16 + len(message.body), message.kind, message.flags | REQUEST, number, 0)
                out += message.body + bytes(-len(message.body) % 4)
                if message.flags & ACK:
                    pending[number] = message
            self._socket.send(out)
            return self._collect(numbered, pending)

    def _collect(self, numbered: dict[int, Message], pending: dict[int, Message]) -> list[bytes]:
        bodies: list[bytes] = []
        failure: OSError | None = None
        while pending:
            for kind, _, number, body in self._receive():
                message = numbered.get(number)
                if message is None:
                    continue
                if kind != _ERROR:
                    bodies.append(body)
                    continue
                code = -struct.unpack_from("=i", body)[0]
                if code and code not in message.ignore and failure is None:
                    failure = _failure(code, message, body)
                if code and number not in pending:  # the frame of a batch: nothing else will be answered
                    pending.clear()
                pending.pop(number, None)
        if failure:
            raise failure
        return bodies

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """All that the kernel lists. Asked again when the list changed meanwhile, a few times at most."""
        for _ in range(_DUMP_ATTEMPTS):
            bodies, whole = self._dump(kind, body)
            if whole:
                break
        return bodies

    def _dump(self, kind: int, body: bytes) -> tuple[list[bytes], bool]:
        with self._lock:
            mine = next(self._numbers) & 0xFFFFFFFF
            self._socket.send(_HEADER.pack(16 + len(body), kind, REQUEST | DUMP, mine, 0) + body)
            bodies: list[bytes] = []
            whole = True
            while True:
                for answer, flags, number, content in self._receive():
                    if number != mine:
                        continue
                    whole = whole and not flags & _DUMP_INTERRUPTED
                    if answer in (_ERROR, _DONE):
                        code = -struct.unpack_from("=i", content)[0] if len(content) >= 4 else 0
                        if code:
                            raise OSError(code, os.strerror(code))
                        return bodies, whole
                    bodies.append(content)

    def _receive(self) -> Iterator[tuple[int, int, int, bytes]]:
        data = self._socket.recv(1 << 18)
        at = 0
        while at + 16 <= len(data):
            length, kind, flags, number, _ = _HEADER.unpack_from(data, at)
            if length < 16:
                raise OSError(errno.EBADMSG, "netlink message is too short")
            yield kind, flags, number, data[at + 16 : at + length]
            at += (length + 3) & ~3


def _failure(code: int, message: Message, body: bytes) -> OSError:
    said = parse_attributes(body[20:]).get(1, b"").rstrip(b"\0").decode(errors="replace")
    return OSError(code, f"{message.what or 'netlink request'}: {said or os.strerror(code)}")
