"""Decides which snapshots of one session are kept. No clock, no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from dovecote.model.records import Snapshot
from dovecote.model.sizes import Tier


def moment_after(newest: Snapshot | None, now: datetime) -> datetime:
    """When a new one was taken: its place is behind all others, also where the clock went back since."""
    return now if newest is None or newest.created_at < now else newest.created_at + timedelta(microseconds=1)


def expired(snapshots: Sequence[Snapshot], tier: Tier, now: datetime) -> list[Snapshot]:
    """Those that are too many or too old. Pinned ones stay and do not count; the newest of all stays."""
    newest_first = sorted(snapshots, key=lambda each: (each.created_at, each.id), reverse=True)
    counted = [each for each in newest_first if not each.is_pinned]
    return [
        each
        for place, each in enumerate(counted)
        if each is not newest_first[0] and (place >= tier.snapshots or now - each.created_at > tier.snapshots_for)
    ]
