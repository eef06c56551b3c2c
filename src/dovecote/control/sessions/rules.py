"""What may be said of a session, and when its time is over. Pure but for the clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from dovecote.errors import Gone, Invalid, NotFound
from dovecote.model.records import Revision, Session
from dovecote.model.sizes import TIERS
from dovecote.model.states import LIVE_SESSION, SessionState
from dovecote.model.trees import Lag, LagState

LONGEST_TIME = timedelta(days=365)


def alive(session: Session) -> Session:
    """Itself; raises Gone (session_expired) when it has ended or its time is over."""
    if session.state is SessionState.ENDED or is_over(session):
        message = f"session {session.key} has ended ({session.reason or 'its time to live is over'})"
        raise Gone(message, code="session_expired", hint="create a new one")
    return session


def is_over(session: Session) -> bool:
    return session.expires_at is not None and session.expires_at <= datetime.now(UTC)


def idle_after(session: Session, revision: Revision) -> timedelta:
    return session.idle_after or TIERS[session.tier].idle_after


def recovery_point(session: Session) -> float:
    """Seconds of work that the loss of a host may cost it."""
    return TIERS[session.tier].recovery_point.total_seconds()


def resting_lag(session: Session, now: datetime) -> Lag:
    """Of a session that has no instance."""
    saved_ago = (now - session.saved_at).total_seconds() if session.saved_at else None
    if session.state in (SessionState.LOST, *LIVE_SESSION):
        return Lag(LagState.ON_HOST, saved_ago=saved_ago, pending=None)
    if session.state is SessionState.DAMAGED:
        return Lag(LagState.DAMAGED, saved_ago=saved_ago, pending=None, error_code="corrupt")
    return Lag(LagState.SAVED, saved_ago=saved_ago)


def parse_tier(name: str) -> str:
    if name not in TIERS:
        raise NotFound(f"no tier {name!r}", code="no_such_tier", hint="there are " + ", ".join(TIERS))
    return name


def parse_state(name: str) -> SessionState:
    try:
        return SessionState(name)
    except ValueError:
        raise Invalid(f"no such state: {name[:40]!r}", hint="one of " + ", ".join(SessionState)) from None


def parse_time(value: timedelta | None, name: str) -> timedelta | None:
    if value is not None and not timedelta(0) < value <= LONGEST_TIME:
        raise Invalid(f"{name} must be more than 0 and at most a year")
    return value
