"""Keeps the host's cache within its size: what was used least recently goes, and never what somebody needs."""

from __future__ import annotations

import math
import os
import time
from array import array
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from dovecote.host.storage.disk import disk_errors
from dovecote.host.storage.keys import FOLDERS, in_folder, key
from dovecote.host.storage.trees import Trees

NEEDED = math.inf  # the time at which what is needed was used
LOWER = 0.9  # of the limit: how far a run goes, so that the next one is not due at once
MOST = 100_000  # files that one run deletes
_YOUNG = 60.0  # seconds by which times of files are told apart


@dataclass
class Measured:
    """What a cache takes on its disk, by when it was used last."""

    by_time: dict[float, int] = field(default_factory=dict)

    def add(self, at: float, size: int) -> None:
        self.by_time[at] = self.by_time.get(at, 0) + size

    @property
    def total_bytes(self) -> int:
        return sum(self.by_time.values())

    @property
    def needed_bytes(self) -> int:
        return self.by_time.get(NEEDED, 0)

    def cutoff(self, goal_bytes: int) -> float:
        """What was used last at this moment or before has to go; -inf when nothing has to."""
        left, last = self.total_bytes, -math.inf
        for at in sorted(self.by_time):
            if left <= goal_bytes or at == NEEDED:
                break
            left -= self.by_time[at]
            last = at
        return last


@dataclass
class Evicted:
    files: int = 0
    bytes: int = 0
    is_whole: bool = True  # False: there was more to do than one run does


def evict(
    trees: Trees,
    *,
    goal: Callable[[Measured], int],
    needed: Callable[[], Collection[str]],
    mounted: Callable[[], Collection[str]],
    let_go: Callable[[Collection[str]], None],
    rest: Callable[[], None] = lambda: None,
) -> tuple[Measured, Evicted]:
    """One run over the cache: measures it, and brings it down to `goal` bytes if that is less. Raises StorageFailed.

    `needed` answers trees that somebody uses or that must stay, `mounted` those that objects may be read through, both
    at the moment of asking; `let_go` unmounts those of its trees that nobody uses. `rest` is called between folders: it
    bounds what a run takes of the machine.

    Why it takes nothing from anybody: trees that are to go are forgotten first, and only then it is asked what is
    needed. Whoever comes to such a tree later has it checked again, looks its objects up anew, and so is spared.
    Who looked them up before that either has not ended his use, and is spared, or left a hold, and is needed.
    """
    with trees.cache.uses.evicting() as spared:
        eviction = _Eviction(trees, rest)
        measured = eviction.measure(needed())
        cutoff = measured.cutoff(goal(measured))
        if cutoff == -math.inf:
            return measured, Evicted()
        let_go(eviction.choose(cutoff))
        rest()
        eviction.forget()
        rest()
        return measured, eviction.delete({*needed(), *mounted()}, spared)


