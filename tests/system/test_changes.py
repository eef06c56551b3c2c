"""What is found by generation and put on top of a tree is what a look at the whole upper finds, to the byte."""

from __future__ import annotations

import errno
import mmap
import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import anyio
import pytest

from dovecote.errors import NotFound, StorageFailed
from dovecote.host.storage import btrfs
from dovecote.host.storage.bucket import open_bucket
from dovecote.host.storage.change import TooTangled
from dovecote.host.storage.ignoring import Chosen
from dovecote.host.storage.payload import YOUNG_NS, parse_payload
from dovecote.host.storage.pool import BtrfsDisks, Touched
from dovecote.host.storage.trees import Trees, TreeSaved
from dovecote.model.patterns import Pattern
from tests.system.tree_rig import Life, Rig

pytestmark = pytest.mark.system

STEPS = 24


class World:
    """One upper on a real pool, written to through a real overlay, and what its log would hold."""

    def __init__(self, directory: Path) -> None:
        self.disks = BtrfsDisks(directory / "pool", directory / "at", max_bytes=1 << 30)
        anyio.run(self.disks.ensure)
        self.rig = Rig(directory)
        self.trees = Trees(open_bucket("memory:"), directory / "cache")
        self.wholes = Trees(open_bucket("memory:"), directory / "other-cache")  # has what the log alone must keep
        root = self.rig.folder("template")
        for name in ("lib/deep/er", "etc", "home"):
            (root / name).mkdir(parents=True)
        for i in range(12):
            (root / f"lib/l{i}").write_text(f"template {i}")
            (root / f"lib/deep/er/d{i}").write_text(f"deep {i}")
        self.template = self.trees.save_directory(root).digest
        self.wholes.save_directory(root)
        disk = anyio.run(lambda: self.disks.create("disk", max_bytes=500 << 20, owner=0))
        for made in ("upper", "work"):
            (disk / made).rmdir()
        self.life: Life = self.rig.life(self.wholes, self.template, None, base=disk)
        self.root = self.life.root
        self.tree: str | None = None
        self.payloads: list[bytes] = []
        self.tangled = 0
        self.count = 0
        self.patterns: tuple[Pattern, ...] = ()

    def close(self) -> None:
        self.rig.close()
        self.trees.close()
        self.wholes.close()
        anyio.run(self.disks.remove)

    def checkpoint(self) -> tuple[str, TreeSaved]:
        """The tree that the log stands for now, and the one that a look at everything makes."""
        self.count += 1
        name = f"s{self.count}"
        snapshot = anyio.run(lambda: self.disks.snapshot("disk", name))
        rules = Chosen(self.patterns).rules
        whole = self.life.save(snapshot / "upper", rules=rules)
        changed = anyio.run(lambda: self.disks.changed("disk", snapshot=name, most=10_000))
        if self.tree is None or changed is None:
            self.tree = self.life.save(snapshot / "upper", rules=rules, trees=self.trees).digest
        else:
            self._append(snapshot, changed)
        anyio.run(lambda: self.disks.mark("disk", name))
        return self.trees.fold(self.tree, self.payloads).digest, whole

    def _append(self, snapshot: Path, changed: Sequence[Touched]) -> None:
        merged = self.rig.mount(
            "overlay", "o", f"lowerdir={snapshot / 'upper'}:{self.life.lower},metacopy=on,redirect_dir=follow", 1
        )
        try:
            made = self.trees.save_change(
                snapshot / "upper",
                self.disks.mark_of("disk") / "upper",
                merged,
                changed=changed,
                id_base=0,
                rules=Chosen(self.patterns).rules,
            )
            if made is not None:
                self.payloads.append(made[0])
        except TooTangled:
            self.tangled += 1
            rules = Chosen(self.patterns).rules
            self.tree = self.life.save(snapshot / "upper", rules=rules, trees=self.trees).digest
            self.payloads = []
        finally:
            self.rig.unmount(merged)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    there = World(tmp_path)
    try:
        yield there
    finally:
        there.close()


