"""Collecting garbage while hosts save, crash and go on: what is alive stays whatever happens beside it."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from dovecote.host.storage.condemned import condemned_name
from dovecote.host.storage.stored import read_root
from dovecote.host.storage.trees import Trees
from tests.unit.garbage_stores import (
    DAY,
    HOUR,
    PLANS,
    Store,
    World,
    assert_packs_live,
    contents,
    new_world,
    opened_store,  # noqa: F401 - a fixture
    reachable,
    read_files,
    stored,
)
from tests.unit.garbage_world import Actor

FAST = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # many small files, no need to keep any
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
