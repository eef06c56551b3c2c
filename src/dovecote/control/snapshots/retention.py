"""Decides which snapshots of one session are kept. No clock, no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from dovecote.model.records import Snapshot
from dovecote.model.sizes import Tier


def expired(snapshots: Sequence[Snapshot], tier: Tier, now: datetime) -> list[Snapshot]:
    """Those that are too many or too old. Pinned ones stay and do not count; the newest of all stays."""
    newest_first = sorted(snapshots, key=lambda each: (each.created_at, each.id), reverse=True)
    counted = [each for each in newest_first if not each.is_pinned]
    return [
        each
        for place, each in enumerate(counted)
        if each is not newest_first[0] and (place >= tier.snapshots or now - each.created_at > tier.snapshots_for)
    ]