def test_nothing_written_is_nothing_found(world: World) -> None:
    world.checkpoint()
    assert not anyio.run(lambda: world.disks.is_changed("disk"))
    (world.root / "home/a").write_text("a")
    assert anyio.run(lambda: world.disks.is_changed("disk"))
    world.checkpoint()
    assert len(world.payloads) == 1
    assert not anyio.run(lambda: world.disks.is_changed("disk"))


@pytest.mark.parametrize(
    "write",
    [
        lambda root: root.chmod(0o700),
        lambda root: (root / "lib/deep/er/d1").write_text("other"),
        lambda root: (root / "home/new").touch(),
        lambda root: (root / "etc").rmdir(),
    ],
    ids=["attribute", "deep", "made", "removal"],
)
def test_a_disk_without_a_mark_is_changed_by_the_first_write(world: World, write: Callable[[Path], object]) -> None:
    """Wherever that is; and one that is gone is no reason to fail for the others."""

    def changed() -> frozenset[str]:
        return anyio.run(lambda: world.disks.which_changed({"disk": untouched, "gone": untouched}))

    untouched = world.disks.untouched("disk")
    (world.root / "lib/deep/er/d0").read_text()
    assert changed() == frozenset()
    write(world.root)
    assert changed() == {"disk"}
    with pytest.raises(NotFound):
        anyio.run(lambda: world.disks.is_changed("gone"))


def test_a_disk_that_holds_something_already_is_changed_until_it_has_a_mark(world: World) -> None:
    """A directory that was made for a mount hides from the top what is written below it."""

    def changed() -> frozenset[str]:
        return anyio.run(lambda: world.disks.which_changed({"disk": untouched}))

    (world.root / "home/user/data").mkdir(parents=True)
    untouched = world.disks.untouched("disk")
    assert changed() == {"disk"}
    (world.root / "home/user/work").write_text("x")
    assert changed() == {"disk"}
    world.checkpoint()
    assert changed() == frozenset()
    (world.root / "home/user/work").write_text("y")
    assert changed() == {"disk"}


