"""Evicting from the host's cache: whoever uses something keeps it, whatever happens beside; the oldest goes first."""

from __future__ import annotations

import io
import os
import shutil
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from dovecote.errors import StorageFailed
from dovecote.host.storage import evicting
from dovecote.host.storage.bucket import Bucket, open_bucket
from dovecote.host.storage.evicting import Evicted, evict
from dovecote.host.storage.manifest import Entry, Kind
from dovecote.host.storage.objects import object_name
from dovecote.host.storage.stored import objects_of, stored_name
from dovecote.host.storage.trees import Trees
from tests.unit.garbage_world import ACTORS, Actor, SteppedBucket

FAST = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
PLANS = ("a", "ab", "bc", "abc", "d", "ad", "e")


def pause() -> None:
    """A moment in which the others may go on."""
    if actor := ACTORS.get(threading.get_ident()):
        actor.pause()


@dataclass
class Host:
    """A cache, and what stands for mounts: trees that are held, each read whenever somebody looks."""

    directory: Path
    bucket: Bucket
    trees: Trees
    saved: list[str] = field(default_factory=list)
    held: dict[str, int] = field(default_factory=dict)
    mounted: set[str] = field(default_factory=set)

    def save(self, plan: str) -> str:
        digest = self.trees.save_directory(self.directory / "plans" / plan).digest
        if digest not in self.saved:
            self.saved.append(digest)
        return digest

    def hold(self, tree: str) -> None:
        """As `Roots` does: it counts as used first, and is mounted when its image is there."""
        self.held[tree] = self.held.get(tree, 0) + 1
        try:
            pause()
            path = self.trees.ensure_image(tree)
            pause()
            assert path.exists()  # the mount opens it
            self.mounted.add(tree)
        except BaseException:
            self.held[tree] -= 1
            raise

    def release(self, tree: str) -> None:
        self.held[tree] -= 1

    def read(self, tree: str) -> None:
        """As an archive does, without a mount."""
        with self.trees.contents(tree) as entries:
            pause()
            for digest in objects_of(entries):
                assert blake3(self.trees.object_file(digest).read_bytes()).digest() == digest
                pause()

    def build(self, number: int) -> None:
        """Contents come to the cache and are nowhere else until they are saved."""
        with self.trees.sink() as sink:
            entries = [Entry(b"", Kind.DIR, 0o755)]
            for n in range(3):
                text = f"{number % 2} {n}".encode() * 300
                pause()
                digest = sink.keep(io.BytesIO(text), len(text))
                entries.append(Entry(f"{n}".encode(), Kind.FILE, 0o644, size=len(text), digest=digest))
            pause()
            saved = self.trees.save_entries(entries).digest
        if saved not in self.saved:
            self.saved.append(saved)

    def needed(self) -> set[str]:
        pause()
        return {tree for tree, holds in self.held.items() if holds} & self.trees.image_files.recorded().keys()

    def let_go(self, trees: Collection[str]) -> None:
        pause()
        for tree in trees:
            if not self.held.get(tree):
                self.mounted.discard(tree)

    def evict(self, goal_bytes: int = 0) -> Evicted:
        return evict(
            self.trees,
            goal=lambda measured: goal_bytes,
            needed=self.needed,
            mounted=lambda: set(self.mounted),
            let_go=self.let_go,
            rest=_now_and_then(),
        )[1]

    def check(self) -> None:
        """Everything that is mounted can be read through its mount."""
        for tree in self.mounted:
            for digest in objects_of(Trees.entries(self.trees, tree)):
                assert blake3(self.trees.object_file(digest).read_bytes()).digest() == digest

    def restart(self) -> None:
        """The process was killed. What it had mounted is found mounted; who held it is known again."""
        self.trees.image_files._settling.stop()
        self.trees._index.close()
        self.trees = Trees(self.bucket, self.directory / "cache")

    def objects(self) -> set[bytes]:
        return {bytes.fromhex(p.parent.name + p.name) for p in self.trees.objects_dir.glob("*/*")}


def _now_and_then() -> Callable[[], None]:
    """Of the rests between folders few matter: those at their ends, and one in between."""
    numbers = count()
    return lambda: pause() if next(numbers) % 128 in (0, 1, 2) else None


def make_plans(directory: Path) -> None:
    for plan in PLANS:
        at = directory / "plans" / plan
        at.mkdir(parents=True)
        for name in plan:
            (at / name).write_bytes(name.encode() * 9000)
            os.utime(at / name, (1, 1))
        os.utime(at, (1, 1))


