"""What is said over the wire of a session's rest, and of tiers."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, Field

from dovecote.api.rest.shapes import Body
from dovecote.control.sessions import Activity
from dovecote.model.past import HookRun
from dovecote.model.sizes import Tier


class NewLease(Body):
    seconds: float = Field(gt=0, le=86400, description="From now; at most what its tier allows.")


class ReasonShape(BaseModel):
    """One thing that keeps a session awake."""

    what: str = Field(description="requests, calls, commands, lease, outbound or used.")
    text: str = Field(description="For a person.")
    count: int
    since: datetime | None
    until: datetime | None = Field(description="null where nobody knows.")


class ToComeShape(BaseModel):
    """What happens then if nobody does anything."""

    move: str = Field(description="freeze, park, pause or end.")
    at: datetime


class HookRunShape(BaseModel):
    """A run of a hook."""

    hook: str = Field(description="initialize, pre_freeze or pre_stop.")
    at: datetime
    is_ok: bool
    seconds: float
    reason: str = Field(description="What failed; empty where nothing did.")
    instance_id: str = Field(description="The instance that it ran in.")


class PassageShape(BaseModel):
    """It became so then, and why."""

    at: datetime
    state: str
    reason: str


class BreachShape(BaseModel):
    """Its window was promised, and it lost its instance all the same."""

    at: datetime
    reason: str


class ActivityShape(BaseModel):
    """Why a session is awake or rests, and what happens to it next."""

    state: str
    why: str = Field(description="For a person.")
    reasons: list[ReasonShape] = Field(description="What keeps it awake; none while it rests.")
    next: list[ToComeShape] = Field(description="Soonest first; none where only use or a command decides.")
    unused_for_seconds: float | None = Field(description="null once it has ended.")
    window_seconds: float = Field(description="So long it keeps its instance without use.")
    is_promised: bool = Field(description="Whether that is promised, or as long as there is room.")
    awake_until: datetime | None = Field(description="End of its lease, by now perhaps in the past.")
    hooks: list[HookRunShape]
    moves: list[PassageShape] = Field(description="The last ten, oldest first.")
    breaches: int = Field(description="How often its promise was broken.")
    last_breach: BreachShape | None


class TierShape(BaseModel):
    """What a session of that tier gets."""

    name: str
    idle_after_seconds: float = Field(description="It keeps its instance so long without use.")
    is_promised: bool = Field(description="Whether that is promised, or as long as there is room.")
    longest_lease_seconds: float
    recovery_point_seconds: float = Field(description="Of its work, that the loss of a host may cost.")
    snapshots: int
    snapshots_for_seconds: float


def activity_shape(activity: Activity) -> ActivityShape:
    past = activity.past
    return ActivityShape(
        state=activity.state,
        why=activity.why,
        reasons=[
            ReasonShape(what=str(each.what), text=each.text, count=each.count, since=each.since, until=each.until)
            for each in activity.reasons
        ],
        next=[ToComeShape(move=each.move, at=each.at) for each in activity.next],
        unused_for_seconds=activity.unused_for.total_seconds() if activity.unused_for is not None else None,
        window_seconds=activity.window.total_seconds(),
        is_promised=activity.is_promised,
        awake_until=activity.awake_until,
        hooks=[hook_run_shape(run) for run in past.hooks],
        moves=[PassageShape(at=move.at, state=move.state, reason=move.reason) for move in past.moves],
        breaches=past.breaches,
        last_breach=BreachShape(at=past.last_breach.at, reason=past.last_breach.reason) if past.last_breach else None,
    )


def hook_run_shape(run: HookRun) -> HookRunShape:
    return HookRunShape(
        hook=run.hook,
        at=run.at,
        is_ok=run.is_ok,
        seconds=run.seconds,
        reason=run.reason,
        instance_id=run.instance_id,
    )


def tier_shape(tier: Tier) -> TierShape:
    return TierShape(
        name=tier.name,
        idle_after_seconds=tier.idle_after.total_seconds(),
        is_promised=tier.is_promised,
        longest_lease_seconds=tier.lease.total_seconds(),
        recovery_point_seconds=tier.recovery_point.total_seconds(),
        snapshots=tier.snapshots,
        snapshots_for_seconds=tier.snapshots_for.total_seconds(),
    )
