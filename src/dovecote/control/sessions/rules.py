"""What may be said of a session, and when its time is over. Pure but for the clock."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from dovecote.errors import Conflict, Gone, Invalid, NotFound, Unsupported
from dovecote.model.records import Revision, Session
from dovecote.model.sizes import TIERS
from dovecote.model.states import LIVE_SESSION, AtTimeout, SessionState
from dovecote.model.trees import Lag, LagState

LONGEST_TIME = timedelta(days=365)
MOST_METADATA = 64  # names
METADATA_CHARACTERS = 16_384  # of all names and texts together
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_METADATA_NAME = re.compile(r'[^"\\\x00-\x1f]{1,256}')


def alive(session: Session) -> Session:
    """Itself; raises Gone (session_expired) when it has ended or its time is over."""
    if session.state is SessionState.ENDED or is_over(session):
        message = f"session {session.key} has ended ({session.reason or 'its time to live is over'})"
        raise Gone(message, code="session_expired", hint="create a new one")
    return session


def wakeable(session: Session, is_asked: bool) -> Session:
    """Itself, when it is alive and may wake: a pause may last until it is asked. Raises Gone, Conflict (paused)."""
    if session.is_paused and not (session.resumes_on_use or is_asked):
        raise Conflict("the session is paused", code="paused", hint="resume it first")
    return alive(session)


def shared_instance() -> Unsupported:
    return Unsupported(
        "the session has a seat in an instance that others are in too: it has nothing of its own in there",
        code="shared_instance",
        hint="files, commands, variables, mounts, a start and a network take a function with one session an instance",
    )


def is_over(session: Session) -> bool:
    end = ends_at(session)
    return end is not None and end <= datetime.now(UTC)


def ends_at(session: Session) -> datetime | None:
    """When it ends by the clock."""
    ends = session.at_timeout is AtTimeout.END
    return min(filter(None, (session.expires_at, session.timeout_at if ends else None)), default=None)


def pauses_at(session: Session) -> datetime | None:
    """When it is paused by the clock."""
    return None if session.at_timeout is AtTimeout.END else session.timeout_at


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


def parse_metadata(texts: Mapping[str, str]) -> dict[str, str]:
    """Names have 1 to 256 characters, without quotes, backslashes and controls: one can look for each of them."""
    for name, text in texts.items():
        if not _METADATA_NAME.fullmatch(name) or _UNSTORABLE.search(name + text):
            raise Invalid(
                f"not metadata: {name[:60]!r}", hint="names have no quotes, backslashes and control characters"
            )
    size = sum(len(name) + len(text) for name, text in texts.items())
    if len(texts) > MOST_METADATA or size > METADATA_CHARACTERS:
        raise Invalid(
            f"metadata has at most {MOST_METADATA} names and {METADATA_CHARACTERS} characters", code="too_large"
        )
    return dict(texts)


def parse_time(value: timedelta | None, name: str) -> timedelta | None:
    if value is not None and not timedelta(0) < value <= LONGEST_TIME:
        raise Invalid(f"{name} must be more than 0 and at most a year")
    return value


def from_now(timeout: timedelta | None) -> datetime | None:
    timeout = parse_time(timeout, "timeout")
    return datetime.now(UTC) + timeout if timeout else None