def make_host(directory: Path, *, stepped: bool = False) -> Host:
    make_plans(directory)
    bucket = open_bucket("memory:")
    bucket = SteppedBucket(bucket) if stepped else bucket
    return Host(directory, bucket, Trees(bucket, directory / "cache"))


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = make_host(tmp_path)
    yield made
    made.trees.close()


def test_what_was_used_last_stays(host: Host) -> None:
    """And what it shares with what goes."""
    trees = [host.save(plan) for plan in ("a", "ab", "d")]
    for tree in trees:
        host.hold(tree)
        host.release(tree)
    for tree, at in zip((trees[1], trees[2], trees[0]), (1000, 2000, 3000), strict=True):
        host.trees.image_files._used[tree] = at
    for path in host.trees.objects_dir.glob("*/*"):
        os.utime(path, (500, 500))
    kept = ("objects", "images/*.erofs", "parts")
    files = [p for kind in kept for p in (host.directory / "cache").glob(f"{kind}/**/*" if "." not in kind else kind)]
    host.evict(sum(path.stat().st_blocks * 512 for path in files if path.is_file()) - 1)
    left = {bytes([blob[0]]) for blob in (host.trees.object_file(d).read_bytes() for d in host.objects())}
    assert left == {b"a", b"d"}
    assert host.trees.image_files.recorded().keys() == {trees[0], trees[2]}
    host.evict(0)
    assert host.objects() == set()


def test_nothing_goes_when_there_is_room(host: Host) -> None:
    host.hold(host.save("ab"))
    host.release(host.saved[0])
    before = host.objects()
    assert host.evict(1 << 30).files == 0
    assert host.objects() == before
    assert host.trees.image_files.forget(host.saved[0])


@pytest.mark.parametrize("harm", ["index", "keys", "torn", "record"])
def test_what_is_mounted_stays_though_the_host_has_forgotten_what_it_points_at(host: Host, harm: str) -> None:
    """Then the store says it."""
    tree, other = host.save("ab"), host.save("bc")
    for each in (tree, other):
        host.hold(each)
    host.release(other)
    cache = host.directory / "cache"
    host.restart()
    if harm == "index":
        host.trees._index.close()
        (cache / "index.sqlite").write_bytes(b"nonsense")
        host.trees = Trees(host.bucket, cache)
    elif harm == "record":
        (cache / f"images/{tree}.json").unlink()
    for path in (cache / "parts").iterdir() if harm in ("keys", "torn") else ():
        path.write_bytes(path.read_bytes()[:-9]) if harm == "torn" else path.unlink()
    done = host.evict()
    host.check()
    assert done.files >= 1
    assert len(host.objects()) == 2


def test_nothing_is_deleted_when_nobody_can_say_what_a_mounted_tree_points_at(host: Host) -> None:
    tree = host.save("ab")
    host.hold(tree)
    host.hold(host.save("d"))
    host.release(host.saved[1])
    shutil.rmtree(host.directory / "cache/parts")
    (host.directory / "cache/parts").mkdir()
    host.bucket.delete(stored_name("trees", tree))
    before = host.objects()
    with pytest.raises(StorageFailed) as caught:
        host.evict()
    assert caught.value.code == "corrupt"
    assert host.objects() == before


def test_a_run_deletes_a_bounded_number_and_the_next_goes_on(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evicting, "MOST", 2)
    host.hold(host.save("abc"))
    host.held.clear()
    done = host.evict()
    assert (done.files >= 2, done.is_whole, len(host.objects())) == (True, False, 1)
    assert host.evict().is_whole
    assert host.objects() == set()
    host.hold(host.saved[0])
    host.check()


def test_what_was_evicted_is_fetched_again_and_what_is_left_is_not_looked_up_unchecked(host: Host) -> None:
    tree = host.save("abc")
    image = host.trees.ensure_image(tree)
    host.evict()
    assert not image.exists()
    assert host.trees.ensure_image(tree) == image
    assert {object_name(digest) for digest in objects_of(host.trees.entries(tree))} == {
        f"{path.parent.name}/{path.name}" for path in host.trees.objects_dir.glob("*/*")
    }


