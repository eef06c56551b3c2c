"""When records were made, in an order that a clock which goes back does not break."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Protocol


class Made(Protocol):
    @property
    def created_at(self) -> datetime: ...


def moment_after(newest: Made | None, now: datetime) -> datetime:
    """When the next one was made: its place is behind all others, also where the clock went back since."""
    return now if newest is None or newest.created_at < now else newest.created_at + timedelta(microseconds=1)
