"""The log of one owner's saves: numbered slots, each created once, sealed by whoever takes over."""

from __future__ import annotations

import json
import re
import secrets
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from itertools import islice
from typing import Literal

from dovecote.errors import Conflict, Invalid, NotFound, StorageFailed
from dovecote.host.storage.bucket import Bucket
from dovecote.host.storage.condemned import REMEMBERED, Clock, boottime

_KEY = re.compile(r"[A-Za-z0-9_-]{1,200}")
_NUMBER = re.compile(r"[0-9]{12}")
_TRIES = 1000  # slots that others may create while we try to create one
_MOVES = 10  # of a log, between two questions of who reads it
_FURTHEST = 1 << 40
_WORTH_EMPTYING = 4096  # bytes
_MOST_COUNTED = 1000  # slots: their owner folds many fewer
_HINT_EVERY = 16  # slots of changes: a hint costs as much as such a slot


@dataclass(frozen=True)
class Slot:
    """One line of the log. A seal repeats what the slot before it says, so that the last slot says everything.

    `generation` counts checkpoints from 1; 0 means that there is none yet. `tree`, `previous` and `template` are
    digests in hex, `previous` is the tree that this one replaced. A slot of `changes` is a checkpoint too: it carries
    what changed since the slot before it. `since` is then the slot whose tree they start from; 0: `tree` is all.
    A `folded` one carried changes once, which the tree of a later slot has.
    """

    n: int
    kind: Literal["checkpoint", "changes", "folded", "seal"]
    epoch: int
    generation: int
    template: str
    tree: str
    previous: str | None
    files: int
    bytes: int
    at: str  # ISO 8601, UTC
    nonce: str  # tells our own slot from another's when an answer got lost
    since: int = 0


