"""The log of saves: one line of history, whoever races for it."""

import json
import random
import threading
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dovecote.errors import Conflict, Invalid, NotFound, StorageFailed
from dovecote.host.storage.bucket import Bucket, open_bucket
from dovecote.host.storage.log import Slot, SlotLog
from dovecote.host.storage.slots import every_slot


def save(log: SlotLog, epoch: int, tree: str = "t", previous: str | None = None) -> Slot:
    return log.append(epoch=epoch, template="base", tree=tree, previous=previous, files=1, bytes=2)


def history(bucket: Bucket, key: str = "ses_1") -> list[Slot]:
    """Every slot, from the first to the first that is missing."""
    log = SlotLog(bucket, key)
    slots: list[Slot] = []
    while True:
        try:
            slots.append(log.read(len(slots) + 1))
        except NotFound:
            return slots


def check(bucket: Bucket, accepted: list[Slot]) -> None:
    """No checkpoint of an older owner behind a newer one's slot, and the newest accepted one is found."""
    slots = history(bucket)
    assert [s.epoch for s in slots] == sorted(s.epoch for s in slots)
    written = [s for s in slots if s.kind == "checkpoint"]
    assert sorted(accepted, key=lambda s: s.n) == written
    assert [s.generation for s in written] == list(range(1, len(written) + 1))
    last = SlotLog(bucket, "ses_1").last()
    if written:
        assert last is not None
        assert (last.tree, last.generation) == (written[-1].tree, written[-1].generation)
    else:
        assert last is None


def test_a_new_log_has_no_checkpoint() -> None:
    log = SlotLog(open_bucket("memory:"), "ses_1")
    assert log.last() is None
    assert log.seal(1) is None
    assert log.last() is None


def test_a_seal_ends_the_older_owner() -> None:
    bucket = open_bucket("memory:")
    old, new = SlotLog(bucket, "ses_1"), SlotLog(bucket, "ses_1")
    old.seal(1)
    first = save(old, 1, "one")
    assert (first.n, first.generation) == (2, 1)
    sealed = new.seal(2)
    assert sealed is not None
    assert (sealed.tree, sealed.generation) == ("one", 1)
    late: list[Callable[[], object]] = [lambda: save(old, 1, "late"), lambda: old.seal(1)]
    for act in late:
        with pytest.raises(Conflict) as caught:
            act()
        assert caught.value.code == "sealed"
    second = save(new, 2, "two", "one")
    check(bucket, [first, second])


def test_a_restarted_old_owner_is_refused_too() -> None:
    """It has seen nothing of the log and must not append behind the seal."""
    bucket = open_bucket("memory:")
    SlotLog(bucket, "ses_1").seal(5)
    with pytest.raises(Conflict):
        save(SlotLog(bucket, "ses_1"), 4)


def test_seal_may_be_repeated() -> None:
    bucket = open_bucket("memory:")
    log = SlotLog(bucket, "ses_1")
    log.seal(3)
    slot = save(log, 3)
    assert SlotLog(bucket, "ses_1").seal(3) == slot
    assert len(history(bucket)) == 2


class LosesAnswers(Bucket):
    """Writes, and then says that somebody else did: what a retried request over a network may look like."""

    def put_new(self, name: str, data: bytes) -> None:
        super().put_new(name, data)
        raise Conflict("exists", code="exists")


def test_an_answer_that_got_lost_is_not_another_owner() -> None:
    bucket = LosesAnswers(open_bucket("memory:")._store)
    log = SlotLog(bucket, "ses_1")
    log.seal(1)
    slot = save(log, 1)
    check(bucket, [slot])


