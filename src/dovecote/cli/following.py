"""A command's output, whatever happens to the connection: the command goes on, so we come back to it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING

from dovecote.cli.show import problem

if TYPE_CHECKING:
    from dovecote.sdk import AsyncSession, DovecoteError, Exited, RawEvent

PATIENCE = 60.0  # seconds in which the server must be back
AGAIN = 0.3  # seconds between tries
NO_CODE = 125  # exit code where the command ended without one of its own, as shells and container tools have it


class Patience:
    """How long a lost connection is tried again. What is not a lost connection is raised at once."""

    def __init__(self) -> None:
        self._since: float | None = None

    def restore(self) -> None:
        self._since = None

    async def spend(self, error: DovecoteError) -> None:
        from dovecote.sdk import Unreachable

        now = time.monotonic()
        self._since = self._since or now
        if not (isinstance(error, Unreachable) or error.status == 503) or now - self._since > PATIENCE:
            raise error
        await asyncio.sleep(AGAIN)


async def follow(
    session: AsyncSession, events: AsyncGenerator[RawEvent, None], number: int = 0
) -> AsyncGenerator[RawEvent, None]:
    """What `events` of a command are, to its end, over as many connections as it takes."""
    from dovecote.sdk import DovecoteError, Dropped, Exited, RawOutput, Started, Unreachable

    patience, offset = Patience(), 0
    while True:
        try:
            async with aclosing(events):
                async for event in events:
                    patience.restore()
                    if isinstance(event, Started):
                        number = event.number
                    elif isinstance(event, RawOutput):
                        offset = event.offset + len(event.data)
                    elif isinstance(event, Dropped):
                        offset += event.bytes
                    yield event
                    if isinstance(event, Exited):
                        return
            raise Unreachable("its output ended before it did", code="connection_lost")
        except DovecoteError as error:
            if not number:
                raise
            await patience.spend(error)
            events = session.command(number).raw_output(offset=offset)


def exit_code(end: Exited | None) -> int:
    """As a shell has it: 128 and the number of a signal. Says so when its time was over."""
    if end is None:
        return NO_CODE
    if end.timed_out:
        problem("it was killed: its time was over", "command_timeout")
    if end.exit_code is not None:
        return end.exit_code
    return 128 + end.signal if end.signal else NO_CODE
