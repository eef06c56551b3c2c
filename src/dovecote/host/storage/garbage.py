"""Collects garbage of a store: condemns what no root reaches, and deletes it a day later if that is still so."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from dovecote.errors import Conflict, NotFound, StorageFailed
from dovecote.host.storage.bucket import Bucket
from dovecote.host.storage.condemned import FOLDER, Clock, boottime, condemned_name
from dovecote.host.storage.figures import Amount
from dovecote.host.storage.marking import References, Roots, parts_of, read_roots
from dovecote.host.storage.repacking import Repacking
from dovecote.host.storage.stored import digest_in, stored_name
from dovecote.host.storage.turn import Turn, Turns

log = logging.getLogger(__name__)

# Longer than a process remembers names plus the longest save, with hours to spare: see the decision page.
GRACE = timedelta(hours=24)
MOST = 100_000  # names that one run condemns, and that it deletes
RECORDS = "records"  # whose store it is
REACHED = datetime.max.replace(tzinfo=UTC)
NEVER = datetime.min.replace(tzinfo=UTC)
Above = dict[str, datetime]
_NAME = re.compile(r"(?:trees|manifests|times|packs|locations)/[0-9a-f]{2}/[0-9a-f]{62}")


@dataclass
class Collected:
    """What a run did, or would have done. Bytes are those that the store gets back."""

    condemned: Amount = field(default_factory=Amount)
    deleted: Amount = field(default_factory=Amount)
    spared: int = 0  # condemned before, and reached after all
    slots: int = 0  # of logs
    repacked: Amount = field(default_factory=Amount)  # packs of which little lived; their bytes come back when they go
    kept: Amount = field(default_factory=Amount)
    is_whole: bool = True  # False: there was more to do than one run does


class _Stop(Exception):
    """The time of this run is over, or the process is to end."""


def claim_store(bucket: Bucket, records: str) -> None:
    """Says, once, which database's records the files of a store belong to.

    Raises Conflict (other_records): collecting garbage by the records of another database would delete everything.
    """
    try:
        bucket.put_new(RECORDS, records.encode())
    except Conflict:
        theirs = bucket.get(RECORDS).decode("ascii", "replace")
        if theirs != records:
            raise Conflict(
                "this object store belongs to the records of another database",
                code="other_records",
                hint=f"if that one is gone for good, delete the object {RECORDS!r} of the store",
            ) from None


def collect_garbage(
    bucket: Bucket,
    references: Callable[[], References],
    *,
    records: str,
    every: timedelta = timedelta(0),
    stopped: Callable[[], bool] = lambda: False,
    dry_run: bool = False,
    most: int = MOST,
    clock: Clock = boottime,
) -> Collected | None:
    """One run; None when the last one began less than `every` ago. May be cut off anywhere, and run beside saves.

    Raises Conflict (collecting, other_records), StorageFailed: `corrupt` when something that a root reaches cannot be
    read, because what lies below it is unknown then; nothing below it was condemned or deleted.
    """
    if dry_run:
        _check_records(bucket, records)
        run = _Run(bucket, datetime.now(UTC), lambda: None, most=most, dry_run=True)
        run.collect(references)
        return run.collected
    claim_store(bucket, records)
    turns = Turns(bucket, clock=clock)
    turn = turns.take(every=every)
    if turn is None:
        return None

    def stop() -> None:
        if stopped() or clock() > turn.ends_at:
            raise _Stop

    run = _Run(bucket, turn.at, stop, most=most, dry_run=False)
    try:
        run.collect(references)
    except _Stop:
        run.collected.is_whole = False
    finally:
        _end(turns, turn)
    return run.collected


def _end(turns: Turns, turn: Turn) -> None:
    try:
        turns.end(turn)
    except StorageFailed as error:
        log.warning("the next collection of garbage must wait for two hours: %s", error)


def _check_records(bucket: Bucket, records: str) -> None:
    try:
        bucket.get(RECORDS)
    except NotFound:
        return
    claim_store(bucket, records)


@dataclass
class _Thing:
    """A name that is condemned and deleted as one, and what the store holds under it."""

    name: str
    objects: list[str]
    bytes: int
    modified_at: datetime


class _Run:
    def __init__(self, bucket: Bucket, now: datetime, stop: Callable[[], None], *, most: int, dry_run: bool) -> None:
        self._bucket = bucket
        self._now = now
        self._stop = stop
        self._most = most
        self._dry_run = dry_run
        self._condemned: dict[str, datetime] = {}
        self._spared: list[str] = []
        self._untils: dict[str, datetime] = {}
        self._roots: dict[str, tuple[list[str], str]] = {}
        self._seen: set[str] = set()
        self._unreached: set[str] = set()
        self._repacking = Repacking(bucket, stop)
        self.collected = Collected()

    def collect(self, references: Callable[[], References]) -> None:
        # Before the roots are read, so that a name's age says how long it had been condemned when they were.
        for stored in self._bucket.list(FOLDER):
            self._condemned[stored.name.removeprefix(f"{FOLDER}/")] = stored.modified_at
        roots = read_roots(self._bucket, references, now=self._now, grace=GRACE, stop=self._stop)
        self._delete_slots(roots)
        trees = self._there("trees")
        reached = self._with_templates(trees, {stored_name("trees", tree) for tree in roots.trees})
        below = self._level(trees, reached, self._parts_of)
        self._level(self._there("times"), below, lambda name: [])
        below = self._level(self._there("manifests", "locations"), below, self._packs_of)
        self._repacking.bind(roots.packs)
        packs = self._there("packs")
        self._level(packs, below | dict.fromkeys(roots.packs, REACHED), lambda name: [])
        self._repack(packs)
        self._forget()
        # From the bottom up: while a name is condemned still, nobody refers to it and so to what lies below it.
        for name in reversed(self._spared):
            self._stop()
            self._bucket.delete(condemned_name(name))

    def _there(self, kind: str, beside: str = "") -> dict[str, _Thing]:
        things: dict[str, _Thing] = {}
        for folder in (kind, beside) if beside else (kind,):
            for stored in self._bucket.list(folder):
                if _NAME.fullmatch(stored.name):
                    self._stop()
                    name = kind + stored.name.removeprefix(folder)
                    thing = things.setdefault(name, _Thing(name, [], 0, stored.modified_at))
                    thing.objects.append(stored.name)
                    thing.bytes += stored.size
                    thing.modified_at = max(thing.modified_at, stored.modified_at)
        self._seen |= things.keys()
        return things

    def _level(self, there: dict[str, _Thing], above: Above, below: Callable[[str], Iterable[str]]) -> Above:
        """Condemns and deletes on one level.

        `above` and the answer say for how long names are referred to: REACHED, or until when the last name that leads
        there could be referred to. Something may have been saved on top of that until then, so grace begins there.
        """
        answer: Above = {}
        dying: list[_Thing] = []
        for thing in there.values():
            self._stop()
            until = self._until(thing, above.get(thing.name, NEVER))
            if until != REACHED:
                self._unreached.add(thing.name)
            if until == REACHED:
                self.collected.kept.add(thing.bytes)
                if thing.name in self._condemned:
                    self.collected.spared += 1
                    self._spared += [] if self._dry_run else [thing.name]
            elif self._now - until >= GRACE:
                if self.collected.deleted.count + len(dying) < self._most:
                    dying.append(thing)
                else:
                    self.collected.is_whole = False
            for name in self._below(thing, below, is_root=above.get(thing.name) is REACHED):
                answer[name] = max(answer.get(name, NEVER), until)
        # Only now, when all of the level has been read.
        for thing in dying:
            self._delete(thing)
        return answer

    def _until(self, thing: _Thing, above: datetime) -> datetime:
        """Until when a save could refer to it. Condemns what nothing leads to, once it has its age."""
        if above == REACHED:
            return REACHED
        if (condemned_at := self._condemned.get(thing.name)) is not None:
            return max(condemned_at, above)
        if thing.name not in self._untils:
            self._untils[thing.name] = self._condemn(thing)
        return self._untils[thing.name]

    def _condemn(self, thing: _Thing) -> datetime:
        if self._now - thing.modified_at < GRACE:
            return REACHED
        if self.collected.condemned.count >= self._most:
            self.collected.is_whole = False
            return REACHED
        self.collected.condemned.add(thing.bytes)
        if not self._dry_run:
            self._put_condemned(thing.name)
        return self._now

    def _put_condemned(self, name: str) -> None:
        with suppress(Conflict):  # a request whose answer got lost
            self._bucket.put_new(condemned_name(name), b"")

    def _below(self, thing: _Thing, below: Callable[[str], Iterable[str]], *, is_root: bool) -> Iterable[str]:
        try:
            return below(thing.name)
        except (StorageFailed, NotFound) as error:
            if error.code not in ("corrupt", "not_found"):
                raise
            if not is_root:  # nothing can be mounted on top of it anyway
                return ()
            raise StorageFailed(
                f"{thing.name} is in use and cannot be read: {error.message}",
                code="corrupt",
                hint="`dovecote storage check` says whose it is; nothing that it may lead to was deleted",
            ) from error

    def _with_templates(self, trees: Mapping[str, _Thing], roots: Iterable[str]) -> Above:
        """A delta leads to its template, which is on the same level."""
        above: Above = dict.fromkeys(roots, REACHED)
        over: dict[str, str] = {}
        for name, thing in trees.items():
            self._stop()
            for template in self._below(thing, self._template_of, is_root=name in above):
                over[name] = template
        waiting = [over[name] for name in above if name in over]
        while waiting:
            name = waiting.pop()
            if above.get(name) != REACHED:
                above[name] = REACHED
                waiting += [over[name]] if name in over else []
        for name, template in over.items():
            until = self._until(trees[name], above.get(name, NEVER))
            above[template] = max(above.get(template, NEVER), until)
        return above

    def _template_of(self, tree: str) -> Iterable[str]:
        template = self._root(tree)[1]
        return [stored_name("trees", template)] if template else []

    def _parts_of(self, tree: str) -> Iterable[str]:
        return self._root(tree)[0]

    def _root(self, tree: str) -> tuple[list[str], str]:
        if tree not in self._roots:
            self._roots[tree] = parts_of(self._bucket, digest_in(tree))
        return self._roots[tree]

    def _packs_of(self, manifest: str) -> Iterable[str]:
        return self._repacking.note(manifest)

    def _repack(self, packs: Mapping[str, _Thing]) -> None:
        """Those that it empties are condemned at once: nobody may go on saving on top of them."""
        sizes = {
            name: thing.bytes
            for name, thing in packs.items()
            if self._now - thing.modified_at >= GRACE and name not in self._unreached and name not in self._condemned
        }
        chosen = self._repacking.worth(sizes, without=self._unreached)
        if not self._dry_run:
            chosen = self._repacking.rewrite(chosen)
        for name in chosen:
            self._stop()
            self.collected.repacked.add(sizes[name] - self._repacking.live_bytes(name))
            if not self._dry_run:
                self._put_condemned(name)

    def _delete(self, thing: _Thing) -> None:
        self.collected.deleted.add(thing.bytes)
        if self._dry_run:
            return
        for name in sorted(thing.objects, reverse=True):  # a manifest before its locations
            self._stop()
            self._bucket.delete(name)

    def _delete_slots(self, roots: Roots) -> None:
        self.collected.slots = len(roots.old_slots)
        for name in roots.old_slots:
            self._stop()
            if not self._dry_run:
                self._bucket.delete(name)

    def _forget(self) -> None:
        """What is gone may be written again, but not before every request to delete it has long arrived."""
        for name, condemned_at in self._condemned.items():
            if name not in self._seen and self._now - condemned_at >= 2 * GRACE and not self._dry_run:
                self._stop()
                self._bucket.delete(condemned_name(name))
