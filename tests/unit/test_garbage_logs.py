"""Collecting garbage where logs of sessions lead to what is stored."""

from __future__ import annotations

import os
import struct
import tracemalloc
from datetime import timedelta

import pytest

from dovecote.errors import Conflict
from dovecote.host.storage.bucket import Bucket, open_bucket
from dovecote.host.storage.change import Change, render_change
from dovecote.host.storage.frames import pack
from dovecote.host.storage.log import SlotLog
from dovecote.host.storage.manifest import Entry, Kind, digest_of
from dovecote.host.storage.marking import KEPT_SAVES, References, read_roots
from dovecote.host.storage.packs import PackWriter
from dovecote.host.storage.payload import render_payload
from dovecote.host.storage.pins import write_pins
from dovecote.host.storage.sources import Source
from dovecote.host.storage.stored import packed_locations
from tests.unit.garbage_stores import (
    PLANS,
    Store,
    opened_store,  # noqa: F401 - a fixture
    reachable,
    stored,
)
from tests.unit.garbage_world import START
from tests.unit.test_storage_objects import packs_at


def slots_of(bucket: Bucket, owner: str) -> list[int]:
    names = [each.name.rpartition("/")[2] for each in bucket.list(f"logs/{owner}")]
    return sorted(int(name) for name in names if name.isdigit())


def append(log: SlotLog, tree: str) -> None:
    log.append(epoch=1, template="", tree=tree, previous=None, files=1, bytes=1)


def test_a_deleted_session_gives_its_bytes_back_and_a_living_one_keeps_its_log(store: Store) -> None:
    for owner, plan in (("ses_dead", "abc"), ("ses_live", "d"), ("ses_unknown", "ad")):
        log = SlotLog(store.bucket, owner, clock=store.bucket.clock)
        log.seal(1)
        append(log, store.save(plan))
    store.ended["ses_dead"] = START
    for _ in range(5):
        store.day()
    assert slots_of(store.bucket, "ses_dead") == []
    assert slots_of(store.bucket, "ses_live") == slots_of(store.bucket, "ses_unknown") == [1, 2]
    last = [SlotLog(store.bucket, owner).last() for owner in ("ses_live", "ses_unknown")]
    assert stored(store.bucket) == reachable(store.bucket, {slot.tree for slot in last if slot})


@pytest.mark.parametrize("has_hint", [True, False])
def test_the_newest_slot_is_found_and_sealing_works_after_old_ones_went(store: Store, has_hint: bool) -> None:
    log = SlotLog(store.bucket, "ses_1", clock=store.bucket.clock)
    stale = SlotLog(store.bucket, "ses_1", clock=store.bucket.clock)
    log.seal(1)
    trees = [store.save(plan) for plan in PLANS]
    append(log, trees[0])
    assert stale.last() is not None
    for tree in trees[1:]:
        append(log, tree)
    store.day()
    assert len(slots_of(store.bucket, "ses_1")) == KEPT_SAVES
    if not has_hint:
        store.bucket.delete("logs/ses_1/hint")
    newest = SlotLog(store.bucket, "ses_1", clock=store.bucket.clock).last()
    assert newest is not None
    assert newest.tree == trees[-1]
    sealed = SlotLog(store.bucket, "ses_1", clock=store.bucket.clock).seal(2)
    assert sealed is not None
    assert sealed.tree == trees[-1]
    # Whoever saw the log before its slots went must not begin it anew behind the slot that it remembers.
    with pytest.raises(Conflict) as caught:
        append(stale, trees[1])
    assert caught.value.code == "sealed"


def test_changes_that_are_not_folded_keep_their_packs(store: Store) -> None:
    """Only the log leads to them."""
    packs = packs_at(store.directory / "other", store.bucket)
    writer = PackWriter(packs)
    path = store.directory / "new"
    path.write_bytes(b"new" * 500)
    content = writer.absorb([Source(b"new", os.fsencode(path), 1500)])[b"new"]
    writer.flush()
    change = Change(frozenset(), (Entry(b"new", Kind.FILE, 0o644, size=content.size, digest=content.digest),))
    raw = pack(render_change(change))
    payload = struct.pack("<I", len(raw)) + raw + packed_locations([content.digest], writer.located)
    log = SlotLog(store.bucket, "ses_1", clock=store.bucket.clock)
    append(log, store.save("a"))
    log.append_changes(payload, epoch=1, generation=1)
    written = writer.located[content.digest][0].pack
    for _ in range(3):
        store.day()
    assert store.bucket.size(written)
    packs.index.close()


def test_packs_that_a_slot_of_a_log_names_are_not_rewritten(store: Store) -> None:
    """Nobody can change a slot."""
    packs = packs_at(store.directory / "other", store.bucket)
    writer = PackWriter(packs)
    sources = []
    for name in ("kept", "dead", "dead too"):
        path = store.directory / name
        path.write_bytes(os.urandom(400))
        sources.append(Source(name.encode(), os.fsencode(path), 400))
    content = writer.absorb(sources)[b"kept"]
    writer.flush()
    raw = pack(
        render_change(
            Change(frozenset(), (Entry(b"kept", Kind.FILE, 0o644, size=content.size, digest=content.digest),))
        )
    )
    payload = struct.pack("<I", len(raw)) + raw + packed_locations([content.digest], writer.located)
    log = SlotLog(store.bucket, "ses_1", clock=store.bucket.clock)
    append(log, store.save("d"))
    log.append_changes(payload, epoch=1, generation=1)
    written = writer.located[content.digest][0].pack
    for _ in range(4):
        done = store.day()
        assert done is not None
        assert done.repacked.count == 0
    assert store.bucket.size(written)
    packs.index.close()


def test_what_slots_carry_is_not_held_until_all_of_a_log_is_read() -> None:
    bucket = open_bucket("memory:")
    log = SlotLog(bucket, "ses_1")
    append(log, "aa" * 32)
    for number in range(16):
        data = os.urandom(1 << 20)
        digest = digest_of(data)
        change = Change(frozenset(), (Entry(b"new", Kind.FILE, 0o644, size=len(data), digest=digest),))
        payload = render_payload(change, {}, [(digest, 0, pack(data), len(data))])
        log.append_changes(payload, epoch=1, generation=number + 1)
    write_pins(bucket, "host", [])
    tracemalloc.start()
    try:
        roots = read_roots(
            bucket, lambda: References(frozenset(), {}), now=START, grace=timedelta(days=1), stop=lambda: None
        )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert roots.slots == 17
    assert peak < 8 << 20
