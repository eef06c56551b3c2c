"""The stress run sees what it is there to see: lost, mixed and torn states are faults."""

from __future__ import annotations

from random import Random

import pytest
from stress.blows import KINDS, deck
from stress.history import Fault, Found, History
from stress.plan import DATABASES, WORK, Planner
from stress.tree import Node, Seen, Step, Tree

DATABASE = DATABASES[0]
FILE = f"{WORK}/f"


def seen(tree: Tree) -> dict[str, Seen]:
    return {path: [*node.shape(), node.mtime_ns or 5] for path, node in tree.nodes.items()}


def begun() -> Tree:
    tree = Tree()
    tree.add(WORK, Node("dir", 0o755))
    return tree


def written(*steps: Step) -> History:
    history = History(begun())
    history.steps += steps
    history.stamps = {number: 10.0 + number for number in range(len(steps))}
    return history


def after(*steps: Step, rows: int = 0) -> Found:
    tree = begun()
    for step in steps:
        tree.apply(step)
    return Found(seen(tree), {DATABASE: {1: rows}} if rows else {}, "")


CREATE: Step = ("create", FILE, 0o644)
WRITE: Step = ("pwrite", FILE, 0, 1, 100)
AGAIN: Step = ("pwrite", FILE, 0, 2, 100)
MOVE: Step = ("rename", FILE, f"{WORK}/g")
COMMIT: Step = ("sqlite", DATABASE, 1, 1)
COMMIT_MORE: Step = ("sqlite", DATABASE, 1, 2)


def test_a_moment_is_found_and_its_loss_is_the_age_of_what_is_missing() -> None:
    history = written(CREATE, WRITE, AGAIN, MOVE)
    point = history.settle(after(CREATE, WRITE), floor=2, done=4, at=13.5)
    assert (point.done, point.lost, point.loss) == (2, 2, 1.5)


def test_a_moment_before_the_promised_one_is_a_fault() -> None:
    with pytest.raises(Fault, match="came back at step 2; 3 were promised"):
        written(CREATE, WRITE, AGAIN).settle(after(CREATE, WRITE), floor=3, done=3, at=20)


def test_a_later_step_without_an_earlier_one_is_a_fault() -> None:
    with pytest.raises(Fault, match="of no moment"):
        written(CREATE, WRITE, AGAIN, MOVE).settle(after(CREATE, WRITE, MOVE), floor=0, done=4, at=20)


SHOWN = ("kind", "mode", "uid", "gid", "size", "content", "target", "xattrs", "names", "mtime")


@pytest.mark.parametrize("field", range(len(SHOWN)), ids=SHOWN)
def test_each_attribute_counts(field: int) -> None:
    found = after(CREATE, ("utime", FILE, 77))
    found.files[FILE][field] = "other"
    with pytest.raises(Fault):
        written(CREATE, ("utime", FILE, 77)).settle(found, floor=2, done=2, at=20)


def test_a_file_that_nobody_made_is_a_fault() -> None:
    found = after(CREATE, WRITE)
    found = Found({**found.files, f"{WORK}/stranger": found.files[FILE]}, {}, "")
    with pytest.raises(Fault, match="stranger"):
        written(CREATE).settle(found, floor=0, done=1, at=20)


def test_a_committed_transaction_that_is_missing_is_a_fault_and_one_under_way_is_not() -> None:
    history = written(CREATE, COMMIT, WRITE, COMMIT_MORE)
    for rows in (1, 2):
        assert history.settle(after(CREATE, WRITE, rows=rows), floor=0, done=4, at=20).done == rows + 2
    with pytest.raises(Fault, match="databases"):
        history.settle(after(CREATE, WRITE), floor=0, done=4, at=20)


def test_an_install_that_is_not_as_it_was_is_a_fault() -> None:
    history = written(("npm", "project"), CREATE)
    history.installs = {0: "digest"}
    whole = Found(after(CREATE).files, {}, "digest")
    assert history.settle(whole, floor=0, done=2, at=20).done == 2
    with pytest.raises(Fault):
        history.settle(Found(whole.files, {}, "half"), floor=0, done=2, at=20)


def test_a_seed_gives_the_same_steps_and_kinds() -> None:
    def plan(seed: int) -> object:
        units = {f"/u/{name}": Node("file", 0o644, content=b"x" * 9000) for name in "abc"}
        return Planner(Random(seed), round=4, units={"/u": Node("dir", 0o755), **units}).plan(800, pause=0.01, npm=True)

    assert plan(1) == plan(1) != plan(2)
    assert deck(Random(1), list(KINDS)) == deck(Random(1), list(KINDS))
    assert set(deck(Random(1), list(KINDS))) == set(KINDS)