def test_a_disk_that_cannot_be_asked_counts_as_changed(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The save then fails where it is seen; those beside it are told as ever."""

    async def prepare() -> None:
        for name in ("beside", "unmarked"):
            await world.disks.create(name, max_bytes=1 << 20, owner=0)
        for name in ("disk", "beside"):
            await world.disks.snapshot(name, f"of-{name}")
            await world.disks.mark(name, f"of-{name}")

    anyio.run(prepare)
    asked = {"disk": 0, "unmarked": 0, "gone": 0, "beside": 0}
    device = world.disks.mark_of("disk").stat().st_dev
    generations = btrfs.generations

    def exhausted(disk: int) -> btrfs.Generations:
        if os.fstat(disk).st_dev == device:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return generations(disk)

    def unreadable(name: str) -> int:
        raise StorageFailed(f"disk {name} cannot be read") if name == "unmarked" else NotFound(f"no disk {name}")

    monkeypatch.setattr(btrfs, "generations", exhausted)
    monkeypatch.setattr(world.disks, "untouched", unreadable)
    assert anyio.run(lambda: world.disks.which_changed(asked)) == {"disk", "unmarked"}
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [("disk disk" in each, "disk unmarked" in each) for each in told] == [(True, False), (False, True)]


def test_new_files_are_counted_from_the_newest_that_is_known(world: World) -> None:
    """Thousands too; what is only written to, renamed or deleted is not new."""

    def new(above: int) -> Sequence[int]:
        return anyio.run(lambda: world.disks.new_inodes("disk", above=above))

    (world.root / "home/first").touch()  # and its directory is copied up
    newest = new(0)[-1]
    assert new(newest) == []
    for number in range(3000):
        (world.root / f"home/{number}").touch()
    found = new(newest)
    assert len(found) == 3000
    assert found == sorted(set(found))
    (world.root / "home/1").write_text("written to")
    (world.root / "home/2").rename(world.root / "home/other")
    (world.root / "home/3").unlink()
    assert new(found[-1]) == []


def test_a_store_by_mmap_is_found(world: World) -> None:
    (world.root / "home/db").write_bytes(bytes(8192))
    with (world.root / "home/db").open("r+b") as file, mmap.mmap(file.fileno(), 8192) as memory:
        memory[0] = 1
        world.checkpoint()
        for value in (2, 3):
            memory[4097] = value
            assert anyio.run(lambda: world.disks.is_changed("disk"))
            folded, whole = world.checkpoint()
            assert folded == whole.digest
    assert len(world.payloads) == 2


def test_a_file_that_is_being_written_lies_in_the_slot_of_that_moment(world: World) -> None:
    """Whatever time it claims to be of; what was there before is in a pack, though its attributes are new."""
    world.checkpoint()
    (world.root / "lib/l1").chmod(0o600)  # its content stays in the template
    half, long_ago = world.root / "home/half", (1, 1)
    half.write_bytes(os.urandom(3000))
    os.utime(half, ns=long_ago)
    folded, whole = world.checkpoint()
    assert folded == whole.digest
    entries = {e.path: e for e in world.trees.entries(folded)}
    assert set(parse_payload(world.payloads[-1]).carried) == {entries[b"home/half"].digest}


@pytest.mark.parametrize("seconds", [-(1 << 62), -(10**12), 10**12, 1 << 62])
def test_a_time_that_no_tree_can_hold_is_kept_as_the_nearest(world: World, seconds: int) -> None:
    world.checkpoint()
    (world.root / "home/far").write_text("far")
    os.utime(world.root / "home/far", ns=(1, seconds * 10**9))
    folded, whole = world.checkpoint()
    assert folded == whole.digest


def test_a_copied_up_directory_takes_only_what_changed(world: World) -> None:
    world.checkpoint()
    (world.root / "lib/deep/er/d3").write_text("changed")
    folded, whole = world.checkpoint()
    assert folded == whole.digest
    assert {e.path for e in world.trees.entries(folded)} == {
        b"",
        b"lib",
        b"lib/deep",
        b"lib/deep/er",
        b"lib/deep/er/d3",
    }


def remake(path: Path) -> None:
    """As a build does with its output directory."""
    shutil.rmtree(path)
    path.mkdir()
    (path / "new").write_text("new")


def swap_names(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


@pytest.mark.parametrize("act", [remake, lambda path: swap_names(path, path.with_name("other"))], ids=["made", "moved"])
def test_a_directory_in_the_place_of_another_has_nothing_of_it(world: World, act: Callable[[Path], None]) -> None:
    for name in ("build", "other"):
        # In a directory that the template does not have: overlayfs marks nothing there as opaque.
        (world.root / "home/project" / name / "sub").mkdir(parents=True)
        (world.root / "home/project" / name / "sub" / f"old-{name}").write_text("old")
    world.checkpoint()
    act(world.root / "home/project/build")
    folded, whole = world.checkpoint()
    assert len(world.payloads) == 1
    assert folded == whole.digest


@pytest.mark.parametrize("seed", range(6))
def test_any_sequence_of_changes_gives_the_tree_of_the_whole(
    world: World, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether contents lie in slots or, but for the newest, in packs."""
    monkeypatch.setattr("dovecote.host.storage.payload.YOUNG_NS", YOUNG_NS * (seed % 2))
    chance = random.Random(seed)
    world.checkpoint()
    for step in range(STEPS):
        for _ in range(chance.randint(1, 4)):
            act(chance, world.root)
        folded, whole = world.checkpoint()
        assert folded == whole.digest, (seed, step)
    assert world.tangled < STEPS / 2


def act(chance: random.Random, root: Path) -> None:
    """One thing that a person's tools do to files."""
    everything = sorted(p for p in root.rglob("*") if len(p.relative_to(root).parts) > 1)
    files = [p for p in everything if p.is_file() and not p.is_symlink()]
    folders = [p for p in everything if p.is_dir() and not p.is_symlink()]
    parent = chance.choice([root / "home", root / "lib", *folders])
    new = parent / f"n{chance.randrange(30)}"
    kind = chance.choice(
        [
            "write",
            "write",
            "append",
            "chmod",
            "move",
            "movedir",
            "remove",
            "tree",
            "link",
            "rmtree",
            "swap",
            "remake",
            "swapdirs",
            "xattr",
            "hard",
        ]
    )
    if kind == "write" and not new.is_dir():
        new.unlink(missing_ok=True)
        new.write_text(f"{chance.random()}" * chance.randrange(1, 40))
    elif kind == "append" and files:
        with chance.choice(files).open("a") as file:
            file.write("more")
    elif kind == "chmod" and everything:
        found = chance.choice(everything)
        if not found.is_symlink():
            found.chmod(chance.choice([0o700, 0o755, 0o750]))
    elif kind == "move" and files and not new.is_dir():
        chance.choice(files).rename(new)
    elif kind == "movedir" and folders and not os.path.lexists(new):
        found = chance.choice(folders)
        if not new.is_relative_to(found):
            found.rename(new)
    elif kind == "remove" and files:
        chance.choice(files).unlink()
    elif kind == "tree" and not os.path.lexists(new):
        (new / "x/y").mkdir(parents=True)
        (new / "x/y/z").write_text("z")
    elif kind == "link" and not os.path.lexists(new):
        new.symlink_to("../target")
    elif kind == "rmtree" and folders:
        shutil.rmtree(chance.choice(folders))
    elif kind == "swap" and folders:
        found = chance.choice(folders)
        shutil.rmtree(found)
        found.write_text("a file now")
    elif kind == "remake" and folders:
        remake(chance.choice(folders))
    elif kind == "swapdirs" and len(folders) > 1:
        one, other = chance.sample(folders, 2)
        if not one.is_relative_to(other) and not other.is_relative_to(one):
            swap_names(one, other)
    elif kind == "xattr" and files:
        os.setxattr(chance.choice(files), "user.note", chance.randbytes(4))
    elif kind == "hard" and files and chance.random() < 0.2 and not os.path.lexists(new):
        os.link(chance.choice(files), new)


@pytest.mark.parametrize("seed", range(4))
def test_files_with_several_names_are_told_by_names(world: World, seed: int) -> None:
    """As in the caches of uv and pnpm: linked, written through one name, and their other names moved and removed."""
    chance = random.Random(seed)
    world.checkpoint()
    linked = 0
    for step in range(STEPS):
        act(chance, world.root)
        for _ in range(3):
            files = sorted(p for p in world.root.rglob("*") if p.is_file() and not p.is_symlink())
            new = world.root / f"home/h{chance.randrange(12)}"
            if files and not os.path.lexists(new):
                os.link(chance.choice(files), new)
            elif new.is_file() and chance.random() < 0.5:
                with new.open("a") as file:
                    file.write(f"{step}")
            elif new.is_file():
                new.unlink()
        folded, whole = world.checkpoint()
        linked += any(entry.link for entry in world.trees.entries(folded))
        assert folded == whole.digest, (seed, step)
    assert linked > STEPS / 2
    assert world.tangled < STEPS / 3


def test_a_link_beside_thousands_costs_itself(world: World) -> None:
    home = world.root / "home"
    (home / "cache").mkdir()
    (home / "venv").mkdir()
    for i in range(300):
        (home / f"cache/{i}").write_text(f"{i}")
        os.link(home / f"cache/{i}", home / f"venv/{i}")
    world.checkpoint()
    (home / "cache/new").write_text("new")
    os.link(home / "cache/new", home / "venv/new")
    folded, whole = world.checkpoint()
    assert (folded, world.tangled, len(world.payloads)) == (whole.digest, 0, 1)
    (home / "venv/7").unlink()
    with (home / "cache/8").open("a") as file:
        file.write("more")
    folded, whole = world.checkpoint()
    assert (folded, world.tangled, len(world.payloads)) == (whole.digest, 0, 2)


def test_more_names_than_can_be_told_are_found_all_the_same(world: World) -> None:
    world.checkpoint()
    (world.root / "home/many").write_text("many")
    for i in range(200):
        os.link(world.root / "home/many", world.root / f"home/a-rather-long-name-of-the-same-file-{i}")
    folded, whole = world.checkpoint()
    assert folded == whole.digest
    assert sum(1 for entry in world.trees.entries(folded) if entry.link) == 201
