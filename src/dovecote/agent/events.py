"""What happens in a turn, as it happens, for whoever shows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One line of a plan. `state` is todo, doing, done or failed."""

    title: str
    state: str


@dataclass(frozen=True)
class PlanUpdated:
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class ToolCalled:
    name: str
    summary: str


@dataclass(frozen=True)
class ToolAnswered:
    name: str
    summary: str
    is_ok: bool
    seconds: float


@dataclass(frozen=True)
class Said:
    text: str


AgentEvent = PlanUpdated | ToolCalled | ToolAnswered | Said
Show = Callable[[AgentEvent], None]
