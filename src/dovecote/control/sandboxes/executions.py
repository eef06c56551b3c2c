"""What an execution of code says: events, read from the lines of a program that is not trusted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import orjson

from dovecote.errors import DeadlineExceeded, Failed, NoCapacity
from dovecote.host.guest import Dropped, Exited, Output

MOST_LINE = 8 << 20  # bytes
MOST_GARBAGE = 1000  # lines that are none
HEARD_WITHIN = 30.0  # seconds in which the program takes a request
LONGEST_WAIT = 24 * 3600.0  # seconds behind others of the same context
ENDED_WITHIN = 30.0  # seconds after its own timeout
STATUSES = frozenset({"ok", "error", "interrupted", "timed_out", "died"})


@dataclass(frozen=True)
class Accepted:
    """The first event: it waits for its turn in a context. By its id it is followed again or interrupted."""

    execution_id: str
    context_id: str


@dataclass(frozen=True)
class Began:
    """Its turn has come."""


@dataclass(frozen=True)
class Printed:
    stream: str  # stdout or stderr
    text: str


@dataclass(frozen=True)
class Result:
    """Something shown: values by MIME type, text and base64 as Jupyter has it, JSON types as JSON.

    `is_main` marks the value of the last expression. What was too large is `omitted`.
    """

    data: dict[str, Any]
    is_main: bool
    omitted: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fault:
    """An error of the code, or of what runs it: KernelDied, KernelKilled, ContextDied."""

    name: str
    value: str
    traceback: tuple[str, ...] = ()


@dataclass(frozen=True)
class Truncated:
    """From here on output is missing."""


@dataclass(frozen=True)
class Ended:
    """The last event. `status` is ok, error, interrupted, timed_out or died; `dropped_bytes` of output are missing."""

    status: str
    count: int | None
    dropped_bytes: int = 0


Happening = Accepted | Began | Printed | Result | Fault | Truncated | Ended


class Lines:
    """Cuts what a program prints into JSON objects. Whatever it prints, at most `most` bytes are held."""

    def __init__(self, most: int = MOST_LINE) -> None:
        self._most = most
        self._rest = bytearray()
        self._is_skipping = False
        self.garbage = 0

    def lost(self) -> None:
        """Output was dropped: what is left of the line that was cut is no line."""
        self._rest.clear()
        self._is_skipping = True

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        for number, piece in enumerate(data.split(b"\n")):
            if number and (found := self._line()) is not None:
                yield found
            if not self._is_skipping:
                self._rest += piece
                if len(self._rest) > self._most:
                    self.lost()
                    self.garbage += 1

    def _line(self) -> dict[str, Any] | None:
        line, skip = bytes(self._rest), self._is_skipping
        self._rest.clear()
        self._is_skipping = False
        if skip:
            return None
        try:
            found = orjson.loads(line)
        except orjson.JSONDecodeError:
            found = None
        if not isinstance(found, dict):
            self.garbage += 1
            return None
        return found


@dataclass
class Reading:
    """Follows one execution among all that a context's program says. `timeout` is the execution's own, in seconds."""

    execution_id: str
    context_id: str
    timeout: float
    most_bytes: int  # that it may say
    most_raw: int = 1 << 20  # bytes that may pass its program by
    asked_id: str = ""  # of a question whether it is there
    lines: Lines = field(default_factory=Lines)
    is_known: bool = False
    is_running: bool = False
    is_absent: bool = False  # the program knows nothing of it
    _said: int = 0
    _raw: int = 0
    _is_truncated: bool = False

    async def events(self, output: AsyncIterator[Output | Dropped | Exited]) -> AsyncGenerator[Happening, None]:
        """Until its end. Raises NoCapacity (too_many), Failed (context_protocol), DeadlineExceeded (context_silent)."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + HEARD_WITHIN
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    event = await anext(output)
            except TimeoutError:
                raise DeadlineExceeded(
                    "the context does not answer", code="context_silent", hint="restart the context"
                ) from None
            was = (self.is_known, self.is_running)
            for happening in self._heard(event):
                yield happening
                if isinstance(happening, Ended):
                    return
            if self.is_absent:
                return
            if (self.is_known, self.is_running) != was:
                left = self.timeout + ENDED_WITHIN if self.is_running else LONGEST_WAIT
                deadline = loop.time() + left

    def _heard(self, event: Output | Dropped | Exited) -> Iterator[Happening]:
        if isinstance(event, Exited):
            why = f"signal {event.signal}" if event.signal else f"exit code {event.exit_code}"
            yield Fault("ContextDied", f"what ran the context ended ({why}); its state is lost")
            yield Ended("died", None)
        elif isinstance(event, Dropped):
            self.lines.lost()
            yield from self._truncated()
        elif event.stream == "stderr":
            # Past the program: a library or a child process that writes to the descriptor itself.
            if self.is_running:
                yield from self._past(event.data)
        else:
            for line in self.lines.feed(event.data):
                yield from self._line(line, len(event.data))
            if self.lines.garbage > MOST_GARBAGE:
                raise _garbage("it prints what is no JSON")

    def _line(self, line: dict[str, Any], size: int) -> Iterator[Happening]:
        kind = line.get("type")
        if kind == "answer" and line.get("id") == self.asked_id:
            self.is_known = self.is_known or bool(line.get("is_there"))
            self.is_absent = not self.is_known
        if line.get("id") != self.execution_id:
            return
        self.is_known = True
        if kind == "queued":
            yield Accepted(self.execution_id, self.context_id)
        elif kind == "refused":
            raise NoCapacity("too many executions wait in this context", code="too_many", retry_after=5)
        elif kind == "began":
            self.is_running = True
            yield Began()
        elif kind == "truncated":
            yield from self._truncated()
        elif kind == "done":
            self.is_running = False
            yield _ended(line)
        else:
            happening = _parse(line)
            yield from self._bounded(happening, _size(happening))

    def _past(self, data: bytes) -> Iterator[Happening]:
        kept = data[: self.most_raw - self._raw]
        self._raw += len(kept)
        if kept:
            yield Printed("stderr", kept.decode("utf-8", "replace"))
        if len(kept) < len(data):
            yield from self._truncated()

    def _bounded(self, happening: Happening, size: int) -> Iterator[Happening]:
        """The program keeps to its bound; one that was changed does not."""
        self._said += size
        if self._said <= self.most_bytes:
            yield happening
        else:
            yield from self._truncated()

    def _truncated(self) -> Iterator[Happening]:
        if not self._is_truncated:
            self._is_truncated = True
            yield Truncated()


