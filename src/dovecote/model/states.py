"""States and legal moves of a session and of an instance, as tables."""

from __future__ import annotations

from enum import StrEnum

from dovecote.errors import Conflict


class SessionState(StrEnum):
    """What a session is now. What it should be is `Session.desired`, a separate field."""

    NEW = "new"  # recorded, never had an instance
    STARTING = "starting"  # an instance is being claimed or restored for it
    READY = "ready"  # its instance answers
    FROZEN = "frozen"  # its instance holds memory but gets no CPU
    PARKING = "parking"  # final checkpoint and stop are under way
    PARKED = "parked"  # only files, in the store
    LOST = "lost"  # its instance died; files are on the host or in the store
    DAMAGED = "damaged"  # restore failed verification; the last good generation is named
    ENDED = "ended"


SESSION_MOVES: dict[SessionState, frozenset[SessionState]] = {
    SessionState.NEW: frozenset({SessionState.STARTING, SessionState.ENDED}),
    SessionState.STARTING: frozenset(
        {
            SessionState.READY,
            SessionState.NEW,
            SessionState.PARKED,
            SessionState.LOST,
            SessionState.DAMAGED,
            SessionState.ENDED,
        }
    ),
    SessionState.READY: frozenset({SessionState.FROZEN, SessionState.PARKING, SessionState.LOST, SessionState.ENDED}),
    SessionState.FROZEN: frozenset({SessionState.READY, SessionState.PARKING, SessionState.LOST, SessionState.ENDED}),
    SessionState.PARKING: frozenset(
        {SessionState.PARKED, SessionState.READY, SessionState.FROZEN, SessionState.LOST, SessionState.ENDED}
    ),
    SessionState.PARKED: frozenset({SessionState.STARTING, SessionState.DAMAGED, SessionState.ENDED}),
    SessionState.LOST: frozenset(
        {SessionState.STARTING, SessionState.PARKED, SessionState.DAMAGED, SessionState.ENDED}
    ),
    SessionState.DAMAGED: frozenset({SessionState.STARTING, SessionState.PARKED, SessionState.ENDED}),
    SessionState.ENDED: frozenset(),
}

LIVE_SESSION = frozenset({SessionState.STARTING, SessionState.READY, SessionState.FROZEN, SessionState.PARKING})


class Desired(StrEnum):
    """What should become of a session."""

    LIVE = "live"
    PARKED = "parked"
    ENDED = "ended"


class AtTimeout(StrEnum):
    """What becomes of a session when its timeout has passed."""

    END = "end"
    PAUSE = "pause"  # it stays, paused, and has no timeout until it is given one
    PARK = "park"  # the same, with its files only


class Park(StrEnum):
    """What is kept of a session when it is parked because nobody uses it."""

    FILES = "files"
    MEMORY = "memory"  # processes too, where its isolation level can


class SnapshotCause(StrEnum):
    """Why a snapshot was taken."""

    ASKED = "asked"
    TURN = "turn"  # the end of a chat's turn
    BEFORE_REWIND = "before_rewind"  # so that a rewind can be undone
    PUBLISHED = "published"


class InstanceState(StrEnum):
    """What an instance on a host is."""

    PREPARED = "prepared"  # in the warm pool: guest runs in the stub root
    CLAIMED = "claimed"  # limits set, root being swapped in
    READY = "ready"
    FREEZING = "freezing"  # new connections are refused, flows are being checked
    FROZEN = "frozen"
    SUSPENDED = "suspended"  # its door is shut and nothing inside runs: its memory is being saved, or was
    STOPPING = "stopping"
    GONE = "gone"


INSTANCE_MOVES: dict[InstanceState, frozenset[InstanceState]] = {
    InstanceState.PREPARED: frozenset({InstanceState.CLAIMED, InstanceState.STOPPING, InstanceState.GONE}),
    InstanceState.CLAIMED: frozenset({InstanceState.READY, InstanceState.STOPPING, InstanceState.GONE}),
    InstanceState.READY: frozenset(
        {InstanceState.FREEZING, InstanceState.SUSPENDED, InstanceState.STOPPING, InstanceState.GONE}
    ),
    InstanceState.FREEZING: frozenset(
        {InstanceState.FROZEN, InstanceState.READY, InstanceState.STOPPING, InstanceState.GONE}
    ),
    InstanceState.FROZEN: frozenset(
        {InstanceState.READY, InstanceState.SUSPENDED, InstanceState.STOPPING, InstanceState.GONE}
    ),
    InstanceState.SUSPENDED: frozenset({InstanceState.READY, InstanceState.STOPPING, InstanceState.GONE}),
    InstanceState.STOPPING: frozenset({InstanceState.GONE}),
    InstanceState.GONE: frozenset(),
}


def check_session_move(old: SessionState, new: SessionState) -> None:
    """Raises Conflict when a session cannot go from `old` to `new`. Staying is legal."""
    if new is not old and new not in SESSION_MOVES[old]:
        raise Conflict(f"a session that is {old} cannot become {new}", code="illegal_move")


def check_instance_move(old: InstanceState, new: InstanceState) -> None:
    """Raises Conflict when an instance cannot go from `old` to `new`. Staying is legal."""
    if new is not old and new not in INSTANCE_MOVES[old]:
        raise Conflict(f"an instance that is {old} cannot become {new}", code="illegal_move")


class TemplateState(StrEnum):
    """What became of making a template. Whether it can be used is another matter: see `Template.digest`."""

    BUILDING = "building"
    READY = "ready"
    FAILED = "failed"
