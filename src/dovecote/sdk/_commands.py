"""What the client is told of commands: what they are, and what happens to them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class CommandView:
    number: int
    pid: int
    is_running: bool
    exit_code: int | None
    signal: int | None
    timed_out: bool
    tag: str
    started_at: datetime
    output_bytes: int


@dataclass(frozen=True)
class Finished:
    """What a command did. `exit_code` is None when a signal ended it."""

    stdout: str
    stderr: str
    exit_code: int | None
    signal: int | None
    timed_out: bool
    truncated: bool

    @property
    def is_ok(self) -> bool:
        return self.exit_code == 0


@dataclass(frozen=True)
class Started:
    number: int
    pid: int


@dataclass(frozen=True)
class Output:
    """`offset` counts bytes of this command's output up to this; attach again from `next_offset`."""

    stream: str
    data: str
    offset: int | None
    next_offset: int | None = None


@dataclass(frozen=True)
class RawOutput:
    """Output as bytes, for what may be no text."""

    stream: str
    data: bytes
    offset: int


@dataclass(frozen=True)
class Dropped:
    """So many bytes of output were written over before anybody read them."""

    bytes: int


@dataclass(frozen=True)
class Exited:
    exit_code: int | None
    signal: int | None
    timed_out: bool


Event = Started | Output | Dropped | Exited
RawEvent = Started | RawOutput | Dropped | Exited

EVENTS: dict[str, type[Event]] = {"started": Started, "output": Output, "dropped": Dropped, "exited": Exited}
