"""`dovecote sandbox shell`: a real terminal in a session."""

from __future__ import annotations

import asyncio
import signal
from contextlib import aclosing, nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from dovecote.cli import keyboard
from dovecote.cli.execute import SessionId, see_through
from dovecote.cli.following import Patience, exit_code
from dovecote.cli.show import err, problem

if TYPE_CHECKING:
    from dovecote.sdk import AsyncSession, AsyncTerminal


def shell(
    session_id: SessionId,
    line: Annotated[str | None, typer.Argument(metavar="COMMAND", help="The user's login shell if left out.")] = None,
    cwd: Annotated[str | None, typer.Option(help="Directory; the user's home if left out.")] = None,
    user: Annotated[str | None, typer.Option(help="Act as.")] = None,
    attach: Annotated[int | None, typer.Option(metavar="NUMBER", help="A terminal that was left.")] = None,
) -> None:
    """Open a terminal; `Enter ~ .` leaves it and it goes on, closing the shell ends it."""

    async def act() -> int:
        from dovecote.sdk import AsyncDovecote

        async with AsyncDovecote() as client:
            session = await client.sessions.get(session_id)
            if attach is None and not keyboard.is_terminal():
                command = line or 'exec "${SHELL:-/bin/sh}" -l'
                events = session.stream_raw(command, cwd=cwd, user=user, stdin=True)
                return await see_through(session, events, passes_input=True)
            return await _Shell(session, attach).run(line, cwd, user)

    raise typer.Exit(asyncio.run(act()))


class _Shell:
    """One terminal through as many connections as it takes."""

    def __init__(self, session: AsyncSession, number: int | None) -> None:
        self._session = session
        self._number = number
        self._offset = 0
        self._escape = keyboard.Escape()
        self._terminal: AsyncTerminal | None = None
        self._typing: asyncio.Task[None] | None = None

    async def run(self, line: str | None, cwd: str | None, user: str | None) -> int:
        """Answers the exit code, 0 when it was left."""
        loop = asyncio.get_running_loop()
        with keyboard.raw() if keyboard.is_terminal() else nullcontext():
            self._typing = asyncio.ensure_future(self._type())
            loop.add_signal_handler(signal.SIGWINCH, lambda: asyncio.ensure_future(self._resize()))
            try:
                code = await self._connected(line, cwd, user)
            finally:
                loop.remove_signal_handler(signal.SIGWINCH)
                self._typing.cancel()
                await asyncio.gather(self._typing, return_exceptions=True)
        if code is None:
            err.print()
            err.out(f"left; `dovecote sandbox shell {self._session.id} --attach {self._number}` comes back")
        return code or 0

    async def _connected(self, line: str | None, cwd: str | None, user: str | None) -> int | None:
        """Answers None when it was left."""
        from dovecote.sdk import DovecoteError

        patience = Patience()
        while True:
            rows, cols = keyboard.size()
            opened = self._session.terminal(
                line, cwd=cwd, user=user, rows=rows, cols=cols, number=self._number, offset=self._offset
            )
            try:
                async with opened as self._terminal:
                    self._number = opened.number
                    patience.restore()
                    return await self._show(opened)
            except DovecoteError as error:
                if self._number is None:
                    raise
                self._offset = opened.offset
                await patience.spend(error)

    async def _show(self, terminal: AsyncTerminal) -> int | None:
        assert self._typing is not None
        showing = asyncio.ensure_future(self._print(terminal))
        try:
            await asyncio.wait((showing, self._typing), return_when=asyncio.FIRST_COMPLETED)
            if not showing.done() and not self._escape.was_used:
                await showing  # nobody types any more; it may print yet
            if not showing.done():
                return None
            await showing
            return exit_code(terminal.exited)
        finally:
            showing.cancel()
            await asyncio.gather(showing, return_exceptions=True)

    async def _print(self, terminal: AsyncTerminal) -> None:
        dropped = terminal.dropped
        async for piece in terminal.output():
            if terminal.dropped > dropped:
                problem(
                    f"{terminal.dropped - dropped} bytes of output were lost: they were printed while nobody looked"
                )
                dropped = terminal.dropped
            keyboard.show(piece)

    async def _type(self) -> None:
        """Ends when the terminal is left, or with our input."""
        async with aclosing(keyboard.typed()) as pieces:
            async for piece in pieces:
                passed = self._escape.pass_on(piece)
                if passed:
                    await self._send(passed)
                if self._escape.was_used:
                    return

    async def _send(self, data: bytes) -> None:
        from dovecote.sdk import Unreachable

        try:
            if self._terminal is not None:
                await self._terminal.write(data)
        except Unreachable:
            pass  # what is typed while there is no connection is lost, as with any terminal

    async def _resize(self) -> None:
        from dovecote.sdk import Unreachable

        try:
            if self._terminal is not None:
                await self._terminal.resize(*keyboard.size())
        except Unreachable:
            pass
