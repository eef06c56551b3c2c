"""Why a session is awake or rests, and what happens to it next: from what is recorded and what is seen. Pure."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from math import inf

from dovecote.control.fleet import Observed
from dovecote.control.sessions.idle import Quiet, Why, awake_by, to_come
from dovecote.control.sessions.live import Live
from dovecote.control.sessions.rules import ends_at, idle_after, pauses_at
from dovecote.control.sessions.seats import Seat
from dovecote.model.past import Past
from dovecote.model.records import Revision, Session
from dovecote.model.sizes import TIERS
from dovecote.model.states import SessionState


@dataclass(frozen=True)
class Running:
    """A command that keeps its session awake; `words` are what it was started with, as far as it shows them."""

    number: int
    words: str
    started_at: datetime


@dataclass(frozen=True)
class Reason:
    """`what` is a `Why`, or `used` (a moment ago) or `outbound`. `until` where it is known."""

    what: str
    text: str
    count: int = 1
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True)
class ToCome:
    """What happens then if nobody does anything: freeze, park, pause or end."""

    move: str
    at: datetime


@dataclass(frozen=True)
class Activity:
    """`why` is for a person: why it is in its state. `reasons` are what keeps it awake; a session that rests has none.

    `is_promised` says that its window is; `window` is how long it keeps its instance without use.
    """

    state: SessionState
    why: str
    reasons: Sequence[Reason]
    next: Sequence[ToCome]
    unused_for: timedelta | None
    window: timedelta
    is_promised: bool
    awake_until: datetime | None
    past: Past


def rest_of(session: Session, quiet_for: float, now: datetime) -> Quiet:
    """What its record says of its rest, when nothing was seen of it for so long. The end of a lease counts as use."""
    leased_for = 0.0
    if session.awake_until is not None and not session.is_paused:
        left = (session.awake_until - now).total_seconds()
        leased_for, quiet_for = max(0.0, left), min(quiet_for, max(0.0, -left))
    ends, pauses = ends_at(session), pauses_at(session)
    return Quiet(
        quiet_for=quiet_for,
        leased_for=leased_for,
        expires_in=(ends - now).total_seconds() if ends else None,
        pauses_in=(pauses - now).total_seconds() if pauses else None,
    )


def quiet_of(live: Live, seen: Observed, now: datetime) -> Quiet:
    """What is known of a live session's rest."""
    return replace(
        rest_of(live.session, min(seen.quiet_for, time.monotonic() - live.touched), now),
        busy=live.busy,
        commands=seen.commands,
        requests=seen.requests,
        sent_ago=seen.sent_ago,
    )


def of_live(live: Live, seen: Observed, commands: Sequence[Running], *, quiet_after: float, now: datetime) -> Activity:
    session, quiet = live.session, quiet_of(live, seen, now)
    window = idle_after(session, live.revision)
    to_be = to_come(session.state, quiet, quiet_after=quiet_after, idle_after=window.total_seconds())
    reasons = _reasons(live, seen, quiet, commands, quiet_after, now)
    return _activity(
        session,
        why=_why_live(session, reasons),
        reasons=reasons,
        next=[ToCome(move.value, now + timedelta(seconds=seconds)) for move, seconds in to_be],
        unused_for=timedelta(seconds=quiet.unused_for),
        window=window,
    )


def of_seated(seat: Seat, now: datetime) -> Activity:
    """Of one in an instance that others are in too, as far as the gateway asked: that one freezes by itself."""
    session = replace(seat.session, past=seat.past)
    quiet = rest_of(session, time.monotonic() - seat.touched, now)
    window = idle_after(session, seat.instance.revision)
    to_be = to_come(session.state, quiet, quiet_after=inf, idle_after=window.total_seconds())
    reasons = [Reason(why, "a lease", until=session.awake_until) for why in awake_by(session.state, quiet)]
    return _activity(
        session,
        why=_why_live(session, reasons),
        reasons=reasons,
        next=[ToCome(move.value, now + timedelta(seconds=seconds)) for move, seconds in to_be],
        unused_for=timedelta(seconds=quiet.unused_for),
        window=window,
    )


def of_resting(session: Session, revision: Revision, now: datetime) -> Activity:
    """Of one without an instance, as far as its record says."""
    to_be = [("end", ends_at(session)), ("pause", pauses_at(session))]
    is_over = session.state is SessionState.ENDED
    return _activity(
        session,
        why=f"{session.state}: {session.reason}" if session.reason else str(session.state),
        reasons=[],
        next=[] if is_over else sorted((ToCome(move, at) for move, at in to_be if at), key=lambda each: each.at),
        unused_for=None if is_over else max(timedelta(0), now - session.last_active_at),
        window=idle_after(session, revision),
    )


def _activity(
    session: Session,
    *,
    why: str,
    reasons: Sequence[Reason],
    next: Sequence[ToCome],
    unused_for: timedelta | None,
    window: timedelta,
) -> Activity:
    return Activity(
        state=session.state,
        why=why,
        reasons=reasons,
        next=next,
        unused_for=unused_for,
        window=window,
        is_promised=TIERS[session.tier].is_promised,
        awake_until=session.awake_until,
        past=session.past,
    )


def _why_live(session: Session, reasons: Sequence[Reason]) -> str:
    if session.state is SessionState.READY and reasons:
        return "awake: " + ", ".join(reason.text for reason in reasons)
    if session.state is SessionState.READY:
        return "awake, and quiet"
    return f"{session.state}: {session.reason}" if session.reason else str(session.state)


def _reasons(
    live: Live, seen: Observed, quiet: Quiet, commands: Sequence[Running], quiet_after: float, now: datetime
) -> list[Reason]:
    session, found = live.session, []
    for why in awake_by(session.state, quiet):
        if why is Why.REQUESTS:
            since = now - timedelta(seconds=seen.requests_for)
            text = f"{_counted(seen.requests, 'request')} in flight or streams open"
            found.append(Reason(why, text, seen.requests, since))
        elif why is Why.CALLS:
            since = now - timedelta(seconds=max(0.0, time.monotonic() - live.busy_since))
            found.append(Reason(why, f"{_counted(live.busy, 'call')} of the API inside", live.busy, since))
        elif why is Why.COMMANDS:
            named = [Reason(why, f"`{each.words}` runs", 1, each.started_at) for each in commands]
            found += named or [Reason(why, f"{_counted(seen.commands, 'command')} running", seen.commands)]
        else:
            found.append(Reason(why, "a lease", until=session.awake_until))
    if session.state is not SessionState.READY:
        return found
    if quiet.sent_ago is not None and quiet.sent_ago < quiet_after:
        at = now - timedelta(seconds=quiet.sent_ago)
        until = at + timedelta(seconds=quiet_after)
        found.append(Reason("outbound", "traffic with the outside", since=at, until=until))
    if not found and quiet.unused_for < quiet_after:
        at = now - timedelta(seconds=quiet.unused_for)
        found.append(Reason("used", "used a moment ago", since=at, until=at + timedelta(seconds=quiet_after)))
    return found


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
