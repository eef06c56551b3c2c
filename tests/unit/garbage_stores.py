"""Stores to collect garbage in: what is saved there, what lives, and what their clock says."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from dovecote.errors import Conflict, StorageFailed
from dovecote.host.storage.bucket import Bucket, local_bucket, open_bucket
from dovecote.host.storage.frames import table_bytes, unpack
from dovecote.host.storage.garbage import Collected, collect_garbage
from dovecote.host.storage.marking import References
from dovecote.host.storage.pins import write_pins
from dovecote.host.storage.repacking import WORTH_BELOW
from dovecote.host.storage.stored import digest_in, pieces_of, read_locations, read_part, read_root, stored_name
from dovecote.host.storage.trees import Trees
from tests.unit.garbage_world import Actor, SteppedBucket

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


@pytest.fixture(name="store")
def opened_store(tmp_path: Path) -> Iterator[Store]:
    bucket = SteppedBucket(open_bucket("memory:"))
    write_pins(bucket, "host", [])
    make_plans(tmp_path)
    trees = Trees(bucket, tmp_path / "cache", clock=bucket.clock)
    yield Store(bucket, trees, tmp_path)
    trees.close()
