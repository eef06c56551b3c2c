"""Decides what becomes of a session that nobody uses. No clock, no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from dovecote.model.states import SessionState


class Move(StrEnum):
    STAY = "stay"
    FREEZE = "freeze"
    PARK = "park"
    PAUSE = "pause"
    END = "end"


@dataclass(frozen=True)
class Quiet:
    """What is known of a live session's rest, in seconds. `busy` counts calls of the API that are inside right now."""

    quiet_for: float
    busy: int
    commands: int
    expires_in: float | None
    pauses_in: float | None = None


def next_move(state: SessionState, quiet: Quiet, *, quiet_after: float, idle_after: float) -> Move:
    """Its time ends or pauses it whatever it does; work keeps it awake; quiet freezes, idle parks."""
    if quiet.expires_in is not None and quiet.expires_in <= 0:
        return Move.END
    if quiet.pauses_in is not None and quiet.pauses_in <= 0:
        return Move.PAUSE
    if quiet.busy or (quiet.commands and state is not SessionState.FROZEN):
        return Move.STAY
    if quiet.quiet_for >= idle_after:
        return Move.PARK
    if state is SessionState.READY and quiet.quiet_for >= quiet_after:
        return Move.FREEZE
    return Move.STAY
