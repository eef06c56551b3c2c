"""What making a template tells of itself while it lasts. Nobody has to listen; nothing waits for whoever does."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import TypeVar

from dovecote.errors import Failed
from dovecote.model.records import Revision, Template
from dovecote.model.trees import Template as Own

MOST = 1000  # events that wait for a slow listener; older ones go
MOST_TEXT = 1 << 20  # characters of output that wait
SILENCE = 15.0  # seconds after which a listener hears the last step again, so that its connection is not idle
APART = 0.1  # seconds between two figures of one step


@dataclass(frozen=True)
class Step:
    """What is done, how much of it, of how much; 0 is not known."""

    what: str
    done: int = 0
    total: int = 0


@dataclass(frozen=True)
class Printed:
    """Output of a command of a build."""

    text: str


@dataclass(frozen=True)
class Done:
    template: Template


@dataclass(frozen=True)
class Prepared:
    """One of the installation's own is there."""

    template: Own


@dataclass(frozen=True)
class Deployed:
    """A function has a revision with the files that were sent."""

    revision: Revision


OnTheWay = Step | Printed
Event = OnTheWay | Done | Prepared

Made = TypeVar("Made")
Last = TypeVar("Last")


class Telling:
    """Made in the loop; `step` and `say` may be called from any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[OnTheWay] = deque(maxlen=MOST)
        self._text = 0  # characters that came since nothing waited
        self._is_news = asyncio.Event()
        self._last = Step("")
        self._told_at = 0.0

    def step(self, what: str, done: int = 0, total: int = 0) -> None:
        now = time.monotonic()
        is_figure = what == self._last.what and 0 < done != total
        if is_figure and now < self._told_at + APART:
            return
        self._last, self._told_at = Step(what, done, total), now
        self._loop.call_soon_threadsafe(self._put, self._last)

    def say(self, text: str) -> None:
        self._loop.call_soon_threadsafe(self._put, Printed(text))

    def _put(self, event: OnTheWay) -> None:
        if isinstance(event, Printed):
            self._text += len(event.text)
            if self._text > MOST_TEXT:
                # Nobody reads as fast as it prints: what it printed goes, what it does stays.
                kept = [each for each in self._waiting if not isinstance(each, Printed)]
                self._waiting = deque([*kept, Printed("[output was dropped]\n")], maxlen=MOST)
                self._text = len(event.text)
        self._waiting.append(event)
        self._is_news.set()

    async def events(
        self, making: asyncio.Task[Made], done: Callable[[Made], Last]
    ) -> AsyncGenerator[OnTheWay | Last, None]:
        """Ends with `done`, or raises what making raised. Leaving early changes nothing for it."""
        making.add_done_callback(lambda _: self._is_news.set())
        while not making.done() or self._waiting:
            if not self._waiting:
                try:
                    async with asyncio.timeout(SILENCE):
                        await self._is_news.wait()
                except TimeoutError:
                    self._waiting.append(self._last)
            self._is_news.clear()
            while self._waiting:
                yield self._waiting.popleft()
            self._text = 0
        if making.cancelled():
            raise Failed("it was ended before it was made", code="interrupted", hint="make it again")
        yield done(making.result())
