"""Decides what keeps a session awake, and what becomes of one that nothing does. No clock, no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from dovecote.model.states import SessionState


class Move(StrEnum):
    STAY = "stay"
    FREEZE = "freeze"
    PARK = "park"
    PAUSE = "pause"
    END = "end"


class Why(StrEnum):
    """What keeps a session awake. None of these ends by waiting alone, but for leases."""

    REQUESTS = "requests"  # on their way, and streams that are open
    CALLS = "calls"  # of the API, inside right now
    COMMANDS = "commands"  # running, terminals too
    LEASE = "lease"


@dataclass(frozen=True)
class Quiet:
    """What is known of a live session's rest, in seconds. `busy` counts calls of the API that are inside right now.

    `sent_ago` is since it exchanged something with the outside, where that counts as use.
    """

    quiet_for: float
    busy: int = 0
    commands: int = 0
    requests: int = 0
    sent_ago: float | None = None
    leased_for: float = 0.0
    expires_in: float | None = None
    pauses_in: float | None = None

    @property
    def unused_for(self) -> float:
        return self.quiet_for if self.sent_ago is None else min(self.quiet_for, self.sent_ago)


def awake_by(state: SessionState, quiet: Quiet) -> tuple[Why, ...]:
    """What does not let it rest. What stands still in a frozen instance works at nothing."""
    is_running = state is SessionState.READY
    reasons = (
        (Why.CALLS, quiet.busy > 0),
        (Why.REQUESTS, is_running and quiet.requests > 0),
        (Why.COMMANDS, is_running and quiet.commands > 0),
        (Why.LEASE, quiet.leased_for > 0),
    )
    return tuple(why for why, holds in reasons if holds)


def next_move(state: SessionState, quiet: Quiet, *, quiet_after: float, idle_after: float) -> Move:
    """Its time ends or pauses it whatever it does; work keeps it awake; quiet freezes, idle parks."""
    if quiet.expires_in is not None and quiet.expires_in <= 0:
        return Move.END
    if quiet.pauses_in is not None and quiet.pauses_in <= 0:
        return Move.PAUSE
    if awake_by(state, quiet):
        return Move.STAY
    if quiet.unused_for >= idle_after:
        return Move.PARK
    if state is SessionState.READY and quiet.unused_for >= quiet_after:
        return Move.FREEZE
    return Move.STAY


def to_come(
    state: SessionState, quiet: Quiet, *, quiet_after: float, idle_after: float
) -> Sequence[tuple[Move, float]]:
    """What happens next if nobody does anything, in so many seconds, soonest first."""
    moves = [(Move.END, quiet.expires_in), (Move.PAUSE, quiet.pauses_in)]
    reasons = awake_by(state, quiet)
    if not reasons or reasons == (Why.LEASE,):
        # A lease counts as use to its end.
        begins, unused_for = (quiet.leased_for, 0.0) if reasons else (0.0, quiet.unused_for)
        if state is SessionState.READY and quiet_after < idle_after:
            moves.append((Move.FREEZE, begins + max(0.0, quiet_after - unused_for)))
        moves.append((Move.PARK, begins + max(0.0, idle_after - unused_for)))
    known = [(move, max(0.0, seconds)) for move, seconds in moves if seconds is not None]
    last = min((seconds for move, seconds in known if move is Move.END), default=None)
    return sorted((each for each in known if last is None or each[1] <= last), key=lambda each: each[1])
