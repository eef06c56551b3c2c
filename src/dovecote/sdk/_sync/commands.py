"""A command that runs by itself, and what it prints."""

# Generated from _async/commands.py by `python -m dovecote.sdk.generate`; change that and run it.

from __future__ import annotations

import base64
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from typing import Any

from dovecote.sdk._commands import EVENTS, Dropped, Event, Exited, Finished, Output, RawEvent, RawOutput
from dovecote.sdk._reading import read
from dovecote.sdk._sync.transport import Wire, json_lines


class Command:
    """A command that runs by itself. `number` finds it again with `session.attach`."""

    def __init__(self, wire: Wire, session_id: str, number: int) -> None:
        self._wire = wire
        self._path = f"/v1/sessions/{session_id}/commands/{number}"
        self.number = number

    def output(self, *, offset: int = 0) -> Generator[Event, None, None]:
        """What it printed from `offset` on, and what it goes on to print, until it ends."""
        return events_of(self._wire, "GET", f"{self._path}/stream", None, {"offset": offset})

    def raw_output(self, *, offset: int = 0) -> Generator[RawEvent, None, None]:
        """As `output`, but bytes: what it prints may be no text."""
        return raw_events_of(self._wire, "GET", f"{self._path}/stream", None, {"offset": offset, "encoding": "base64"})

    def wait(self) -> Finished:
        """Waits for its end; what it printed is collected."""
        texts = {"stdout": "", "stderr": ""}
        end, was_dropped = Exited(None, None, False), False
        with closing(self.output()) as events:
            for event in events:
                if isinstance(event, Output):
                    texts[event.stream] += event.data
                elif isinstance(event, Dropped):
                    was_dropped = True
                elif isinstance(event, Exited):
                    end = event
        return Finished(texts["stdout"], texts["stderr"], end.exit_code, end.signal, end.timed_out, was_dropped)

    def signal(self, signal: str | int = "SIGTERM") -> None:
        self._wire.call("POST", f"{self._path}:signal", json={"signal": signal})

    def write(self, data: bytes | str, *, timeout: float = 30) -> None:
        """Returns when it has taken all of it. Raises TimedOut (stdin_blocked) after `timeout` seconds."""
        content = data.encode() if isinstance(data, str) else data
        params = {"timeout_seconds": timeout}
        self._wire.call("PUT", f"{self._path}/stdin", params=params, content=content, answer_within=timeout + 60)

    def close_stdin(self) -> None:
        self._wire.call("DELETE", f"{self._path}/stdin")

    def resize(self, rows: int, cols: int) -> None:
        self._wire.call("POST", f"{self._path}:resize", json={"rows": rows, "cols": cols})

    def release(self) -> None:
        """Forgets the ended command and its output."""
        self._wire.call("DELETE", self._path)


def command_body(
    command: str | Sequence[str],
    env: Mapping[str, str] | None,
    cwd: str | None,
    user: str | None,
    timeout: float | None,
) -> dict[str, Any]:
    return {
        "command": command if isinstance(command, str) else list(command),
        "env": dict(env or {}),
        "cwd": cwd,
        "user": user,
        "timeout_seconds": timeout,
    }


def events_of(
    wire: Wire, method: str, path: str, body: dict[str, Any] | None, params: Mapping[str, Any]
) -> Generator[Event, None, None]:
    with wire.stream(method, path, json=body, params=params) as response:
        for fields in json_lines(response):
            if fields["type"] in EVENTS:
                yield read(EVENTS[fields["type"]], fields)


def raw_events_of(
    wire: Wire, method: str, path: str, body: dict[str, Any] | None, params: Mapping[str, Any]
) -> Generator[RawEvent, None, None]:
    """What was asked for in base64."""
    with closing(events_of(wire, method, path, body, params)) as events:
        for event in events:
            if isinstance(event, Output):
                yield RawOutput(event.stream, base64.b64decode(event.data), event.offset or 0)
            else:
                yield event