class SlotLog:
    """The log of `owner_key`. Blocking calls.

    Whoever is given the ownership calls `seal(epoch)` once, with an epoch greater than all before it, and then
    `append`. Epochs never go down along the log, because every slot is created right behind the one that was last read:
    so a checkpoint of an older owner cannot come after a newer one's seal.
    """

    def __init__(self, bucket: Bucket, owner_key: str, *, clock: Clock = boottime) -> None:
        if not _KEY.fullmatch(owner_key):
            raise Invalid(f"not a key for a log: {owner_key[:60]!r}", code="malformed_id")
        self._bucket = bucket
        self._folder = f"logs/{owner_key}"
        self._clock = clock
        self._end: Slot | None = None  # the newest that we have seen
        self.unfolded_bytes: int | None = None  # in slots of changes since the last tree; None until it is counted
        self._seen_at = 0.0

    def seal(self, epoch: int) -> Slot | None:
        """Ends all older owners: their next `append` raises Conflict `sealed`. Returns the newest checkpoint.

        May be repeated. Raises Conflict `sealed` when an owner with a newer epoch was here.
        """
        for _ in range(_TRIES):
            end = self._newest()
            _check_epoch(end, epoch)
            if end is not None and end.epoch == epoch:
                return _checkpoint(end)
            base = end or _NOTHING
            if self._create(replace(base, n=base.n + 1, kind="seal", epoch=epoch, at=_now(), nonce=_nonce())):
                return _checkpoint(base)
        raise _busy()

    def append(
        self,
        *,
        epoch: int,
        template: str,
        tree: str,
        previous: str | None,
        files: int,
        bytes: int,
        at: datetime | None = None,
        generation: int | None = None,
        after: int = 0,
    ) -> Slot:
        """Records a tree, which must be whole in the store, as the newest. Its generation is one more than the last.

        `after` is a generation that the owner knows of: the new one is greater, should the log not have it.
        With `generation`, which must be the newest, it is that one again, folded: the same files in another form.
        Raises Conflict: `sealed` when a newer owner has taken over, `log_moved`.
        """
        nonce = _nonce()
        for tries in range(_TRIES):
            # What we saw last is the newest as long as nobody has created the slot behind it.
            end = (self._known() if tries == 0 else None) or self._newest() or _NOTHING
            _check_epoch(end, epoch)
            if generation not in (None, end.generation):
                raise Conflict(f"generation {end.generation} is the newest, not {generation}", code="log_moved")
            number = generation or max(end.generation, after) + 1
            time = (at or datetime.now(UTC)).astimezone(UTC).isoformat()
            slot = Slot(end.n + 1, "checkpoint", epoch, number, template, tree, previous, files, bytes, time, nonce)
            if self._create(slot):
                return slot
        raise _busy()

    def append_changes(self, payload: bytes, *, epoch: int, generation: int) -> Slot:
        """Records what changed since `generation`, which must be the newest.

        Raises Conflict: `sealed` when a newer owner has taken over, `log_moved` when another checkpoint is the newest.
        """
        nonce = _nonce()
        for tries in range(_TRIES):
            end = (self._known() if tries == 0 else None) or self._newest() or _NOTHING
            _check_epoch(end, epoch)
            if end.generation != generation or not generation:
                raise Conflict(f"generation {end.generation} is the newest, not {generation}", code="log_moved")
            if self.unfolded_bytes is None:
                self.unfolded_bytes = self._count(end)
            slot = replace(
                end,
                n=end.n + 1,
                kind="changes",
                epoch=epoch,
                generation=generation + 1,
                at=_now(),
                nonce=nonce,
                since=end.since or end.n,
            )
            if self._create(slot, payload):
                return slot
        raise _busy()

    def last_whole(self, *, epoch: int | None = None) -> tuple[Slot, list[bytes]] | None:
        """`last`, and what comes on top of its tree, the oldest first. Raises StorageFailed `corrupt` for a gap."""
        for _ in range(_MOVES):
            slot = self.last(epoch=epoch)
            changes = self._changes(slot) if slot else []
            if changes is not None:
                return (slot, changes) if slot else None
        raise _busy()

    def _changes(self, newest: Slot) -> list[bytes] | None:
        """None when its owner has folded them into the tree of a later slot meanwhile."""
        found: list[bytes] = []
        for n in range(newest.since + 1, newest.n + 1) if newest.since else ():
            try:
                head, _, payload = self._bucket.get(self._name(n)).partition(b"\n")
            except NotFound as error:
                raise StorageFailed(f"slot {n} of a log is missing", code="corrupt") from error
            kind = _parse(head, n).kind
            if kind == "folded":
                return None
            if kind == "changes":
                found.append(payload)
        return found

    def empty(self, folded: Slot) -> None:
        """Takes away what slots carry up to `folded`, once a later one has it in a tree. May be repeated.

        Their lines stay: an owner who knows of none behind them could take a number that is free. Small ones are left
        to the collection of garbage.
        """
        for n in range(folded.since + 1, folded.n + 1) if folded.since else ():
            if self._bucket.size(self._name(n)) >= _WORTH_EMPTYING:
                slot = self.read(n)
                if slot.kind == "changes":
                    self._bucket.put(self._name(n), _line(replace(slot, kind="folded")))

    def last(self, *, epoch: int | None = None) -> Slot | None:
        """The newest checkpoint, or None. What a seal repeats is returned with that seal's number and epoch.

        With `epoch`, the asker's, raises Conflict `sealed` when a newer owner has taken over.
        """
        end = self._newest()
        if epoch is not None:
            _check_epoch(end, epoch)
        return _checkpoint(end) if end else None

    def read(self, n: int) -> Slot:
        """Raises NotFound, or StorageFailed `corrupt`."""
        return self.read_whole(n)[0]

    def read_whole(self, n: int) -> tuple[Slot, bytes]:
        """With what it carries."""
        head, _, payload = self._bucket.get(self._name(n)).partition(b"\n")
        return _parse(head, n), payload

    def _known(self) -> Slot | None:
        """The newest that was seen, unless so long ago that slots behind it may have been deleted already."""
        return self._end if self._clock() - self._seen_at < REMEMBERED else None

    def _count(self, end: Slot) -> int:
        """What earlier processes and owners left in slots, and their lines. One question to the store."""
        names = {self._name(n) for n in range(end.since + 1, end.n + 1)} if end.since else set()
        after = self._bucket.list(self._folder, after=self._name(end.since)) if names else ()
        return sum(stored.size for stored in islice(after, _MOST_COUNTED) if stored.name in names)

    def _note(self, slot: Slot, at: float) -> Slot:
        if self._end is None or self._end.n != slot.n:
            self.unfolded_bytes = None if slot.since else 0
        self._end, self._seen_at = slot, at
        return slot

    def _create(self, slot: Slot, payload: bytes = b"") -> bool:
        body = _line(slot)
        if payload:
            body += b"\n" + payload
        asked_at, before = self._clock(), self.unfolded_bytes
        try:
            self._bucket.put_new(self._name(slot.n), body)
        except Conflict:
            there = self._note(self.read(slot.n), asked_at)
            if there.nonce != slot.nonce:
                return False
        self._note(slot, asked_at)
        if slot.since and before is not None:
            self.unfolded_bytes = before + len(payload)
        if slot.kind == "changes" and slot.n % _HINT_EVERY:
            return True
        with suppress(StorageFailed):  # a hint that is lost costs a few questions
            self._bucket.put(f"{self._folder}/hint", json.dumps({"n": slot.n}).encode())
        return True

    def _newest(self) -> Slot | None:
        asked_at = self._clock()
        known, n = self._known(), self.length()
        if not n:
            return None
        return known if known and known.n == n else self._note(self.read(n), asked_at)

    def length(self) -> int:
        """The number of the last slot, whether or not it can be read; 0 when there is none.

        From one that is there, doubling steps and halving find the end, as slots have no gaps.
        """
        known = self._known()
        start = known.n if known else self._hint() or self._listed()
        if not start or not self._exists(start + 1):
            return start
        step = 1
        there, absent = start + 1, 0
        while not absent:
            step *= 2
            if there + step > _FURTHEST:
                raise StorageFailed(f"{self._folder} has no end", code="corrupt")
            if self._exists(there + step):
                there += step
            else:
                absent = there + step
        while absent - there > 1:
            middle = (there + absent) // 2
            if self._exists(middle):
                there = middle
            else:
                absent = middle
        return there

    def _hint(self) -> int:
        try:
            n = json.loads(self._bucket.get(f"{self._folder}/hint"))["n"]
        except (NotFound, ValueError, KeyError, TypeError):
            return 0
        return n if isinstance(n, int) and 0 < n < _FURTHEST and self._exists(n) else 0

    def _listed(self) -> int:
        """For a log without a good hint, whose first slots may have been deleted: 0 when there is no slot."""
        found = [stored.name.rpartition("/")[2] for stored in self._bucket.list(self._folder)]
        return max((int(name) for name in found if _NUMBER.fullmatch(name)), default=0)

    def _exists(self, n: int) -> bool:
        try:
            self._bucket.size(self._name(n))
        except NotFound:
            return False
        return True

    def _name(self, n: int) -> str:
        return f"{self._folder}/{n:012d}"


