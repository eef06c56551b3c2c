"""Why a session is awake or rests, as the server tells it; and tiers."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True)
class Reason:
    """One thing that keeps a session awake: requests, calls, commands, lease, outbound or used. `text` is for you."""

    what: str
    text: str
    count: int
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True)
class ToCome:
    """What happens then if nobody does anything: freeze, park, pause or end."""

    move: str
    at: datetime


@dataclass(frozen=True)
class HookRun:
    """A run of a hook. `reason` says what failed."""

    hook: str
    at: datetime
    is_ok: bool
    seconds: float
    reason: str
    instance_id: str = ""


@dataclass(frozen=True)
class Passage:
    """It became so then, and why."""

    at: datetime
    state: str
    reason: str


@dataclass(frozen=True)
class Breach:
    """Its window was promised, and it lost its instance all the same."""

    at: datetime
    reason: str


@dataclass(frozen=True)
class Activity:
    """Why a session is awake or rests. `reasons` keep it awake; `next` is what time alone brings, soonest first."""

    state: str
    why: str
    unused_for_seconds: float | None
    window_seconds: float
    is_promised: bool
    awake_until: datetime | None
    breaches: int
    last_breach: Breach | None = None
    reasons: list[Reason] = field(default_factory=list)
    next: list[ToCome] = field(default_factory=list)
    hooks: list[HookRun] = field(default_factory=list)
    moves: list[Passage] = field(default_factory=list)


@dataclass(frozen=True)
class Tier:
    """What a session of that tier gets."""

    name: str
    idle_after_seconds: float
    is_promised: bool
    longest_lease_seconds: float
    recovery_point_seconds: float
    snapshots: int
    snapshots_for_seconds: float