@pytest.mark.parametrize("hint", [None, b"", b"{}", b'{"n": 3}', b'{"n": 99}', b'{"n": "x"}', b'{"n": -1}', b"[1]"])
def test_the_end_is_found_without_a_good_hint(hint: bytes | None) -> None:
    bucket = open_bucket("memory:")
    log = SlotLog(bucket, "ses_1")
    slots = [save(log, 1, f"t{i}") for i in range(37)]
    if hint is None:
        bucket.delete("logs/ses_1/hint")
    else:
        bucket.put("logs/ses_1/hint", hint)
    assert SlotLog(bucket, "ses_1").last() == slots[-1]
    slots.append(save(SlotLog(bucket, "ses_1"), 1, "new"))
    check(bucket, slots)


class Counts(Bucket):
    asked = 0

    def size(self, name: str) -> int:
        self.asked += 1
        return super().size(name)


def test_the_end_of_a_long_log_costs_few_questions() -> None:
    """3,000 slots and no hint: not 3,000 questions."""
    bucket = Counts(open_bucket("memory:")._store)
    log = SlotLog(bucket, "ses_1")
    for _ in range(3000):
        save(log, 1)
    bucket.delete("logs/ses_1/hint")
    bucket.asked = 0
    assert SlotLog(bucket, "ses_1").seal(2) is not None
    assert bucket.asked < 60


@pytest.mark.parametrize(
    "change", [{"n": 5}, {"epoch": "1"}, {"kind": "x"}, {"tree": None}, {"more": 1}, {"files": True}]
)
def test_a_damaged_slot_is_corrupt(change: dict[str, object]) -> None:
    bucket = open_bucket("memory:")
    save(SlotLog(bucket, "ses_1"), 1)
    name = "logs/ses_1/000000000001"
    bucket.put(name, json.dumps({**json.loads(bucket.get(name)), **change}).encode())
    with pytest.raises(StorageFailed) as caught:
        SlotLog(bucket, "ses_1").last()
    assert caught.value.code == "corrupt"


@pytest.mark.parametrize("key", ["", "a/b", "..", "x" * 201])
def test_keys_cannot_lead_elsewhere(key: str) -> None:
    with pytest.raises(Invalid):
        SlotLog(open_bucket("memory:"), key)


def test_what_was_folded_is_taken_away_and_its_slots_stay_taken() -> None:
    """Nobody who reads meanwhile takes a part for the whole, and an older owner's next slot is there already."""
    bucket = Interrupted(open_bucket("memory:"))
    log, late = SlotLog(bucket, "ses_1"), SlotLog(bucket, "ses_1")
    save(log, 1, "one")
    changes = [b"\xff" * 9000, b"small", b"\n{" * 4000]
    for generation, payload in enumerate(changes, 1):
        log.append_changes(payload, epoch=1, generation=generation)
        late.last()
    found = log.last_whole()
    assert found is not None
    newest = found[0]
    assert found == (newest, changes)

    def fold() -> None:
        log.append(epoch=1, template="p", tree="two", previous="one", files=1, bytes=1, generation=newest.generation)
        log.empty(newest)
        log.empty(newest)

    bucket.before_get = [fold]
    read = SlotLog(bucket, "ses_1").last_whole()
    assert read is not None
    assert (read[0].tree, read[0].generation, read[1]) == ("two", newest.generation, [])
    kinds = [(slot.kind, slot.generation) for slot in map(log.read, range(1, 6))]
    assert kinds == [("checkpoint", 1), ("folded", 2), ("changes", 3), ("folded", 4), ("checkpoint", 4)]
    assert log.read_whole(3)[1] == b"small"
    assert all(bucket.size(each.name) < 500 for each in bucket.list("logs"))
    assert not any("carries changes" in slot.fault for slot in every_slot(bucket))
    assert late.append_changes(b"more", epoch=1, generation=4).n == 6


def test_a_log_knows_how_much_lies_in_slots_since_its_last_tree() -> None:
    log = SlotLog(open_bucket("memory:"), "ses_1")
    save(log, 1, "one")
    assert log.unfolded_bytes == 0
    log.append_changes(b"x" * 900, epoch=1, generation=1)
    log.append_changes(b"x" * 100, epoch=1, generation=2)
    log.seal(2)
    assert log.unfolded_bytes == 1000
    save(log, 2, "two")
    assert log.unfolded_bytes == 0