STEP = st.one_of(
    st.tuples(st.just("step"), st.integers(0, 4), st.integers(1, 12)),
    st.tuples(st.just("save"), st.integers(0, 6), st.just(0)),
    st.tuples(st.just("hold"), st.integers(0, 9), st.just(0)),
    st.tuples(st.just("release"), st.integers(0, 9), st.just(0)),
    st.tuples(st.just("read"), st.integers(0, 9), st.just(0)),
    st.tuples(st.just("build"), st.integers(0, 9), st.just(0)),
    st.tuples(st.just("evict"), st.sampled_from((0, 0, 30_000, 90_000)), st.just(0)),
    st.tuples(st.just("crash"), st.integers(0, 1), st.just(0)),
)


@dataclass
class Run:
    host: Host
    running: list[Actor] = field(default_factory=list)
    busy: dict[str, Actor] = field(default_factory=dict)  # two who check one tree wait for its lock

    def act(self, what: str, which: int, how: int) -> None:
        host = self.host
        tree = host.saved[which % len(host.saved)] if host.saved else None
        if what == "step" and self.running:
            actor = self.running[which % len(self.running)]
            for _ in range(how):
                if not actor.is_done:
                    actor.step()
        elif what == "crash" and which == 0:
            self.crash()
        elif what == "evict":
            self.start("evict", lambda: host.evict(which))
        elif what == "release":
            held = sorted(tree for tree in host.mounted if host.held.get(tree))
            if held:
                host.release(held[which % len(held)])
        elif what == "save":
            self.start("", lambda: host.save(PLANS[which]))
        elif what == "build":
            self.start("", lambda: host.build(which))
        elif what == "hold" and tree:
            self.start(tree, lambda: host.hold(tree))
        elif what == "read" and tree:
            self.start(tree, lambda: host.read(tree))
        self.reap()

    def start(self, what: str, act: Callable[[], object]) -> None:
        if len(self.running) >= 5 or what in self.busy:
            return
        actor = Actor(act)
        self.running.append(actor)
        if what:
            self.busy[what] = actor

    def reap(self) -> None:
        for actor in [each for each in self.running if each.is_done]:
            self.running.remove(actor)
            self.busy = {what: each for what, each in self.busy.items() if each is not actor}
            if actor.error is not None:
                raise actor.error

    def crash(self) -> None:
        """Everybody dies where he stands; mounts stay, and holds of what is mounted are taken again."""
        for actor in self.running:
            while not actor.is_done:
                actor.step("before")
        self.running.clear()
        self.busy.clear()
        host = self.host
        host.held = {tree: holds for tree, holds in host.held.items() if tree in host.mounted}
        host.restart()


@settings(max_examples=150, deadline=None)
@given(st.lists(STEP, min_size=8, max_size=70))
def test_nobody_misses_what_was_evicted_beside_him(steps: list[tuple[str, int, int]]) -> None:
    """Saves, claims, reads and builds, interleaved with evictions and crashes at every call of the store and more."""
    with TemporaryDirectory(dir=FAST) as name:
        host = make_host(Path(name), stepped=True)
        run = Run(host)
        try:
            host.save("ab")
            host.hold(host.save("bc"))
            for step in steps:
                run.act(*step)
                host.check()
            for actor in run.running:
                actor.finish()
            host.check()
            host.held.clear()
            host.mounted.clear()
            host.evict()
            assert host.objects() == set()
            assert not list((host.directory / "cache/images").iterdir())
            assert not list((host.directory / "cache/parts").iterdir())
            for tree in host.saved:
                host.hold(tree)
            host.check()
        finally:
            host.trees.close()


ACTS: dict[str, Callable[[Host], object]] = {
    "claim": lambda host: host.hold(host.saved[0]),
    "claim of another": lambda host: host.hold(host.saved[1]),
    "two claims": lambda host: [*map(host.hold, host.saved)],
    "save and claim": lambda host: host.hold(host.save("abc")),
    "read": lambda host: host.read(host.saved[0]),
    "build": lambda host: host.build(1),
}


@pytest.mark.parametrize("name", ACTS)
def test_whatever_comes_at_any_moment_of_an_eviction_finds_its_files(tmp_path: Path, name: str) -> None:
    """Of trees that were used before, so that one look would be enough to trust them."""
    for moment in range(100):
        host = make_host(tmp_path / str(moment), stepped=True)
        for plan in ("ab", "bc"):
            host.hold(host.save(plan))
        host.held.clear()  # idle, and still mounted
        evictor = Actor(host.evict)
        for _ in range(moment):
            if not evictor.is_done:
                evictor.step()
        is_over = evictor.is_done
        ACTS[name](host)
        evictor.finish()
        host.check()
        host.trees.close()
        if is_over:
            break
    assert is_over
    assert moment > 8
