"""Decides how many instances an app should have. No clock, no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil


@dataclass(frozen=True)
class Scale:
    """`target_concurrency` is requests in flight that one instance should hold; `idle_after` is seconds."""

    minimum: int
    maximum: int
    target_concurrency: int
    idle_after: float


@dataclass(frozen=True)
class Load:
    """What was seen of one app. `peak` is the most requests in flight, waiting ones too, within the stable window."""

    in_flight: int
    peak: int
    idle_for: float  # seconds since its last request


def desired(scale: Scale, load: Load) -> int:
    """Out at once for what is in flight; in only for what the whole window has needed; to zero when nobody came."""
    if load.in_flight == 0 and load.idle_for >= scale.idle_after:
        wanted = 0
    else:
        # One stays through the idle window, so that a pause in reading costs no cold start.
        wanted = max(1, ceil(max(load.in_flight, load.peak) / scale.target_concurrency))
    return max(scale.minimum, min(wanted, scale.maximum))
