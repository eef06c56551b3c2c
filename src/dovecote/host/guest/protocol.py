"""The wire between host and guest, in docs/reference/guest-protocol.md: values, and a parser that trusts no byte."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import IntEnum
from typing import Literal

from dovecote.errors import Failed, Invalid

VERSION = 2
MAX_FRAME = 1 << 20
MAX_TAG = 128  # bytes
RING_DEFAULT = 1 << 20
RING_MAX = 16 << 20
HEAD = struct.Struct("<IB")


class Kind(IntEnum):
    HELLO, START, ATTACH, LIST, SIGNAL, STDIN, RESIZE, RELEASE = range(1, 9)
    READ, WRITE, STAT, LIST_DIR, MAKE_DIR, REMOVE, RENAME = range(9, 16)
    PORTS, WAIT_PORT, SYNC, SHUTDOWN, WATCH, LINK, ALTER = range(16, 23)
    SUSPEND = 31
    DATA, END, CLOSE = range(32, 35)
    IS_HELLO, STARTED, OUTPUT, DROPPED, EXITED, DONE, FAILED = range(128, 135)
    COMMANDS, CONTENT, CONTENT_END, ENTRIES, IS_PORTS, IS_PORT, CHANGED = range(135, 142)


START_DETACHED, START_STDIN, START_PTY, START_FORGET = 1, 2, 4, 8


@dataclass(frozen=True)
class Command:
    """`cwd` empty is the user's home; `user` is a name or uid, with `:group` if it is not its own."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str = ""
    user: str = "root"
    stdin: bool = False
    pty: tuple[int, int] | None = None  # rows and columns
    timeout: float | None = None  # seconds
    tag: str = ""
    ring_bytes: int = RING_DEFAULT


@dataclass(frozen=True)
class Hello:
    version: int
    uptime: float  # seconds; stands still while frozen
    running: int  # commands
    id: str  # of this guest process, chosen by it at random


@dataclass(frozen=True)
class Started:
    number: int
    pid: int  # as the sandbox sees it
    started_at: datetime


@dataclass(frozen=True)
class Output:
    stream: Literal["stdout", "stderr"]  # a terminal's output is stdout
    offset: int  # of its first byte in the command's output, both streams counted
    data: bytes


@dataclass(frozen=True)
class Dropped:
    """So many bytes are not kept any more."""

    bytes: int


@dataclass(frozen=True)
class Exited:
    exit_code: int | None
    signal: int | None
    timed_out: bool
    offset: int  # bytes of output that it made


Event = Started | Output | Dropped | Exited


@dataclass(frozen=True)
class Finished:
    stdout: bytes
    stderr: bytes
    exit_code: int | None
    signal: int | None
    timed_out: bool
    truncated: bool


@dataclass(frozen=True)
class CommandStatus:
    number: int
    tag: str
    pid: int
    is_running: bool
    exit_code: int | None
    signal: int | None
    timed_out: bool
    started_at: datetime
    output_bytes: int


@dataclass(frozen=True)
class Port:
    port: int
    loopback_only: bool


@dataclass(frozen=True)
class PortState:
    is_open: bool  # takes connections from outside the sandbox
    loopback: bool  # listens on 127.0.0.1 or ::1 only


def garbage(what: str) -> Failed:
    return Failed(f"the guest sent garbage: {what}", code="guest_protocol", hint="start the sandbox again")


def instant(seconds: float) -> datetime:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(0, UTC)  # a clock or a file inside may say anything


