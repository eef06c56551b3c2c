"""process.Process: the commands of a sandbox, by pid or tag."""

from __future__ import annotations

import base64
import contextlib
from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from signal import SIGKILL, SIGTERM, Signals

from dovecote.api.e2b.call import Call, absolute, identity
from dovecote.api.e2b.filesystem import shown
from dovecote.api.e2b.holding import held
from dovecote.api.e2b.messages import Json, Message
from dovecote.control.sandboxes import LONGEST_COMMAND, CommandStatus, Event, Exited, Output, Sandboxes, Started
from dovecote.errors import DeadlineExceeded, DovecoteError, Invalid, NotFound

PING: Json = {"event": {"keepalive": {}}}
MOST_REMEMBERED = 10_000  # how commands were started; what is forgotten is read from the sandbox's /proc
MOST_PROC = 64 << 10  # bytes
TERMINAL = (24, 80)
SIGNALS = {"SIGNAL_SIGTERM": int(SIGTERM), "SIGNAL_SIGKILL": int(SIGKILL)}


@dataclass(frozen=True)
class Beginning:
    """What a client started."""

    argv: tuple[str, ...]
    env: dict[str, str]
    cwd: str | None
    has_terminal: bool

    def render(self) -> Json:
        body: Json = {"cmd": self.argv[0] if self.argv else "", "args": self.argv[1:], "envs": self.env}
        return body | ({"cwd": self.cwd} if self.cwd else {})