async def wait_ready(output: AsyncGenerator[Output | Dropped | Exited, None], within: float) -> dict[str, Any] | None:
    """What a program says first; None where it ended without a word. Raises DeadlineExceeded (context_silent)."""
    lines = Lines()
    try:
        async with asyncio.timeout(within), aclosing(output):
            async for event in output:
                if isinstance(event, Exited):
                    return {"type": "exited", "code": event.exit_code}
                if isinstance(event, Output) and event.stream == "stdout":
                    for line in lines.feed(event.data):
                        return line
    except TimeoutError:
        raise DeadlineExceeded(f"the kernel does not start in {within:.0f} s", code="context_silent") from None
    return None


def _parse(line: dict[str, Any]) -> Happening:
    kind = line["type"] if isinstance(line.get("type"), str) else ""
    if kind in ("stdout", "stderr") and isinstance(line.get("text"), str):
        return Printed(kind, line["text"])
    if kind == "result" and isinstance(line.get("data"), dict):
        return Result(line["data"], line.get("is_main") is True, _texts(line.get("omitted")))
    if kind == "error":
        return Fault(str(line.get("name"))[:200], str(line.get("value")), _texts(line.get("traceback")))
    raise _garbage(f"an event of kind {kind[:40]!r}")


def _ended(line: dict[str, Any]) -> Ended:
    status, count, dropped = line.get("status"), line.get("count"), line.get("dropped")
    if not isinstance(status, str) or status not in STATUSES:
        raise _garbage(f"an end of kind {str(status)[:40]!r}")
    return Ended(status, count if isinstance(count, int) else None, dropped if isinstance(dropped, int) else 0)


def _texts(value: object) -> tuple[str, ...]:
    return tuple(str(each) for each in value) if isinstance(value, list) else ()


def _size(happening: Happening) -> int:
    if isinstance(happening, Printed):
        return len(happening.text)
    if isinstance(happening, Result):
        return len(orjson.dumps(happening.data))
    return sum(map(len, happening.traceback)) if isinstance(happening, Fault) else 0


def _garbage(what: str) -> Failed:
    return Failed(f"the context sent garbage: {what}", code="context_protocol", hint="restart the context")