class Payload:
    """Reads a payload from its start. Raises Failed `guest_protocol` where it is too short or makes no sense."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def number(self, size: int) -> int:
        return int.from_bytes(self._take(size), "little")

    def text(self) -> str:
        data = self._take(self.number(4))
        if self._take(1) != b"\0":
            raise garbage("a text without its end")
        return data.decode("utf-8", "surrogateescape")

    def rest(self) -> bytes:
        return self._take(len(self._data) - self._at)

    @property
    def is_over(self) -> bool:
        return self._at == len(self._data)

    def end(self) -> None:
        if not self.is_over:
            raise garbage("bytes after the end of a message")

    def _take(self, size: int) -> bytes:
        if size > len(self._data) - self._at:
            raise garbage("a message that is too short")
        self._at += size
        return self._data[self._at - size : self._at]


def text(value: str) -> bytes:
    """Raises Invalid for what no path or argument can hold."""
    try:
        data = value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise Invalid("text for a sandbox must be Unicode", hint="it holds half of a surrogate pair") from None
    if b"\0" in data:
        raise Invalid("text for a sandbox cannot hold a NUL", hint="remove the character with code 0")
    return len(data).to_bytes(4, "little") + data + b"\0"


def render_frame(kind: Kind, payload: bytes = b"") -> bytes:
    if len(payload) > MAX_FRAME:
        raise Invalid(f"a request of {len(payload)} bytes", code="too_large", hint=f"{MAX_FRAME} bytes is the most")
    return HEAD.pack(len(payload), kind) + payload


def render_start(command: Command, *, detach: bool = False, forget: bool = False) -> bytes:
    """Raises Invalid for what no guest accepts."""
    if not command.argv:
        raise Invalid("a command has at least one word")
    tag = text(command.tag)
    if len(tag) > MAX_TAG + 5:
        raise Invalid(f"a tag has at most {MAX_TAG} bytes")
    if not 0 < command.ring_bytes <= RING_MAX:
        raise Invalid(f"ring_bytes is from 1 to {RING_MAX}")
    rows, cols = command.pty or (0, 0)
    if not (0 <= rows < 65536 and 0 <= cols < 65536):
        raise Invalid("a terminal has 1 to 65535 rows and columns")
    if len(command.argv) > 65535 or len(command.env) > 65535:
        raise Invalid("too many arguments or variables", code="too_large")
    if any(not name or "=" in name for name in command.env):
        raise Invalid("the name of a variable is not empty and holds no =")
    flags = START_DETACHED * detach + START_STDIN * command.stdin + START_FORGET * forget
    flags += START_PTY if command.pty else 0
    parts = [
        struct.pack("<BHHII", flags, rows, cols, milliseconds(command.timeout), command.ring_bytes),
        tag,
        text(command.user),
        text(command.cwd),
        len(command.argv).to_bytes(2, "little"),
        *map(text, command.argv),
        len(command.env).to_bytes(2, "little"),
        *(text(f"{name}={value}") for name, value in command.env.items()),
    ]
    return render_frame(Kind.START, b"".join(parts))


def milliseconds(seconds: float | None) -> int:
    """For the wire: at least one, and none at all is 0."""
    return 0 if seconds is None else max(1, min(int(seconds * 1000), 2**32 - 1))


def parse_hello(data: bytes) -> Hello:
    payload = Payload(data)
    hello = Hello(payload.number(2), payload.number(8) / 1000, payload.number(4), payload.text())
    if hello.version != VERSION:
        raise garbage(f"version {hello.version} where {VERSION} is spoken")
    payload.end()
    return hello


def parse_started(data: bytes) -> Started:
    payload = Payload(data)
    started = Started(payload.number(4), payload.number(4), instant(payload.number(8) / 1000))
    payload.end()
    return started


def parse_event(kind: int, data: bytes) -> Output | Dropped | Exited:
    payload = Payload(data)
    if kind == Kind.OUTPUT:
        stream = payload.number(1)
        if stream not in (1, 2):
            raise garbage(f"output of stream {stream}")
        return Output("stdout" if stream == 1 else "stderr", payload.number(8), payload.rest())
    if kind == Kind.DROPPED:
        dropped = Dropped(payload.number(8))
        payload.end()
        return dropped
    if kind != Kind.EXITED:
        raise garbage(f"a message of kind {kind} among a command's events")
    was_killed, value, timed_out, offset = (payload.number(size) for size in (1, 1, 1, 8))
    payload.end()
    return Exited(None if was_killed else value, value if was_killed else None, bool(timed_out), offset)


def parse_commands(data: bytes) -> list[CommandStatus]:
    payload = Payload(data)
    found = []
    for _ in range(payload.number(4)):
        number, pid, state, value, timed_out, started, size = (payload.number(n) for n in (4, 4, 1, 1, 1, 8, 8))
        found.append(
            CommandStatus(
                number,
                payload.text(),
                pid,
                is_running=state == 0,
                exit_code=value if state == 1 else None,
                signal=value if state == 2 else None,
                timed_out=bool(timed_out),
                started_at=instant(started / 1000),
                output_bytes=size,
            )
        )
    payload.end()
    return found


def parse_ports(data: bytes) -> list[Port]:
    payload = Payload(data)
    found = [Port(payload.number(2), bool(payload.number(1))) for _ in range(payload.number(4))]
    payload.end()
    return found


def parse_port_state(data: bytes) -> PortState:
    payload = Payload(data)
    state = payload.number(1)
    payload.end()
    return PortState(is_open=state == 1, loopback=state == 2)
