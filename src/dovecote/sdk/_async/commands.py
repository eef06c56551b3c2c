"""A command that runs by itself, and what it prints."""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from dovecote.sdk._async.transport import AsyncWire, json_lines
from dovecote.sdk._commands import EVENTS, Dropped, Event, Exited, Finished, Output, RawEvent, RawOutput
from dovecote.sdk._reading import read


class AsyncCommand:
    """A command that runs by itself. `number` finds it again with `session.attach`."""

    def __init__(self, wire: AsyncWire, session_id: str, number: int) -> None:
        self._wire = wire
        self._path = f"/v1/sessions/{session_id}/commands/{number}"
        self.number = number

    def output(self, *, offset: int = 0) -> AsyncGenerator[Event, None]:
        """What it printed from `offset` on, and what it goes on to print, until it ends."""
        return events_of(self._wire, "GET", f"{self._path}/stream", None, {"offset": offset})

    def raw_output(self, *, offset: int = 0) -> AsyncGenerator[RawEvent, None]:
        """As `output`, but bytes: what it prints may be no text."""
        return raw_events_of(self._wire, "GET", f"{self._path}/stream", None, {"offset": offset, "encoding": "base64"})

    async def wait(self) -> Finished:
        """Waits for its end; what it printed is collected."""
        texts = {"stdout": "", "stderr": ""}
        end, was_dropped = Exited(None, None, False), False
        async with aclosing(self.output()) as events:
            async for event in events:
                if isinstance(event, Output):
                    texts[event.stream] += event.data
                elif isinstance(event, Dropped):
                    was_dropped = True
                elif isinstance(event, Exited):
                    end = event
        return Finished(texts["stdout"], texts["stderr"], end.exit_code, end.signal, end.timed_out, was_dropped)

    async def signal(self, signal: str | int = "SIGTERM") -> None:
        await self._wire.call("POST", f"{self._path}:signal", json={"signal": signal})

    async def write(self, data: bytes | str, *, timeout: float = 30) -> None:
        """Returns when it has taken all of it. Raises TimedOut (stdin_blocked) after `timeout` seconds."""
        content = data.encode() if isinstance(data, str) else data
        params = {"timeout_seconds": timeout}
        await self._wire.call("PUT", f"{self._path}/stdin", params=params, content=content, answer_within=timeout + 60)

    async def close_stdin(self) -> None:
        await self._wire.call("DELETE", f"{self._path}/stdin")

    async def resize(self, rows: int, cols: int) -> None:
        await self._wire.call("POST", f"{self._path}:resize", json={"rows": rows, "cols": cols})

    async def release(self) -> None:
        """Forgets the ended command and its output."""
        await self._wire.call("DELETE", self._path)


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


async def events_of(
    wire: AsyncWire, method: str, path: str, body: dict[str, Any] | None, params: Mapping[str, Any]
) -> AsyncGenerator[Event, None]:
    async with wire.stream(method, path, json=body, params=params) as response:
        async for fields in json_lines(response):
            if fields["type"] in EVENTS:
                yield read(EVENTS[fields["type"]], fields)


async def raw_events_of(
    wire: AsyncWire, method: str, path: str, body: dict[str, Any] | None, params: Mapping[str, Any]
) -> AsyncGenerator[RawEvent, None]:
    """What was asked for in base64."""
    async with aclosing(events_of(wire, method, path, body, params)) as events:
        async for event in events:
            if isinstance(event, Output):
                yield RawOutput(event.stream, base64.b64decode(event.data), event.offset or 0)
            else:
                yield event
