"""What becomes of an asynchronous call after each thing that can happen to it. No clock, no I/O."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from dovecote.errors import DeadlineExceeded, DovecoteError, Failed, NoCapacity
from dovecote.model.invocations import Delivery, Invocation, InvocationState

LEASE = timedelta(seconds=30)  # of a call that runs; renewed while it does
DELIVERY_LEASE = timedelta(seconds=60)  # longer than a delivery may take
MOST_DELIVERIES = 8
FIRST_WAIT, LONGEST_WAIT = 1.0, 300.0  # seconds, before the second attempt and before any
LONGEST_RETRY_AFTER = 3600.0  # seconds that a function may ask for
RETRIED_STATUS = frozenset({429, *range(500, 600)})

# What did not work this once. Any other error of ours says that the same call will not work later either.
PASSING = (Failed, NoCapacity, DeadlineExceeded)
NEVER_PASSING = frozenset({"port_closed"})  # the function has no server at all


@dataclass(frozen=True)
class Reply:
    """What a function answered. `body` is base64."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: str = ""
    is_truncated: bool = False
    retry_after: float | None = None  # seconds


@dataclass(frozen=True)
class Broken:
    """No answer. `was_sent`: the function may have had the request."""

    error: DovecoteError
    was_sent: bool


def claimed(invocation: Invocation, now: datetime) -> Invocation:
    """As it is while an attempt is made; written before, so that an attempt that nobody hears of again counts."""
    return replace(
        invocation,
        state=InvocationState.RUNNING,
        attempts=invocation.attempts + 1,
        due_at=now + LEASE,
    )


def renewed(invocation: Invocation, now: datetime) -> Invocation:
    return replace(invocation, due_at=now + LEASE)


def placed(invocation: Invocation, session_id: str) -> Invocation:
    return replace(invocation, session_id=session_id)


def ready(invocation: Invocation, now: datetime, chance: float) -> Invocation | None:
    """What a call that is due becomes instead of an attempt; None when an attempt is to be made."""
    if invocation.state is InvocationState.RUNNING:  # its lease has ended: who made the attempt is gone
        gone = Failed("the server went away while it ran", code="attempt_lost", hint="its function may have had it")
        return after(invocation, Broken(gone, was_sent=True), now, chance)
    if now >= invocation.deadline:
        return _expired(invocation, now)
    return None


def after(invocation: Invocation, outcome: Reply | Broken, now: datetime, chance: float) -> Invocation:
    """What an attempt made of it. `chance` is from 0 to 1: those that failed together do not come back together."""
    if isinstance(outcome, Reply):
        invocation = replace(
            invocation,
            status=outcome.status,
            response_headers=outcome.headers,
            response_body=outcome.body,
            is_truncated=outcome.is_truncated,
        )
        if outcome.status < 400:
            return _finished(replace(invocation, error_code="", error=""), InvocationState.SUCCEEDED, now)
        invocation = replace(invocation, error_code="function_error", error=f"the function answered {outcome.status}")
        if outcome.status not in RETRIED_STATUS:
            return _finished(invocation, InvocationState.FAILED, now)
        return _again(invocation, outcome.retry_after, now, chance)
    invocation = replace(
        invocation,
        status=None,
        response_headers={},
        response_body="",
        is_truncated=False,
        error_code=outcome.error.code,
        error=str(outcome.error)[:1000],
    )
    if not outcome.was_sent and isinstance(outcome.error, NoCapacity):
        return _later(invocation, outcome.error.retry_after, now, chance)
    if not isinstance(outcome.error, PASSING) or outcome.error.code in NEVER_PASSING:
        return _finished(invocation, InvocationState.FAILED, now)
    return _again(invocation, outcome.error.retry_after, now, chance)


def cancelled(invocation: Invocation, now: datetime) -> Invocation:
    return _finished(invocation, InvocationState.CANCELLED, now)


def is_told_enough(invocation: Invocation) -> bool:
    """Whether no attempt to tell its destination is left, though nobody has heard of the last one."""
    return invocation.deliveries >= MOST_DELIVERIES


def delivery_claimed(invocation: Invocation, now: datetime) -> Invocation:
    return replace(invocation, deliveries=invocation.deliveries + 1, due_at=now + DELIVERY_LEASE)


def delivered(invocation: Invocation) -> Invocation:
    return replace(invocation, delivery=Delivery.DELIVERED, delivery_error="", due_at=None)


def not_delivered(invocation: Invocation, error: DovecoteError, now: datetime, chance: float) -> Invocation:
    told = replace(invocation, delivery_error=str(error)[:1000])
    if not isinstance(error, PASSING) or is_told_enough(invocation):
        return replace(told, delivery=Delivery.FAILED, due_at=None)
    return replace(told, due_at=now + wait(invocation.deliveries, chance))


def wait(times: int, chance: float) -> timedelta:
    """How long to wait after so many attempts: twice as long each time, half of it by chance."""
    longest = min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(max(0, times - 1), 20))
    return timedelta(seconds=longest / 2 + longest / 2 * chance)


def _again(invocation: Invocation, retry_after: float | None, now: datetime, chance: float) -> Invocation:
    if invocation.attempts > invocation.retries:
        return _finished(invocation, InvocationState.FAILED, now)
    return _queued(invocation, invocation.attempts, retry_after, now, chance)


def _later(invocation: Invocation, retry_after: float | None, now: datetime, chance: float) -> Invocation:
    """There was no place for it, so nothing was tried: that takes none of its attempts."""
    unmade = replace(invocation, attempts=invocation.attempts - 1, waits=invocation.waits + 1)
    return _queued(unmade, unmade.waits, retry_after, now, chance)


def _queued(invocation: Invocation, times: int, retry_after: float | None, now: datetime, chance: float) -> Invocation:
    asked = timedelta(seconds=min(max(retry_after or 0.0, 0.0), LONGEST_RETRY_AFTER))
    due_at = now + max(wait(times, chance), asked)
    if due_at >= invocation.deadline:
        return _expired(invocation, now)
    return replace(invocation, state=InvocationState.QUEUED, due_at=due_at)


def _expired(invocation: Invocation, now: datetime) -> Invocation:
    if not invocation.error:
        invocation = replace(invocation, error_code="expired", error="it could not be made in time")
    return _finished(invocation, InvocationState.EXPIRED, now)


def _finished(invocation: Invocation, state: InvocationState, now: datetime) -> Invocation:
    """Final. Telling its destination is a part of the same record, so an outcome and its delivery come together."""
    done = replace(invocation, state=state, finished_at=now)
    is_told = done.destination is not None
    return replace(done, delivery=Delivery.PENDING if is_told else Delivery.NONE, due_at=now if is_told else None)
