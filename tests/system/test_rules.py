"""What rules leave out is in no tree, whichever way the tree was made; the rest is whole."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from dovecote.host.storage.ignoring import Chosen
from dovecote.host.storage.manifest import DIRS
from dovecote.host.storage.rules import LEFT_OUT
from dovecote.model.patterns import Pattern, Selection, parse_pattern
from tests.system.test_changes import STEPS, World, act
from tests.system.tree_rig import picture

pytestmark = pytest.mark.system

HOSTILE = ("n?/", "*7", "n1*", "!n12", "/lib/deep/er/", "x/y/", "**/n2/**", "!n2/x")


def patterns(*lines: str) -> tuple[Pattern, ...]:
    found = [parse_pattern(line.encode(), b"") for line in lines]
    return tuple(pattern for pattern in found if pattern is not None)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    there = World(tmp_path)
    try:
        yield there
    finally:
        there.close()


@pytest.mark.parametrize("seed", range(4))
def test_any_sequence_of_changes_gives_the_tree_of_the_whole_without_what_is_left_out(world: World, seed: int) -> None:
    chance = random.Random(seed)
    world.patterns = patterns(*HOSTILE)
    world.checkpoint()
    for step in range(STEPS):
        for _ in range(chance.randint(1, 4)):
            act(chance, world.root)
        folded, whole = world.checkpoint()
        assert folded == whole.digest, (seed, step)
    selection = Selection(world.patterns)
    entries = world.trees.entries(folded)
    for entry in entries:
        assert not selection.hides(entry.path)
        assert entry.kind in DIRS or not selection.leaves_out(entry.path, is_directory=False)
        assert (LEFT_OUT in entry.xattrs) == (
            entry.kind in DIRS and selection.leaves_out(entry.path, is_directory=True)
        )


def test_what_comes_under_a_rule_later_goes_and_comes_back_with_its_end(world: World) -> None:
    """Over two lives: the second one's upper has nothing of what the first had saved."""
    home = world.root / "home"
    (home / "app/node_modules/lib").mkdir(parents=True)
    for i in range(80):
        (home / f"app/node_modules/lib/{i}.js").write_text(str(i))
    (home / "app/main.js").write_text("main")
    (home / "app/a.log").write_text("log")
    first = world.life.save().digest
    rig, trees = world.rig, world.wholes
    second = rig.life(trees, world.template, first)
    (second.root / "home/app/new").write_text("new")
    kept = picture(second.root)
    rules = patterns("node_modules/", "*.log")
    saved = second.save(rules=Chosen(rules).rules)
    assert trees.left_out(saved.digest) == ["/home/app/node_modules"]
    third = rig.life(trees, world.template, saved.digest)
    seen = picture(third.root)
    gone = {path for path in kept if b"node_modules/" in path or path.endswith(b".log")}
    marked = b"home/app/node_modules"
    assert len(gone) == 82
    assert {path: line for path, line in seen.items() if path != marked} == {
        path: line for path, line in kept.items() if path not in gone and path != marked
    }
    assert list((third.root / "home/app/node_modules").iterdir()) == []
    (third.root / "home/app/node_modules/again").write_text("again")
    assert trees.left_out(third.save(rules=Chosen(rules).rules).digest) == ["/home/app/node_modules"]
    whole = third.save()
    assert trees.left_out(whole.digest) == []
    assert b"home/app/node_modules/again" in {entry.path for entry in trees.entries(whole.digest)}


def test_a_file_of_the_template_that_a_rule_names_is_as_the_template_has_it(world: World) -> None:
    (world.root / "lib/l1").write_text("changed")
    (world.root / "lib/l2").unlink()
    (world.root / "lib/l3").write_text("changed")
    saved = world.life.save(rules=Chosen(patterns("/lib/l1", "/lib/l2")).rules)
    life = world.rig.life(world.wholes, world.template, saved.digest)
    texts = [(life.root / f"lib/l{i}").read_text() for i in (1, 2, 3)]
    assert texts == ["template 1", "template 2", "changed"]


def test_what_is_left_out_is_found_with_the_image_and_without(world: World) -> None:
    (world.root / "home/node_modules/a").mkdir(parents=True)
    saved = world.life.save(rules=Chosen(patterns("node_modules")).rules)
    assert world.wholes.left_out(saved.digest) == ["/home/node_modules"]
    world.wholes.ensure_image(saved.digest)
    assert world.wholes.left_out(saved.digest) == ["/home/node_modules"]


def test_writing_to_what_is_left_out_is_no_change(world: World) -> None:
    world.patterns = patterns("*.log")
    (world.root / "home/a.log").write_text("one")
    world.checkpoint()
    with (world.root / "home/a.log").open("a") as file:
        file.write("two")
    world.checkpoint()
    assert world.payloads == []