class Processes:
    """Unary methods answer one message; `start` and `connect` give messages; `stream_input` takes them."""

    def __init__(self, sandboxes: Sandboxes) -> None:
        self._sandboxes = sandboxes
        self._begun: OrderedDict[tuple[str, int, datetime], Beginning] = OrderedDict()
        self._readers: Counter[tuple[str, int]] = Counter()

    async def running(self, call: Call, message: Message) -> Json:
        found = []
        for status in await self._sandboxes.commands(*call.place):
            if status.is_running:
                body = {"config": (await self._beginning(call, status)).render(), "pid": status.pid}
                found.append(body | ({"tag": shown(status.tag)} if status.tag else {}))
        return {"processes": found}

    async def start(self, call: Call, message: Message) -> AsyncGenerator[Json, None]:
        """The call's timeout kills the command. A client that leaves does not."""
        config = message.message("process")
        if not config.text("cmd"):
            raise Invalid("process.cmd is missing")
        begun = Beginning(
            argv=(config.text("cmd"), *config.texts("args")),
            env=config.text_map("envs"),
            cwd=config.text("cwd") or None,
            has_terminal=message.has("pty"),
        )
        timeout = call.pace.timeout
        events = self._sandboxes.stream(
            *call.place,
            argv=begun.argv,
            env={**identity(call.session), **begun.env},
            cwd=await absolute(self._sandboxes, call, begun.cwd, call.user) if begun.cwd else None,
            user=call.user,
            stdin=message.flag("stdin") if message.has("stdin") else True,
            pty=_size(message) if begun.has_terminal else None,
            timeout=timeout if timeout is None or timeout <= LONGEST_COMMAND else None,
            tag=message.text("tag"),
        )
        async with aclosing(events):
            started = await anext(events)
            assert isinstance(started, Started)
            self._remember(call, started.number, started.started_at, begun)
            yield {"event": {"start": {"pid": started.pid}}}
            async for body in self._told(call, started.number, held(events), begun.has_terminal):
                yield body

    async def connect(self, call: Call, message: Message) -> AsyncGenerator[Json, None]:
        """From what is still kept of its output on. The call's timeout ends the stream, not the command."""
        status = await self._find(call, message)
        begun = await self._beginning(call, status)
        yield {"event": {"start": {"pid": status.pid}}}
        events = self._sandboxes.attach(*call.place, status.number)
        async with aclosing(events):
            async for body in self._told(call, status.number, held(events), begun.has_terminal):
                yield body

    async def update(self, call: Call, message: Message) -> Json:
        status = await self._find(call, message)
        if message.has("pty"):
            await self._sandboxes.resize(*call.place, status.number, *_size(message))
        return {}

    async def send_input(self, call: Call, message: Message) -> Json:
        status = await self._find(call, message)
        await self._sandboxes.write_stdin(*call.place, status.number, _input(message))
        return {}

    async def stream_input(self, call: Call, messages: AsyncIterator[Message]) -> Json:
        """The first message names the command, the others are its input, in their order."""
        number: int | None = None
        async for message in messages:
            if message.has("start"):
                number = (await self._find(call, message.message("start"))).number
            elif message.has("data"):
                if number is None:
                    raise Invalid("input ahead of the message that names its process")
                await self._sandboxes.write_stdin(*call.place, number, _input(message.message("data")))
        return {}

    async def send_signal(self, call: Call, message: Message) -> Json:
        status = await self._find(call, message)
        await self._sandboxes.signal(*call.place, status.number, message.choice("signal", SIGNALS))
        return {}

    async def close_stdin(self, call: Call, message: Message) -> Json:
        status = await self._find(call, message)
        await self._sandboxes.close_stdin(*call.place, status.number)
        return {}

    # -- inside

    async def _find(self, call: Call, message: Message) -> CommandStatus:
        """The running command that `process` of the message names."""
        selector = message.message("process")
        pid, tag = selector.number("pid"), selector.text("tag")
        if not pid and not tag:
            raise Invalid("process names neither a pid nor a tag")
        for status in await self._sandboxes.commands(*call.place):
            if status.is_running and (status.pid == pid if pid else status.tag == tag):
                return status
        raise NotFound(f"process with {f'pid {pid}' if pid else f'tag {tag!r}'} not found", code="no_such_process")

    async def _told(
        self, call: Call, number: int, events: AsyncGenerator[Event, None], has_terminal: bool
    ) -> AsyncGenerator[Json, None]:
        """What a running command does, as messages. Once it has ended and nobody reads it, it is forgotten."""
        key = (call.session.id, number)
        self._readers[key] += 1
        has_ended = False
        try:
            async with aclosing(events):
                async for event in events:
                    if isinstance(event, Output):
                        yield {"event": {"data": _data(event, has_terminal)}}
                    elif isinstance(event, Exited):
                        has_ended = True
                        yield {"event": {"end": _end(event)}}
        finally:
            self._readers[key] -= 1
            if not self._readers[key]:
                del self._readers[key]
                if has_ended:
                    with contextlib.suppress(DovecoteError):
                        await self._sandboxes.release(*call.place, number)

    def _remember(self, call: Call, number: int, started_at: datetime, begun: Beginning) -> None:
        self._begun[call.session.id, number, started_at] = begun
        if len(self._begun) > MOST_REMEMBERED:
            self._begun.popitem(last=False)

    async def _beginning(self, call: Call, status: CommandStatus) -> Beginning:
        """Somebody else may have started it, or we before a restart: then as its /proc shows it."""
        begun = self._begun.get((call.session.id, status.number, status.started_at))
        if begun is not None:
            return begun
        with contextlib.suppress(DovecoteError):  # it may end at any time
            words = (await self._proc(call, status.pid, "cmdline")).rstrip("\0").split("\0")
            # After the name, which may hold anything: state, parent, group, session, terminal.
            fields = (await self._proc(call, status.pid, "stat")).rpartition(")")[2].split()
            return Beginning(tuple(words), {}, None, has_terminal=len(fields) > 4 and fields[4] != "0")
        return Beginning((), {}, None, has_terminal=False)

    async def _proc(self, call: Call, pid: int, name: str) -> str:
        """What the sandbox's /proc says of a process. Everybody inside may read it."""
        content = self._sandboxes.read_file(*call.place, f"/proc/{pid}/{name}", user="root", length=MOST_PROC)
        return b"".join([chunk async for chunk in content]).decode("utf-8", "replace")


def _size(message: Message) -> tuple[int, int]:
    size = message.message("pty").message("size")
    return size.number("rows") or TERMINAL[0], size.number("cols") or TERMINAL[1]


def _input(message: Message) -> bytes:
    given = message.message("input")
    return given.data("pty") if given.has("pty") else given.data("stdin")


def _data(output: Output, has_terminal: bool) -> Json:
    return {"pty" if has_terminal else output.stream: base64.b64encode(output.data).decode()}


def _end(exited: Exited) -> Json:
    """As Go's os/exec words it, which clients of E2B know. Raises DeadlineExceeded for one that took too long."""
    if exited.timed_out:
        raise DeadlineExceeded("the command took longer than its timeout", code="command_timeout")
    if exited.exit_code is None:
        status = f"signal: {_signal_word(exited.signal or 0)}"
        return {"exitCode": -1, "exited": False, "status": status, "error": status}
    status = f"exit status {exited.exit_code}"
    body: Json = {"exitCode": exited.exit_code, "exited": True, "status": status}
    return body if exited.exit_code == 0 else body | {"error": status}


def _signal_word(signal: int) -> str:
    words = {SIGKILL: "killed", SIGTERM: "terminated"}
    try:
        return words.get(Signals(signal)) or Signals(signal).name
    except ValueError:
        return str(signal)
