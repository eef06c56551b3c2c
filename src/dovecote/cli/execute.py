"""`dovecote sandbox exec`: a command inside as if it were here."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Annotated

import typer

from dovecote.cli import keyboard
from dovecote.cli.following import exit_code, follow
from dovecote.cli.show import problem

if TYPE_CHECKING:
    from dovecote.sdk import AsyncCommand, AsyncSession, Exited, RawEvent

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
READ_WITHIN = 24 * 3600.0  # seconds in which a command must have read a piece of its input

SessionId = Annotated[str, typer.Argument(metavar="SESSION", help="ses_...")]


def pairs(texts: list[str] | None, what: str) -> dict[str, str]:
    """`["a=b"]` -> `{"a": "b"}`."""
    found = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"not {what}: {text!r}")
        found[name] = value
    return found


def execute(
    session_id: SessionId,
    words: Annotated[list[str], typer.Argument(metavar="COMMAND...", help="One word is a line for the shell.")],
    cwd: Annotated[str | None, typer.Option(help="Directory; the user's home if left out.")] = None,
    user: Annotated[str | None, typer.Option(help="Act as.")] = None,
    env: Annotated[list[str] | None, typer.Option("--env", "-e", help="NAME=VALUE.")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds until it is killed.")] = None,
    stdin: Annotated[
        bool | None, typer.Option(help="Pass our input on; without this, unless it is a terminal.", show_default=False)
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Print its number and let it go on.")] = False,
) -> None:
    """Run a command; its output, input, signals and exit code are ours."""
    words = words[1:] if words[0] == "--" else words
    if not words:
        raise typer.BadParameter("no command")
    variables = pairs(env, "NAME=VALUE")
    passes_input = not detach and (not keyboard.is_terminal() if stdin is None else stdin)

    async def act() -> int:
        from dovecote.sdk import AsyncDovecote

        command = words[0] if len(words) == 1 else words
        async with AsyncDovecote() as client:
            session = await client.sessions.get(session_id)
            if detach:
                started = await session.start(command, env=variables, cwd=cwd, user=user, timeout=timeout)
                print(started.number)
                return 0
            events = session.stream_raw(command, env=variables, cwd=cwd, user=user, timeout=timeout, stdin=passes_input)
            return await see_through(session, events, passes_input=passes_input)

    raise typer.Exit(asyncio.run(act()))


async def see_through(session: AsyncSession, events: AsyncGenerator[RawEvent, None], *, passes_input: bool) -> int:
    """Shows what a command prints until it ends; answers its exit code."""
    from dovecote.sdk import Dropped, Exited, NotFound, RawOutput, Started

    end: Exited | None = None
    async with AsyncExitStack() as ours, aclosing(follow(session, events)) as happening:
        async for event in happening:
            if isinstance(event, Started):
                command = session.command(event.number)
                ours.enter_context(_passing_signals(command))
                if passes_input:
                    await ours.enter_async_context(_feeding(command))
            elif isinstance(event, RawOutput):
                keyboard.show(event.data, event.stream)
            elif isinstance(event, Dropped):
                problem(f"{event.bytes} bytes of output were lost: it printed faster than they were read")
            elif isinstance(event, Exited):
                end = event
                with suppress(NotFound):  # it was forgotten already
                    await command.release()
    return exit_code(end)


@asynccontextmanager
async def _feeding(command: AsyncCommand) -> AsyncIterator[None]:
    task = asyncio.ensure_future(_feed(command))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _feed(command: AsyncCommand) -> None:
    from dovecote.sdk import Conflict, DovecoteError, NotFound

    try:
        async with aclosing(keyboard.typed()) as pieces:
            async for piece in pieces:
                await command.write(piece, timeout=READ_WITHIN)
        await command.close_stdin()
    except (Conflict, NotFound):
        pass  # it closed its input, or has ended
    except DovecoteError as error:
        problem(f"the rest of our input did not get there: {error.message}", error.code)


@contextmanager
def _passing_signals(command: AsyncCommand) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    sending: set[asyncio.Task[None]] = set()

    def pass_on(number: signal.Signals) -> None:
        task = asyncio.ensure_future(command.signal(number.name))
        sending.add(task)
        task.add_done_callback(_sent)

    def _sent(task: asyncio.Task[None]) -> None:
        sending.discard(task)
        if not task.cancelled() and task.exception() is not None:
            problem(f"the signal did not get there: {task.exception()}")

    for each in PASSED_ON:
        loop.add_signal_handler(each, pass_on, each)
    try:
        yield
    finally:
        for each in PASSED_ON:
            loop.remove_signal_handler(each)
        for task in sending:
            task.cancel()