class _Eviction:
    def __init__(self, trees: Trees, rest: Callable[[], None]) -> None:
        self._trees = trees
        self._images = trees.image_files
        self._rest = rest
        self._used: dict[str, float] = {}  # trees with a record
        self._keys: dict[str, array[int]] = {}  # of manifests
        self._manifests: dict[str, list[str]] = {}  # of trees with a record
        self.victims: list[str] = []
        self._cutoff = -math.inf

    def measure(self, needed: Collection[str]) -> Measured:
        """`needed` is for the figures and the order; what counts is asked again."""
        self._images.note_used()
        self._used = {tree: NEEDED if tree in needed else at for tree, at in self._images.recorded().items()}
        for tree in [*self._used]:
            if not self._learn(tree) and tree not in needed:
                self._used[tree] = -math.inf  # nobody knows what it points at
        measured = Measured()
        by_part = self._by_part()
        times = sorted(((at, self._keys[part]) for part, at in by_part.items()), key=lambda each: each[0])
        for folder in range(FOLDERS):
            used = _last_used(times, folder)
            for number, _, stat in self._objects(folder):
                measured.add(max(used.get(number, -math.inf), _age(stat)), _size(stat))
            self._rest()
        for tree, stat in self._images.files():
            at = NEEDED if tree in needed else self._used.get(tree, _age(stat))
            measured.add(at, _size(stat))
        for part, stat in self._images.keys.list():
            measured.add(by_part.get(part, _age(stat)), _size(stat))
        self._trees.cache.grown = 0
        return measured

    def choose(self, cutoff: float) -> list[str]:
        """Trees with a record that go."""
        self._cutoff = cutoff
        self.victims = [tree for tree, at in self._used.items() if at <= cutoff]
        return self.victims

    def forget(self) -> None:
        """From here on nobody relies on a victim unseen."""
        self.victims = [tree for tree in self.victims if self._images.forget(tree)]

    def delete(self, needed: Collection[str], spared: Callable[[bytes], bool]) -> Evicted:
        """`needed` was asked after `forget`. Raises StorageFailed when what a needed tree points at cannot be told."""
        done = Evicted()
        gone = set(self.victims) - set(needed)
        kept = self._kept({*self._used, *self._images.recorded(), *needed} - gone)
        for folder in range(FOLDERS):
            self._delete_folder(folder, kept, spared, done)
            self._rest()
        self._delete_images(gone, needed, done)
        if done.is_whole:
            self._delete_keys()
        return done

    def _delete_folder(
        self, folder: int, kept: list[array[int]], spared: Callable[[bytes], bool], done: Evicted
    ) -> None:
        stay: set[int] = set()
        for keys in kept:
            stay.update(in_folder(keys, folder))
        for number, digest, stat in self._objects(folder):
            if number in stay or _age(stat) > self._cutoff:
                continue
            if done.files >= MOST:
                done.is_whole = False
                return
            if self._trees.cache.evict(digest, spared=spared):
                done.files += 1
                done.bytes += _size(stat)

    def _delete_images(self, gone: set[str], needed: Collection[str], done: Evicted) -> None:
        sizes = {tree: _size(stat) for tree, stat in self._images.files() if self._is_gone(tree, stat, gone, needed)}
        for tree in {*gone, *sizes}:  # some have a record only
            if self._images.delete(tree):
                done.files += 1
                done.bytes += sizes.get(tree, 0)

    def _is_gone(self, tree: str, stat: os.stat_result, gone: set[str], needed: Collection[str]) -> bool:
        is_lost = tree not in self._used and tree not in needed and _age(stat) <= self._cutoff
        return tree in gone or is_lost

    def _delete_keys(self) -> None:
        named = {part for tree in self._images.recorded() for part in self._images.manifests(tree)}
        for part, _ in self._images.keys.list():
            # Files, and not only what was learned: a tree may be just about to get its record.
            if part not in named and part in self._keys:
                self._images.keys.delete(part)

    def _kept(self, trees: set[str]) -> list[array[int]]:
        parts: set[str] = set()
        for tree in trees:
            if tree not in self._manifests and not self._learn(tree):
                self._learn_again(tree)
            parts.update(self._manifests.get(tree, ()))
        return [self._keys[part] for part in parts]

    def _learn(self, tree: str) -> bool:
        """Reads what the host itself knows of a tree."""
        manifests = self._images.manifests(tree)
        for part in manifests:
            if part not in self._keys:
                keys = self._images.keys.read(part)
                if keys is None:
                    return False
                self._keys[part] = keys
        if manifests:
            self._manifests[tree] = manifests
        return bool(manifests)

    def _learn_again(self, tree: str) -> None:
        """The same from the store."""
        found = []
        for part, objects in self._trees.objects_by_manifest(tree):
            self._keys[part] = array("Q", sorted({key(digest) for digest in objects}))
            found.append(part)
        self._manifests[tree] = found

    def _by_part(self) -> dict[str, float]:
        """When each manifest was used last."""
        at: dict[str, float] = {}
        for tree, manifests in self._manifests.items():
            for part in manifests:
                at[part] = max(at.get(part, -math.inf), self._used.get(tree, -math.inf))
        return at

    def _objects(self, folder: int) -> Iterator[tuple[int, bytes, os.stat_result]]:
        name = f"{folder:02x}"
        with disk_errors("the object cache cannot be read"):
            entries = list(os.scandir(self._trees.objects_dir / name))
        for entry in entries:
            with suppress(FileNotFoundError, ValueError):
                digest = bytes.fromhex(name + entry.name)
                yield key(digest), digest, entry.stat(follow_symlinks=False)


def _last_used(times: list[tuple[float, array[int]]], folder: int) -> dict[int, float]:
    found: dict[int, float] = {}
    for at, keys in times:
        found.update(dict.fromkeys(in_folder(keys, folder), at))
    return found


def _age(stat: os.stat_result) -> float:
    """When it was written, for what no tree names. Rounded: moments are few."""
    return min(stat.st_mtime, time.time()) // _YOUNG * _YOUNG


def _size(stat: os.stat_result) -> int:
    return stat.st_blocks * 512
