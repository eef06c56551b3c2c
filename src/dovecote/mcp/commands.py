"""Tools for commands: run one to its end, or in the background and come back to it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import aclosing, suppress
from dataclasses import asdict
from typing import Annotated, Literal

import anyio
from pydantic import Field

from dovecote.mcp.answers import Commands, Entered, Printed, Ran, Running, Signalled
from dovecote.mcp.arguments import Call, ClientOf, MostOutput, Number, SandboxId, User
from dovecote.mcp.bounded import BoundedText
from dovecote.mcp.progress import beside, tell
from dovecote.sdk import (
    AsyncCommand,
    AsyncSession,
    CommandView,
    DovecoteError,
    Dropped,
    Event,
    Exited,
    NotFound,
    Output,
)

LONGEST = 3600.0  # seconds that a caller waits for a command
END_WITHIN = 2.0  # seconds that a cancelled command has to end by itself
PIECE = 1 << 19  # bytes of input in one call
LEAVE_WITHIN = 10.0  # seconds for all that is done about a cancelled command

Signal = Literal["SIGINT", "SIGTERM", "SIGKILL", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGSTOP", "SIGCONT"]


class CommandTools:
    def __init__(self, client_of: ClientOf) -> None:
        self._client_of = client_of

    async def run_command(
        self,
        call: Call,
        sandbox: SandboxId,
        command: Annotated[
            str | list[str], Field(min_length=1, description="A line for `sh -c`, or the words of a command line.")
        ],
        cwd: Annotated[str | None, Field(description="Directory; the user's home if left out.")] = None,
        env: Annotated[dict[str, str] | None, Field(description="Added to the sandbox's environment.")] = None,
        user: User = None,
        stdin: Annotated[
            str | None, Field(max_length=1 << 20, description="Its whole input. Without it, it has none.")
        ] = None,
        timeout_seconds: Annotated[
            float | None,
            Field(gt=0, le=86400, description="Then it is killed. 60 if left out, in the background without end."),
        ] = None,
        background: Annotated[bool, Field(description="Answer at once with its number; it goes on by itself.")] = False,
        keep_stdin_open: Annotated[bool, Field(description="For write_stdin; only in the background.")] = False,
        max_output: MostOutput = 30_000,
    ) -> Ran:
        """Run a command in a sandbox and wait for its end, or start it in the background (servers, watchers).

        Output over `max_output` characters keeps its beginning and its end; a marker says how much is missing.
        """
        session = await self._client_of(call).sessions.get(sandbox)
        seconds = timeout_seconds if timeout_seconds is not None or background else 60.0
        if seconds is not None and not background:
            seconds = min(seconds, LONGEST)
        starting = asyncio.ensure_future(
            session.start(
                command, env=env, cwd=cwd, user=user, timeout=seconds, stdin=stdin is not None or keep_stdin_open
            )
        )
        try:
            started = await asyncio.shield(starting)
            feeding = [] if stdin is None else [_feed(started, stdin, close=not (background and keep_stdin_open))]
            if background:
                for work in feeding:
                    await work
                return _going_on(started.number)
            texts = {"stdout": BoundedText(max_output), "stderr": BoundedText(max_output)}
            async with beside(tell(call, texts, seconds or LONGEST), *feeding):
                return await _to_its_end(started, texts)
        except asyncio.CancelledError:
            with anyio.move_on_after(LEAVE_WITHIN, shield=True), suppress(DovecoteError):
                await _end(await starting)
            raise

    async def command_output(
        self,
        call: Call,
        sandbox: SandboxId,
        number: Number,
        offset: Annotated[int, Field(ge=0, description="`next_offset` of the answer before.")] = 0,
        wait_seconds: Annotated[
            float, Field(ge=0, le=300, description="Wait so long for its end, or until there is `max_output`.")
        ] = 0,
        max_output: MostOutput = 30_000,
    ) -> Printed:
        """Read what a background command has printed, from an offset on; optionally wait for more or for its end."""
        session = await self._client_of(call).sessions.get(sandbox)
        view = await _find(session, number)
        read = _Reading(offset, max_output)
        if offset < view.output_bytes or not view.is_running or wait_seconds:
            goal = None if wait_seconds or not view.is_running else view.output_bytes
            with anyio.move_on_after(wait_seconds or LEAVE_WITHIN):
                async with aclosing(session.attach(number, offset=offset)) as events:
                    async for event in events:
                        read.take(event)
                        if read.is_full or (goal is not None and read.next_offset >= goal):
                            break
        return read.answer(view if read.end is not None or not wait_seconds else await _find(session, number))

    async def list_commands(self, call: Call, sandbox: SandboxId) -> Commands:
        """List the commands that run in a sandbox, and those that ended lately."""
        session = await self._client_of(call).sessions.get(sandbox)
        return Commands(commands=[Running.model_validate(asdict(view)) for view in await session.commands()])

    async def write_stdin(
        self,
        call: Call,
        sandbox: SandboxId,
        number: Number,
        text: Annotated[str, Field(max_length=1 << 19)],
        close: Annotated[bool, Field(description="End its input after this.")] = False,
    ) -> Entered:
        """Write to the input of a background command that was started with `keep_stdin_open`."""
        session = await self._client_of(call).sessions.get(sandbox)
        await _feed(session.command(number), text, close=close)
        return Entered(number=number, bytes=len(text.encode()), is_closed=close)

    async def stop_command(
        self, call: Call, sandbox: SandboxId, number: Number, signal: Signal = "SIGTERM"
    ) -> Signalled:
        """Send a signal to a background command and its process group."""
        session = await self._client_of(call).sessions.get(sandbox)
        await session.command(number).signal(signal)
        return Signalled(number=number, signal=signal)


class _Reading:
    """Output that is read up to a bound; what did not fit is left for the next time."""

    def __init__(self, offset: int, most: int) -> None:
        self.next_offset = offset
        self.end: Exited | None = None
        self._most = most
        self._texts = {"stdout": "", "stderr": ""}
        self._dropped = 0

    @property
    def is_full(self) -> bool:
        return sum(map(len, self._texts.values())) >= self._most

    def take(self, event: Event) -> None:
        if isinstance(event, Output):
            self._texts[event.stream] += event.data
            self.next_offset = event.next_offset or self.next_offset
        elif isinstance(event, Dropped):
            self._dropped += event.bytes
            self.next_offset += event.bytes
        elif isinstance(event, Exited):
            self.end = event

    def answer(self, view: CommandView) -> Printed:
        last = self.end or view
        return Printed(
            number=view.number,
            is_running=self.end is None and view.is_running,
            exit_code=last.exit_code,
            signal=last.signal,
            timed_out=last.timed_out,
            stdout=self._texts["stdout"],
            stderr=self._texts["stderr"],
            dropped_bytes=self._dropped,
            next_offset=self.next_offset,
            has_more=self.end is None and self.next_offset < view.output_bytes,
        )


async def _to_its_end(command: AsyncCommand, texts: Mapping[str, BoundedText]) -> Ran:
    end = Exited(None, None, False)
    async with aclosing(command.output()) as events:
        async for event in events:
            if isinstance(event, Output):
                texts[event.stream].add(event.data)
            elif isinstance(event, Dropped):
                texts["stdout"].drop(event.bytes)
            elif isinstance(event, Exited):
                end = event
    with suppress(DovecoteError):  # the guest forgets it by itself, later
        await command.release()
    return Ran(
        is_running=False,
        exit_code=end.exit_code,
        signal=end.signal,
        timed_out=end.timed_out,
        stdout=texts["stdout"].text(),
        stderr=texts["stderr"].text(),
        left_out=sum(text.left_out for text in texts.values()),
        number=None,
    )


def _going_on(number: int) -> Ran:
    return Ran(
        is_running=True, exit_code=None, signal=None, timed_out=False, stdout="", stderr="", left_out=0, number=number
    )


async def _feed(command: AsyncCommand, text: str, *, close: bool) -> None:
    """In pieces that one call takes. A command that does not read its input to the end is no error."""
    data = text.encode()
    try:
        for begin in range(0, len(data), PIECE):
            await command.write(data[begin : begin + PIECE])
        if close:
            await command.close_stdin()
    except DovecoteError as error:
        if error.code != "stdin_closed":
            raise


async def _end(command: AsyncCommand) -> None:
    """Nobody waits for it any more: it may end by itself, then it is killed and forgotten."""
    await command.signal("SIGTERM")
    with anyio.move_on_after(END_WITHIN) as patience:
        await command.wait()
    if patience.cancelled_caught:
        await command.signal("SIGKILL")
        await command.wait()
    await command.release()


async def _find(session: AsyncSession, number: int) -> CommandView:
    for view in await session.commands():
        if view.number == number:
            return view
    raise NotFound(
        f"no command {number} in {session.id}", code="no_such_command", hint="list_commands says which there are"
    )
