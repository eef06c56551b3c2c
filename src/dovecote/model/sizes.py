"""Sizes, tiers and network policies, as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta

MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True)
class Limits:
    """What one instance may use. Enforced by cgroup, disk quota and rlimit."""

    cpus: float = 1.0
    memory_bytes: int = 1 * GIB
    disk_bytes: int = 2 * GIB
    pids: int = 1024
    open_files: int = 65536


@dataclass(frozen=True)
class Spec:
    """A named size. `limits` is what it means."""

    name: str
    limits: Limits


SPECS: dict[str, Spec] = {
    spec.name: spec
    for spec in (
        Spec("nano", Limits(cpus=0.25, memory_bytes=256 * MIB, disk_bytes=512 * MIB, pids=256)),
        Spec("small", Limits(cpus=1.0, memory_bytes=1 * GIB, disk_bytes=2 * GIB)),
        Spec("medium", Limits(cpus=2.0, memory_bytes=2 * GIB, disk_bytes=5 * GIB, pids=2048)),
        Spec("large", Limits(cpus=4.0, memory_bytes=8 * GIB, disk_bytes=10 * GIB, pids=4096)),
    )
}


@dataclass(frozen=True)
class Tier:
    """How long a session of such a user is kept when nobody uses it, and how many of its snapshots, how old.

    `recovery_point` is how much of its work the loss of a host may cost. `lease` is the longest time ahead that such a
    session can be told to stay awake. A window that `is_promised` has its memory accounted for.
    """

    name: str
    idle_after: timedelta
    snapshots: int = 20
    snapshots_for: timedelta = timedelta(days=7)
    recovery_point: timedelta = timedelta(seconds=2)
    lease: timedelta = timedelta(minutes=30)
    is_promised: bool = False


TIERS: dict[str, Tier] = {
    tier.name: tier
    for tier in (
        Tier("default", timedelta(minutes=5)),
        Tier("regular", timedelta(hours=1), 50, timedelta(days=30), lease=timedelta(hours=4), is_promised=True),
        Tier("vip", timedelta(hours=10), 200, timedelta(days=180), timedelta(seconds=1), timedelta(hours=12), True),
        Tier("svip", timedelta(hours=24), 1000, timedelta(days=365), timedelta(seconds=1), timedelta(hours=24), True),
    )
}


@dataclass(frozen=True)
class NetworkPolicy:
    """What an instance may reach. Other instances, the host and metadata addresses are never reachable.

    What is allowed by name goes before what is denied by name.
    """

    internet: bool = True
    allow_cidrs: tuple[str, ...] = field(default=())  # private networks granted by name, "10.1.0.0/16"
    deny_cidrs: tuple[str, ...] = field(default=())  # parts of the internet that are out of reach, "203.0.113.0/24"
    outbound_keeps_awake: bool = False  # whether what it exchanges with the outside counts as use
