"""Packs of which little lives: what lives moves, and nothing is lost by that."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from dovecote.host.storage.bucket import Bucket
from dovecote.host.storage.condemned import condemned_name
from dovecote.host.storage.frames import parse_table
from dovecote.host.storage.garbage import collect_garbage
from tests.unit.garbage_stores import DAY, HOUR, World, assert_packs_live, new_world, reachable, stored
from tests.unit.garbage_world import Actor


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