_NOTHING = Slot(0, "seal", 0, 0, "", "", None, 0, 0, "", "")


def _checkpoint(slot: Slot) -> Slot | None:
    return slot if slot.generation else None


def _check_epoch(end: Slot | None, epoch: int) -> None:
    if end is not None and end.epoch > epoch:
        raise Conflict(
            f"another owner with epoch {end.epoch} has taken over from epoch {epoch}",
            code="sealed",
            hint="stop this instance; the session goes on elsewhere",
        )


def _parse(body: bytes, n: int) -> Slot:
    try:
        values = json.loads(body)
        slot = Slot(**values)
        for field in fields(Slot):
            value = values.get(field.name, field.default)
            if field.name == "previous":
                good = value is None or isinstance(value, str)
            elif field.type == "int":
                good = type(value) is int and value >= 0
            else:
                good = isinstance(value, str)
            if not good:
                raise ValueError(f"bad {field.name}")
        if slot.n != n or slot.kind not in ("checkpoint", "changes", "folded", "seal"):
            raise ValueError("bad slot")
    except (ValueError, TypeError, KeyError) as error:
        raise StorageFailed(f"slot {n} of a log cannot be read: {error}", code="corrupt") from error
    return slot


def _line(slot: Slot) -> bytes:
    return json.dumps(asdict(slot), separators=(",", ":")).encode()


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _nonce() -> str:
    return secrets.token_hex(12)


def _busy() -> Conflict:
    return Conflict("others keep writing to this log", code="stale")
