"""What is remembered of a session's life: its moves and its hooks, the last few of each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from functools import reduce

MOST_MOVES = 10
LONGEST_REASON = 200  # characters


@dataclass(frozen=True)
class Passage:
    """It became `state` then, and why."""

    at: datetime
    state: str
    reason: str = ""


@dataclass(frozen=True)
class HookRun:
    """How a hook went, in which instance. `reason` says what failed; empty where `is_ok`."""

    hook: str  # initialize, pre_freeze or pre_stop
    at: datetime
    is_ok: bool
    seconds: float
    reason: str = ""
    instance_id: str = ""


@dataclass(frozen=True)
class Breach:
    """Its window was promised, and it lost its instance all the same."""

    at: datetime
    reason: str


@dataclass(frozen=True)
class Past:
    """Oldest first. Of the hooks, the last run of each."""

    moves: tuple[Passage, ...] = ()
    hooks: tuple[HookRun, ...] = ()
    breaches: int = 0
    last_breach: Breach | None = None

    def moved(self, at: datetime, state: str, reason: str) -> Past:
        passage = Passage(at, state, reason[:LONGEST_REASON])
        return replace(self, moves=(*self.moves, passage)[-MOST_MOVES:])

    def ran(self, run: HookRun) -> Past:
        others = tuple(each for each in self.hooks if each.hook != run.hook)
        return replace(self, hooks=(*others, replace(run, reason=run.reason[:LONGEST_REASON])))

    def went_through(self, other: Past) -> Past:
        """With the last runs of hooks that it shares with others."""
        return reduce(Past.ran, other.hooks, self)

    def breached(self, at: datetime, reason: str) -> Past:
        return replace(self, breaches=self.breaches + 1, last_breach=Breach(at, reason[:LONGEST_REASON]))

    def run_of(self, hook: str, instance_id: str) -> HookRun | None:
        """The last run of a hook, if it was in that instance."""
        return next((each for each in self.hooks if (each.hook, each.instance_id) == (hook, instance_id)), None)
