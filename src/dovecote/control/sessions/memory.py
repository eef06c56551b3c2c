"""Decides whether there is memory for one more instance, and who makes room. No clock, no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dovecote.model.sizes import MIB

STARTING = 64 * MIB  # what an instance takes before its first command
MOST_PARKED = 16  # at once, to make room


@dataclass(frozen=True)
class Held:
    """A session that has an instance. `used_bytes` were measured; `may_rest` says that nothing keeps it awake."""

    session_id: str
    limit_bytes: int
    used_bytes: int
    is_promised: bool
    unused_for: float  # seconds
    may_rest: bool


@dataclass(frozen=True)
class Room:
    """Who is parked for it, longest unused first, and whether that is enough. Where it is not, nobody is."""

    park: tuple[Held, ...]
    is_enough: bool


def promised_bytes(limit_bytes: int, overcommit: float) -> int:
    """What is kept ready for a promised session of that limit."""
    return max(STARTING, int(limit_bytes / overcommit))


def outstanding(held: Held, overcommit: float) -> int:
    """What a promised session may still take of what is kept ready for it."""
    return max(0, promised_bytes(held.limit_bytes, overcommit) - held.used_bytes) if held.is_promised else 0


def make_room(needed: int, free: int, held: Sequence[Held], *, overcommit: float) -> Room:
    """`free` is what the host may still give away, before what is promised is taken off."""
    short = needed + sum(outstanding(each, overcommit) for each in held) - free
    if short <= 0:
        return Room((), True)
    chosen = _chosen(short, [each for each in held if each.may_rest and not each.is_promised])
    freed = sum(each.used_bytes for each in chosen)
    return Room(tuple(chosen), True) if freed >= short else Room((), False)


def relieve(free: int, critical: int, held: Sequence[Held], *, overcommit: float) -> tuple[Held, ...]:
    """Who is parked because a host runs out of memory, as many as it takes or as there are.

    Below `critical` promised ones too, when there is nobody else: the kernel would kill without saving.
    """
    short = sum(outstanding(each, overcommit) for each in held) - free
    if short <= 0:
        return ()
    resting = [each for each in held if each.may_rest]
    chosen = _chosen(short, [each for each in resting if not each.is_promised])
    if chosen or free >= critical:
        return tuple(chosen)
    return tuple(_chosen(critical - free, resting))


def _chosen(short: int, candidates: Sequence[Held]) -> list[Held]:
    chosen: list[Held] = []
    for each in sorted(candidates, key=lambda each: -each.unused_for)[:MOST_PARKED]:
        if short <= 0:
            break
        chosen.append(each)
        short -= each.used_bytes
    return chosen