def test_what_others_left_in_slots_counts_too() -> None:
    """After a restart, or while a session was at home elsewhere; and the slots of a neighbour do not."""
    bucket = open_bucket("memory:")
    first = SlotLog(bucket, "ses_1")
    other = SlotLog(bucket, "ses_12")
    for log in (first, other):
        save(log, 1, "one")
        log.append_changes(b"x" * 90_000, epoch=1, generation=1)
        save(log, 1, "two")
        log.append_changes(b"x" * 10_000, epoch=1, generation=3)
        log.append_changes(b"x" * 10_000, epoch=1, generation=4)
    later = SlotLog(bucket, "ses_1")
    later.seal(2)
    later.append_changes(b"x" * 5000, epoch=2, generation=5)
    assert later.unfolded_bytes is not None
    assert 25_000 <= later.unfolded_bytes < 27_000
    first.seal(3)
    first.append_changes(b"x" * 1000, epoch=3, generation=6)
    assert first.unfolded_bytes is not None
    assert 26_000 <= first.unfolded_bytes < 29_000
    assert save(first, 3, "three").since == 0
    assert first.unfolded_bytes == 0


class Interrupted(Bucket):
    """Runs something of somebody else's right before a slot is created, or what slots carry is read."""

    def __init__(self, bucket: Bucket) -> None:
        super().__init__(bucket._store)
        self.others: list[Callable[[], None]] = []
        self.before_get: list[Callable[[], None]] = []

    def put_new(self, name: str, data: bytes) -> None:
        if self.others:
            self.others.pop()()
        super().put_new(name, data)

    def get(self, name: str) -> bytes:
        if self.before_get and name.endswith("2"):
            self.before_get.pop()()
        return super().get(name)


STEPS = st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["append", "seal", "restart"])), max_size=25)


@given(STEPS, STEPS)
@settings(max_examples=300)
def test_owners_that_interrupt_one_another_keep_one_history(
    steps: list[tuple[int, str]], between: list[tuple[int, str]]
) -> None:
    """Four owners act in any order, and each act may be cut in two by another's at the worst moment."""
    bucket = Interrupted(open_bucket("memory:"))
    logs = [SlotLog(bucket, "ses_1") for _ in range(4)]
    accepted: list[Slot] = []

    def act(owner: int, what: str) -> None:
        epoch = owner + 1
        try:
            if what == "append":
                accepted.append(save(logs[owner], epoch, f"{owner}-{len(accepted)}"))
            elif what == "seal":
                logs[owner].seal(epoch)
            else:
                logs[owner] = SlotLog(bucket, "ses_1")
        except Conflict as error:
            assert error.code == "sealed"  # noqa: PT017 - a refusal is one of two good ends
            assert any(slot.epoch > epoch for slot in history(bucket))

    bucket.others = [lambda s=step: act(*s) for step in between]  # type: ignore[misc]
    for step in steps:
        act(*step)
    bucket.others = []
    check(bucket, accepted)


@pytest.mark.parametrize("seed", range(5))
def test_owners_that_race_in_threads_keep_one_history(seed: int) -> None:
    bucket = open_bucket("memory:")
    accepted: list[Slot] = []
    start = threading.Barrier(4)

    def own(epoch: int) -> None:
        dice = random.Random(f"{seed} {epoch}")
        log = SlotLog(bucket, "ses_1")
        start.wait(10)
        try:
            for _ in range(dice.randint(0, 20)):
                log.last()
            log.seal(epoch)
            for i in range(30):
                accepted.append(save(log, epoch, f"{epoch}-{i}"))
        except Conflict as error:
            assert error.code == "sealed"  # noqa: PT017

    threads = [threading.Thread(target=own, args=(epoch,)) for epoch in (1, 2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len([s for s in accepted if s.epoch == 4]) == 30
    check(bucket, accepted)
