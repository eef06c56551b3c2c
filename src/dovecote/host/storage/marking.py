"""Reads what the roots of a store name: records, hosts' pins, and the logs of owners. Only reads."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from dovecote.errors import StorageFailed
from dovecote.host.storage.bucket import Bucket
from dovecote.host.storage.log import Slot, SlotLog
from dovecote.host.storage.payload import parse_payload
from dovecote.host.storage.pins import read_pins
from dovecote.host.storage.slots import SLOT
from dovecote.host.storage.stored import read_root, stored_name

KEPT_SAVES = 3  # newest trees of a log that stay, so that a session can go back when the newest is damaged
_OF_LOG = re.compile(r"logs/([A-Za-z0-9_-]{1,200})/[a-z0-9]{1,12}")


@dataclass(frozen=True)
class References:
    """What the records of all tenants say. An owner of a log that is in neither set is unknown, and its log stays."""

    trees: frozenset[str]
    ended: Mapping[str, datetime]  # owner -> when, by a host's clock

    def __or__(self, other: References) -> References:
        # Ended is for ever, so whoever has ended in one of them has.
        return References(self.trees | other.trees, {**self.ended, **other.ended})


@dataclass
class Roots:
    trees: set[str] = field(default_factory=set)
    packs: set[str] = field(default_factory=set)
    old_slots: list[str] = field(default_factory=list)  # to delete, in this order
    slots: int = 0


def read_roots(
    bucket: Bucket, references: Callable[[], References], *, now: datetime, grace: timedelta, stop: Callable[[], None]
) -> Roots:
    """Raises StorageFailed `corrupt` for a log that cannot be read, since nobody knows what it names."""
    # Twice: a reference that moves from one record to another while they are read is seen in one of the two.
    named = references() | references()
    pins = read_pins(bucket)
    if pins is None:
        raise StorageFailed(
            "no host has said what it needs of this store", code="no_pins", hint="start the server once"
        )
    roots = Roots(set(named.trees) | pins)
    logs: dict[str, dict[int, datetime]] = {}
    of_ended: list[str] = []
    for stored in bucket.list("logs"):
        if not (match := _OF_LOG.fullmatch(stored.name)):
            continue
        owner = match[1]
        if owner in named.ended:
            if now - named.ended[owner] >= grace and now - stored.modified_at >= grace:
                of_ended.append(stored.name)
        elif slot := SLOT.fullmatch(stored.name):
            logs.setdefault(owner, {})[int(slot[2])] = stored.modified_at
    for owner in sorted(logs):
        stop()
        _read_log(bucket, owner, logs[owner], roots, before=now - grace)
    roots.old_slots += sorted(of_ended)
    return roots


def _read_log(bucket: Bucket, owner: str, slots: Mapping[int, datetime], roots: Roots, *, before: datetime) -> None:
    log = SlotLog(bucket, owner)
    numbers = sorted(slots)
    newest = _read_slot(log, numbers[-1], roots)
    read = {newest.n}
    whole = int(newest.kind == "checkpoint")
    for n in reversed(numbers[:-1]):
        if whole >= KEPT_SAVES:
            break
        whole += _read_slot(log, n, roots).kind == "checkpoint"
        read.add(n)
    first = min(min(read), newest.since or newest.n)
    # The lowest first, and none behind one that stays: what is left has no gap, and is found from its end.
    for n in numbers:
        if n >= first or slots[n] > before:
            first = n
            break
        roots.old_slots.append(f"logs/{owner}/{n:012d}")
    for n in numbers:
        if n >= first and n not in read:
            _read_slot(log, n, roots)


def _read_slot(log: SlotLog, n: int, roots: Roots) -> Slot:
    """What it carries may be of many megabytes, and nobody needs more of it than the names of packs."""
    slot, payload = log.read_whole(n)
    roots.slots += 1
    roots.trees |= {each for each in (slot.tree, slot.template) if each}
    if slot.kind == "changes":
        roots.packs |= {p.pack for pieces in parse_payload(payload).located.values() for p in pieces}
    return slot


def parts_of(bucket: Bucket, tree: str) -> tuple[list[str], str]:
    """Names of the manifests and of the times of a tree, and the digest of its template or ""."""
    root = read_root(bucket, tree)
    manifests = [stored_name("manifests", part.digest.hex()) for part in root.parts]
    times = [stored_name("times", part.times.hex()) for part in root.parts if part.times]
    return manifests + times, root.template.hex()
