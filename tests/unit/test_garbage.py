"""Collecting garbage: what is alive stays byte for byte, and what is dead goes."""

from __future__ import annotations

import pytest

from dovecote.errors import Conflict, StorageFailed
from dovecote.host.storage.condemned import LONGEST_SAVE, condemned_name
from dovecote.host.storage.pins import write_pins
from dovecote.host.storage.stored import read_root, stored_name
from dovecote.host.storage.trees import Trees
from tests.unit.garbage_stores import (
    DAY,
    HOUR,
    PLANS,
    Store,
    contents,
    opened_store,  # noqa: F401 - a fixture
    reachable,
    read_files,
    stored,
)
from tests.unit.garbage_world import Actor


def test_what_was_condemned_is_written_again_under_another_name(store: Store) -> None:
    """Nobody may count on a name that is about to go, and its content is saved all the same."""
    first = store.save("abc")
    store.day()
    assert store.bucket.size(condemned_name(stored_name("trees", first))) == 0
    again = Trees(store.bucket, store.directory / "cache", clock=store.bucket.clock)
    second = again.save_directory(store.directory / "plans/abc").digest
    again.close()
    assert second != first
    store.named.add(second)
    for _ in range(2):
        store.day()
    assert read_files(store.bucket, second) == contents(store.directory / "plans/abc")
    assert stored(store.bucket) == reachable(store.bucket, {second})


def test_a_condemned_tree_may_not_be_named_again(store: Store) -> None:
    """By whoever remembers it: an image's layers are known by the tree that they made long ago."""
    tree = store.save("a")
    assert store.trees.may_be_named(tree)
    store.day()
    assert not store.trees.may_be_named(tree)


def test_a_dry_run_writes_nothing_and_says_the_same(store: Store) -> None:
    store.save("abc")
    store.bucket.seconds += DAY
    before = stored(store.bucket)
    would = store.run(dry_run=True)
    assert not list(store.bucket.list("condemned"))
    assert not list(store.bucket.list("turns"))
    assert stored(store.bucket) == before
    done = store.run()
    assert would is not None
    assert done is not None


def test_the_records_of_another_database_collect_nothing(store: Store) -> None:
    """A database that was made anew names nothing: with it, everything would go."""
    store.save("a")
    store.run()
    for dry_run in (True, False):
        with pytest.raises(Conflict) as caught:
            store.run(records="another", dry_run=dry_run)
        assert caught.value.code == "other_records"


def test_nothing_is_collected_before_a_host_has_said_what_it_needs(store: Store) -> None:
    store.bucket.delete("pins/host")
    with pytest.raises(StorageFailed) as caught:
        store.run()
    assert caught.value.code == "no_pins"


def test_what_only_a_host_needs_stays(store: Store) -> None:
    tree = store.save("abc")
    write_pins(store.bucket, "host", [tree])
    for _ in range(3):
        store.day()
    assert read_files(store.bucket, tree) == contents(store.directory / "plans/abc")


@pytest.mark.parametrize("kind", ["trees", "locations"])
def test_a_damaged_root_ends_the_run_before_anything_below_it_goes(store: Store, kind: str) -> None:
    tree, _ = store.save("abc"), store.save("d")
    store.named.add(tree)
    store.day()
    part = read_root(store.bucket, tree).parts[0].digest.hex()
    name = stored_name(kind, tree if kind == "trees" else part)
    store.bucket.put(name, b"garbage")
    packs = {each.name for each in store.bucket.list("packs")}
    store.bucket.seconds += DAY
    with pytest.raises(StorageFailed) as caught:
        store.run()
    assert caught.value.code == "corrupt"
    assert {each.name for each in store.bucket.list("packs")} == packs


def test_one_process_collects_at_a_time_and_a_killed_one_is_given_up(store: Store) -> None:
    def collect() -> None:
        store.run()

    collector = Actor(collect)
    for _ in range(12):
        collector.step()
    with pytest.raises(Conflict) as caught:
        store.run()
    assert caught.value.code == "collecting"
    while not collector.is_done:
        collector.step("before")
    store.bucket.seconds += 3 * HOUR
    assert store.run() is not None


def test_a_run_does_a_bounded_amount_of_work(store: Store) -> None:
    for plan in PLANS:
        store.save(plan)
    store.bucket.seconds += DAY
    done = store.run(most=2)
    assert done is not None
    assert (done.condemned.count, done.is_whole) == (2, False)
    assert len(list(store.bucket.list("condemned"))) == 2


def test_a_save_that_took_too_long_does_not_count(store: Store) -> None:
    def save() -> None:
        with pytest.raises(StorageFailed) as caught:
            store.save("abc")
        assert caught.value.code == "save_too_slow"

    saver = Actor(save)
    saver.step()
    store.bucket.seconds += LONGEST_SAVE + HOUR
    saver.finish()
    assert not list(store.bucket.list("trees"))
