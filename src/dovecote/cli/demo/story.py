"""Tells the demo: chapters, steps with their times, checks, waits with a bound, and the table at the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from rich.table import Table

from dovecote.agent.events import AgentEvent, PlanUpdated, Said, ToolAnswered, ToolCalled
from dovecote.cli.show import out, say

LOOK_EVERY = 0.1  # seconds
MARKS = {"todo": "[ ]", "doing": "[>]", "done": "[x]", "failed": "[!]"}

Value = TypeVar("Value")


class CheckFailed(Exception):
    """Something that the demo promises did not hold."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


@dataclass
class Step:
    seconds: float = 0.0
    outcome: str = ""


@dataclass(frozen=True)
class Row:
    name: str
    seconds: float
    note: str


@dataclass
class Story:
    rows: list[Row] = field(default_factory=list)
    chapters: int = 0

    def chapter(self, title: str) -> None:
        self.chapters += 1
        say("")
        say(f"{self.chapters}. {title}", style="bold")

    def tell(self, text: str) -> None:
        say(f"   {text}")

    @contextmanager
    def step(self, text: str) -> Iterator[Step]:
        """Shows a step when it is done, with its time; when it fails, which one it was."""
        step = Step()
        started = time.perf_counter()
        try:
            yield step
        except BaseException:
            say(f"   ✗ {text}  ({time.perf_counter() - started:.2f} s)", style="red")
            raise
        step.seconds = time.perf_counter() - started
        self.tell(f"✓ {text}{': ' + step.outcome if step.outcome else ''}  ({_time(step.seconds)})")

    def keep(self, name: str, seconds: float, note: str = "") -> None:
        """A row of the table at the end."""
        self.rows.append(Row(name, seconds, note))

    def show(self, event: AgentEvent) -> None:
        """What the agent does, as it does it."""
        if isinstance(event, PlanUpdated):
            self.tell("plan   " + "  ".join(f"{MARKS.get(s.state, '[?]')} {s.title}" for s in event.steps))
        elif isinstance(event, ToolCalled):
            self.tell(f"tool   {event.name} {event.summary}")
        elif isinstance(event, ToolAnswered):
            self.tell(f"       {'✓' if event.is_ok else '✗'} {event.name}: {event.summary}  ({_time(event.seconds)})")
        elif isinstance(event, Said):
            self.tell(f"agent  {event.text}")

    def finish(self) -> None:
        say("")
        if out.is_terminal:
            shown = Table("what", "time", "beside", box=None, header_style="bold", pad_edge=False)
            for row in self.rows:
                shown.add_row(row.name, _time(row.seconds), row.note)
            out.print(shown)
        else:
            for row in self.rows:
                say(f"{row.name:44} {_time(row.seconds):>10}  {row.note}")


def check(holds: bool, message: str, hint: str = "") -> None:
    if not holds:
        raise CheckFailed(message, hint)


async def until(
    look: Callable[[], Awaitable[Value]], holds: Callable[[Value], bool], *, within: float, what: str
) -> Value:
    """Looks until it holds. Raises CheckFailed with what was seen last."""
    deadline = time.monotonic() + within
    while True:
        seen = await look()
        if holds(seen):
            return seen
        if time.monotonic() > deadline:
            raise CheckFailed(f"{what} did not happen within {within:.0f} s; last seen: {seen!r}")
        await asyncio.sleep(LOOK_EVERY)


def _time(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"
