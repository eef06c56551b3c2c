"""Collecting garbage: what is alive stays byte for byte whatever happens beside it, and what is dead goes."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dovecote.errors import Conflict, StorageFailed
from dovecote.host.storage.bucket import Bucket, local_bucket, open_bucket
from dovecote.host.storage.change import Change, render_change
from dovecote.host.storage.condemned import LONGEST_SAVE, condemned_name
from dovecote.host.storage.frames import pack, parse_table, table_bytes, unpack
from dovecote.host.storage.garbage import Collected, collect_garbage
from dovecote.host.storage.log import SlotLog
from dovecote.host.storage.manifest import Entry, Kind
from dovecote.host.storage.marking import KEPT_SAVES, References
from dovecote.host.storage.packs import PackWriter, Source
from dovecote.host.storage.pins import write_pins
from dovecote.host.storage.repacking import WORTH_BELOW
from dovecote.host.storage.stored import (
    digest_in,
    packed_locations,
    pieces_of,
    read_locations,
    read_part,
    read_root,
    stored_name,
)
from dovecote.host.storage.trees import Trees
from tests.unit.garbage_world import START, Actor, SteppedBucket
from tests.unit.test_storage_objects import packs_at

FAST = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # many small files, no need to keep any
HOUR = 3600.0
DAY = timedelta(hours=25).total_seconds()
PLANS = ("a", "ab", "bc", "abc", "d", "ad")
SLACK = 16 * HOUR  # what may pass between the last look at the clock and the name that counts, and before a late delete


@dataclass
class World:
    """Two hosts, a store, and records that name trees."""

    directory: Path
    bucket: SteppedBucket
    hosts: list[Trees] = field(default_factory=list)
    records: dict[str, dict[bytes, bytes]] = field(default_factory=dict)  # digest -> path -> content
    running: list[Actor] = field(default_factory=list)
    busy: dict[int, Actor] = field(default_factory=dict)  # a host's saves take turns: they wait for its locks
    made: int = 0

    def start_host(self, number: int, *, is_new: bool = False) -> None:
        cache = self.directory / f"cache{number}"
        if is_new:
            self.made += 1
            cache = self.directory / f"cache-new-{self.made}"
        self.hosts[number].close()
        self.hosts[number] = Trees(self.bucket, cache, clock=self.bucket.clock)

    def references(self) -> References:
        return References(frozenset(self.records), {})

    def save(self, host: int, plan: str, template: str | None) -> None:
        """What a host does: save, and only then let a record name it."""
        trees = self.hosts[host]
        directory = self.directory / "plans" / plan
        try:
            if template is None:
                saved = trees.save_directory(directory)
            else:
                saved = trees.save_delta(directory, directory, id_base=0, template=template)
        except StorageFailed as error:
            if error.code != "save_too_slow":
                raise
            return
        if template is None or template in self.records:
            self.records[saved.digest] = contents(directory)

    def collect(self) -> None:
        with suppress(Conflict):
            collect_garbage(self.bucket, self.references, records="db", clock=self.bucket.clock)

    def advance(self, seconds: float) -> None:
        if all(actor.advanced + seconds <= SLACK for actor in self.running):
            self.bucket.seconds += seconds
            for actor in self.running:
                actor.advanced += seconds

    def check(self) -> None:
        for digest, files in self.records.items():
            assert read_files(self.bucket, digest) == files
            template = read_root(self.bucket, digest).template.hex()
            if template:
                read_files(self.bucket, template)


def contents(directory: Path) -> dict[bytes, bytes]:
    return {os.fsencode(path.name): path.read_bytes() for path in directory.iterdir() if path.is_file()}


def read_files(bucket: Bucket, digest: str) -> dict[bytes, bytes]:
    """All files of a tree from the store alone."""
    files: dict[bytes, bytes] = {}
    for part in read_root(bucket, digest).parts:
        entries = read_part(bucket, part)
        located = read_locations(bucket, part.digest.hex(), entries)
        for entry in entries:
            if entry.digest:
                pieces = located[entry.digest]
                files[entry.path] = b"".join(
                    unpack(bucket.get_range(p.pack, p.offset, p.stored), p.raw) for p in pieces
                )
    return files


def reachable(bucket: Bucket, trees: set[str]) -> set[str]:
    names: set[str] = set()
    for digest in trees | {read_root(bucket, tree).template.hex() for tree in trees} - {""}:
        names.add(stored_name("trees", digest))
        for part in read_root(bucket, digest).parts:
            names |= {stored_name(kind, part.digest.hex()) for kind in ("manifests", "locations")}
            names |= {stored_name("times", part.times.hex())} if part.times else set()
            located = read_locations(bucket, part.digest.hex(), read_part(bucket, part))
            names |= {piece.pack for pieces in located.values() for piece in pieces}
    return names


def assert_packs_live(bucket: Bucket, trees: set[str]) -> None:
    """No pack is mostly dead."""
    live: dict[str, dict[int, int]] = {}
    for name in reachable(bucket, trees):
        if name.startswith("manifests/"):
            for piece in pieces_of(bucket, digest_in(name)):
                live.setdefault(piece.pack, {})[piece.offset] = piece.stored
    for name, pieces in live.items():
        assert table_bytes(len(pieces)) + sum(pieces.values()) >= WORTH_BELOW * bucket.size(name)


def stored(bucket: Bucket) -> set[str]:
    kinds = ("trees", "manifests", "times", "locations", "packs")
    return {each.name for kind in kinds for each in Bucket.list(bucket, kind)}


def make_plans(directory: Path) -> None:
    for plan in PLANS:
        at = directory / "plans" / plan
        at.mkdir(parents=True)
        for name in plan:
            (at / name).write_bytes(name.encode() * 1000)
            os.utime(at / name, (1, 1))
        if "b" in plan:  # a part of its own, shared by trees that differ
            (at / "node_modules").mkdir()
            for number in range(64):
                (at / f"node_modules/{number}").symlink_to("x")
                os.utime(at / f"node_modules/{number}", (1, 1), follow_symlinks=False)
            os.utime(at / "node_modules", (1, 1))
        os.utime(at, (1, 1))


def new_world(directory: Path, kind: str) -> World:
    bucket = SteppedBucket(local_bucket(directory / "store") if kind == "local" else open_bucket("memory:"))
    write_pins(bucket, "host", [])
    make_plans(directory)
    hosts = [Trees(bucket, directory / f"cache{n}", clock=bucket.clock) for n in range(2)]
    return World(directory, bucket, hosts)


STEP = st.one_of(
    st.tuples(st.just("step"), st.integers(0, 3), st.integers(1, 12)),
    st.tuples(st.just("save"), st.integers(0, 1), st.sampled_from(PLANS)),
    st.tuples(st.just("delta"), st.integers(0, 1), st.sampled_from(PLANS)),
    st.tuples(st.just("collect"), st.just(0), st.just(0)),
    st.tuples(st.just("forget"), st.integers(0, 5), st.just(0)),
    st.tuples(st.just("crash"), st.integers(0, 3), st.sampled_from(("before", "after"))),
    st.tuples(st.just("hours"), st.sampled_from((1, 7, 25, 49)), st.just(0)),
    st.tuples(st.just("restart"), st.integers(0, 1), st.booleans()),
)


def act(world: World, what: str, which: int, how: object) -> None:
    running = world.running
    if what in ("save", "delta"):
        templates = sorted(t for t in world.records if not read_root(world.bucket, t).template)
        template = templates[0] if templates and what == "delta" else None
        if which not in world.busy:
            world.busy[which] = Actor(lambda: world.save(which, str(how), template))
            running.append(world.busy[which])
    elif what == "collect" and len(running) < 4:
        running.append(Actor(world.collect))
    elif what == "forget" and world.records:
        gone = sorted(world.records)[which % len(world.records)]
        # A record of a delta names its template too, as a session's revision does.
        if not any(read_root(world.bucket, t).template.hex() == gone for t in world.records):
            del world.records[gone]
    elif what == "hours":
        world.advance(which * HOUR)
    elif what == "restart" and not running:
        world.start_host(which, is_new=bool(how))
    elif what in ("step", "crash") and running:
        actor = running[which % len(running)]
        for _ in range(how if isinstance(how, int) else 1):
            if not actor.is_done:
                actor.step(how if isinstance(how, str) else "")
    for actor in [each for each in running if each.is_done]:
        running.remove(actor)
        world.busy = {host: each for host, each in world.busy.items() if each is not actor}
        if actor.error is not None:
            raise actor.error


def interleaved(kind: str, steps: list[tuple[str, int, object]]) -> None:
    with TemporaryDirectory(dir=FAST) as name:
        world = new_world(Path(name), kind)
        try:
            for step in steps:
                act(world, *step)
                if step[0] == "hours":
                    world.check()
            for actor in world.running:
                actor.finish()
            world.busy.clear()
            world.running.clear()
            world.check()
            for _ in range(4):  # two days until trees are gone, one more until their packs are rewritten
                world.advance(DAY)
                world.collect()
                world.check()
            assert stored(world.bucket) == reachable(world.bucket, set(world.records))
            assert_packs_live(world.bucket, set(world.records))
        finally:
            for host in world.hosts:
                host.close()


@settings(max_examples=100, deadline=None)
@given(st.lists(STEP, min_size=5, max_size=60))
def test_whatever_happens_the_living_stay_and_the_dead_go(steps: list[tuple[str, int, object]]) -> None:
    interleaved("memory", steps)


@settings(max_examples=25, deadline=None)
@given(st.lists(STEP, min_size=5, max_size=60))
def test_the_same_in_a_directory(steps: list[tuple[str, int, object]]) -> None:
    interleaved("local", steps)


@settings(max_examples=120, deadline=None)
@given(
    first=st.sampled_from(PLANS),
    second=st.sampled_from(PLANS),
    remembers=st.booleans(),
    rests=st.tuples(*[st.sampled_from((0, 1, 5, 18, 24, 25))] * 2),
    during=st.sampled_from((0, 1, 5, 7, 9)),
    before=st.integers(0, 25),
    order=st.lists(st.booleans(), max_size=60),
    sweeps=st.integers(1, 2),
)
def test_a_save_that_meets_a_collection_loses_nothing(
    first: str,
    second: str,
    remembers: bool,
    rests: tuple[int, int],
    during: int,
    before: int,
    order: list[bool],
    sweeps: int,
) -> None:
    """What it found in the store is condemned, or about to be deleted, at any point of both."""
    with TemporaryDirectory(dir=FAST) as name:
        world = new_world(Path(name), "memory")
        try:
            world.save(0, first, None)
            world.records.clear()
            world.advance(rests[0] * HOUR)
            if sweeps == 2:
                world.advance(DAY)
                world.collect()
            world.advance(rests[1] * HOUR)
            if not remembers:
                world.start_host(0)
            saver = Actor(lambda: world.save(0, second, None))
            world.running.append(saver)
            for _ in range(before):
                if not saver.is_done:
                    saver.step()
            world.advance(during * HOUR)
            collector = Actor(world.collect)
            world.running.append(collector)
            for turn in order:
                actor = saver if turn else collector
                if not actor.is_done:
                    actor.step()
            for actor in (collector, saver):
                actor.finish()
            world.running.clear()
            world.check()
        finally:
            for host in world.hosts:
                host.close()


@dataclass
class Store:
    """A store with one clock and no schedule: what a run does to it."""

    bucket: SteppedBucket
    trees: Trees
    directory: Path
    named: set[str] = field(default_factory=set)
    ended: dict[str, datetime] = field(default_factory=dict)

    def save(self, plan: str) -> str:
        return self.trees.save_directory(self.directory / "plans" / plan).digest

    def run(self, *, dry_run: bool = False, records: str = "db", most: int = 1000) -> Collected | None:
        return collect_garbage(
            self.bucket,
            lambda: References(frozenset(self.named), self.ended),
            records=records,
            clock=self.bucket.clock,
            dry_run=dry_run,
            most=most,
        )

    def day(self) -> Collected | None:
        self.bucket.seconds += DAY
        return self.run()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    bucket = SteppedBucket(open_bucket("memory:"))
    write_pins(bucket, "host", [])
    make_plans(tmp_path)
    trees = Trees(bucket, tmp_path / "cache", clock=bucket.clock)
    yield Store(bucket, trees, tmp_path)
    trees.close()


def slots_of(bucket: Bucket, owner: str) -> list[int]:
    names = [each.name.rpartition("/")[2] for each in bucket.list(f"logs/{owner}")]
    return sorted(int(name) for name in names if name.isdigit())


def append(log: SlotLog, tree: str) -> None:
    log.append(epoch=1, template="", tree=tree, previous=None, files=1, bytes=1)


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


def mostly_dead(directory: Path) -> World:
    """One pack with three files, of which a living tree has one; the next run rewrites it."""
    world = new_world(directory, "memory")
    world.save(0, "abc", None)
    gone = set(world.records)
    world.save(0, "a", None)
    for digest in gone:
        del world.records[digest]
    for _ in range(2):
        world.advance(DAY)
        world.collect()
    world.advance(DAY)
    return world


def packs_of(bucket: Bucket) -> set[str]:
    return {each.name for each in bucket.list("packs")}


def test_of_a_mostly_dead_pack_what_lives_moves_to_another(tmp_path: Path) -> None:
    world = mostly_dead(tmp_path)
    (old,) = packs_of(world.bucket)
    before = world.bucket.size(old)
    would = collect_garbage(world.bucket, world.references, records="db", clock=world.bucket.clock, dry_run=True)
    assert packs_of(world.bucket) == {old}
    done = collect_garbage(world.bucket, world.references, records="db", clock=world.bucket.clock)
    assert done is not None
    assert would is not None
    assert (done.repacked.count, done.repacked.bytes) == (would.repacked.count, would.repacked.bytes)
    assert 0 < done.repacked.bytes < before
    world.check()
    # Hosts that know the old one use it no more.
    world.save(1, "ab", None)
    world.advance(DAY)
    world.collect()
    assert old not in packs_of(world.bucket)
    world.check()
    assert_packs_live(world.bucket, set(world.records))
    again = collect_garbage(world.bucket, world.references, records="db", clock=world.bucket.clock)
    assert again is not None
    assert again.repacked.count == 0


@pytest.mark.parametrize("doom", ["before", "after"])
def test_a_run_that_rewrites_packs_may_be_killed_anywhere(tmp_path: Path, doom: str) -> None:
    moment, was_killed = 0, True
    while was_killed:
        world = mostly_dead(tmp_path / str(moment))
        collector = Actor(world.collect)
        for _ in range(moment):
            if not collector.is_done:
                collector.step()
        was_killed = not collector.is_done
        while not collector.is_done:
            collector.step(doom)
        world.check()
        for _ in range(4):
            world.advance(DAY)
            world.collect()
            world.check()
        assert stored(world.bucket) == reachable(world.bucket, set(world.records))
        assert_packs_live(world.bucket, set(world.records))
        moment += 1
    assert moment > 20


@pytest.mark.parametrize("hours", [0, 5])
@pytest.mark.parametrize("plan", ["ab", "a", "ad"])
def test_a_save_on_top_of_a_pack_that_is_being_rewritten_loses_nothing(tmp_path: Path, plan: str, hours: int) -> None:
    """It looked at the pack at any moment of the run, or the run began at any moment of the save."""
    for moment in range(0, 200, 5):
        world = mostly_dead(tmp_path / str(moment))
        save = partial(world.save, 1, plan, None)
        first = Actor(world.collect if moment % 2 else save)
        for _ in range(moment // 2):
            if not first.is_done:
                first.step()
        is_over = first.is_done
        second = Actor(save if moment % 2 else world.collect)
        second.finish()
        if hours:
            world.advance(hours * HOUR)
        first.finish()
        world.check()
        for _ in range(4):
            world.advance(DAY)
            world.collect()
            world.check()
        for host in world.hosts:
            host.close()
        if is_over and moment > 60:
            break


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


def test_a_pack_whose_frames_are_damaged_stays_for_the_check_to_tell(tmp_path: Path) -> None:
    world = mostly_dead(tmp_path)
    (old,) = packs_of(world.bucket)
    data = bytearray(world.bucket.get(old))
    for row in parse_table(bytes(data)):
        data[row.offset + row.stored - 2] ^= 0xFF
    world.bucket.put(old, bytes(data))
    world.bucket._times[old] = 0.0
    done = collect_garbage(world.bucket, world.references, records="db", clock=world.bucket.clock)
    assert done is not None
    assert done.repacked.count == 0
    assert packs_of(world.bucket) == {old}
    assert not list(world.bucket.list(condemned_name("packs")))


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


def test_grace_begins_when_the_last_name_above_was_condemned(store: Store) -> None:
    """A save that finds a manifest does not look at its packs: they must not go while it may still count."""
    store.save("a")
    (content,) = [each.name for each in store.bucket.list("packs")]
    store.bucket.seconds += DAY
    other = Trees(store.bucket, store.directory / "cache", clock=store.bucket.clock)
    between = Actor(lambda: store.named.add(other.save_directory(store.directory / "plans/ad").digest))
    while content not in other._standing._seen:
        between.step()
    store.run()
    store.bucket.size(condemned_name(content))
    between.finish()
    late = store.named.copy()
    store.named.clear()  # the host died before it told anybody
    store.bucket.seconds += DAY
    third = Trees(store.bucket, store.directory / "cache", clock=store.bucket.clock)
    saver = Actor(lambda: store.named.add(third.save_directory(store.directory / "plans/ad").digest))
    while not any(name.startswith("trees/") for name in third._standing._seen):
        saver.step()
    store.run()
    saver.finish()
    assert store.named == late
    for tree in late:
        assert read_files(store.bucket, tree) == contents(store.directory / "plans/ad")
        for _ in range(2):
            store.day()
        assert read_files(store.bucket, tree) == contents(store.directory / "plans/ad")
    for trees in (other, third):
        trees.close()
