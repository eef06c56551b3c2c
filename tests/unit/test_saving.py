"""Saving over disks in memory and a real log: whose files they are, whatever comes in between."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from dovecote.errors import Failed, NotFound, StorageFailed
from dovecote.host.instances import saving
from dovecote.host.instances.instance import Claim, Instance
from dovecote.host.instances.instances import Instances
from dovecote.host.instances.preparing import IdRanges, Parts, Preparing
from dovecote.host.instances.saving import Saving
from dovecote.host.storage import pool
from dovecote.host.storage.bucket import Bucket, open_bucket
from dovecote.host.storage.log import SlotLog
from dovecote.host.storage.memories import Memories
from dovecote.host.storage.trees import TreeSaved, Usage
from dovecote.model.rules import SaveRules, parse_rules
from dovecote.model.sizes import Limits, NetworkPolicy
from dovecote.model.states import InstanceState
from dovecote.model.trees import Workspace

pytestmark = pytest.mark.anyio

TEMPLATE = "template"


class MemoryDisks:
    """Records of disks that are always written to; `marking` holds whoever moves a mark."""

    def __init__(self) -> None:
        self.records: dict[str, dict[str, Any]] = {}
        self.marking = asyncio.Event()
        self.marking.set()
        self.inside = asyncio.Event()
        self.seems_changed = True

    def path(self, name: str) -> Path:
        return Path("/nowhere", name)

    async def write_out(self, name: str) -> None: ...

    async def is_changed(self, name: str) -> bool:
        return self.seems_changed

    async def changed(self, name: str, *, snapshot: str | None = None, most: int) -> None: ...

    async def snapshot(self, name: str, to: str) -> Path:
        return self.path(to)

    async def list(self) -> Sequence[str]:
        return sorted(self.records)

    async def mark(self, name: str, snapshot: str) -> None:
        self.inside.set()
        await self.marking.wait()

    async def delete(self, name: str) -> None:
        self.records.pop(name, None)

    async def write_record(self, name: str, record: Mapping[str, Any]) -> None:
        self.records[name] = dict(record)

    async def read_record(self, name: str) -> dict[str, Any] | None:
        return self.records.get(name)


class MemoryRoots:
    async def adopt(self) -> None: ...

    @asynccontextmanager
    async def merged(self, workspace: Workspace, upper: Path, *, id_base: int) -> AsyncIterator[Path]:
        yield upper


class MemoryTrees:
    """`broken` are trees that cannot be mounted."""

    def usage(self, digest: str) -> Usage:
        return Usage(1, 1, TEMPLATE)

    def __init__(self) -> None:
        self.broken: set[str] = set()
        self._saved = 0

    def save_delta(self, upper: Path, merged: Path, **kept: object) -> TreeSaved:
        self._saved += 1
        return TreeSaved(f"tree-{self._saved}", 1, 1, 1)

    def verify_stored(self, digest: str) -> None: ...

    def ensure_image(self, digest: str) -> Path:
        if digest in self.broken:
            raise StorageFailed(f"tree {digest} is damaged", code="corrupt")
        return Path(digest)


class NoNetwork:
    async def adopt(self, there: object) -> frozenset[str]:
        return frozenset()


class World:
    def __init__(self) -> None:
        self.disks, self.trees = MemoryDisks(), MemoryTrees()
        self.bucket: Bucket = open_bucket("memory:")
        self.parts = Parts(
            runtimes={},
            cgroups=cast(Any, None),
            pauses=cast(Any, None),
            network=cast(Any, NoNetwork()),
            disks=cast(Any, self.disks),
            roots=cast(Any, MemoryRoots()),
            entrance=cast(Any, None),
            trees=cast(Any, self.trees),
            volumes=cast(Any, None),
            buckets=cast(Any, None),
            images=cast(Any, None),
            memories=Memories(cast(Any, self.trees), Path("/nowhere/memory")),
        )
        self.saving = self.restarted()

    def restarted(self) -> Saving:
        return Saving(self.parts, slots=self.log)

    def log(self, owner: str) -> SlotLog:
        return SlotLog(self.bucket, owner)


@pytest.fixture
def world() -> World:
    return World()


def claim_of(epoch: int, generation: int = 0) -> Claim:
    return Claim(
        owner="ses_1",
        workspace=Workspace(TEMPLATE, None),
        limits=Limits(),
        network=NetworkPolicy(),
        level="crun",
        epoch=epoch,
        generation=generation,
    )


async def test_a_checkpoint_that_ends_after_its_instance_was_claimed_again_takes_nothing_from_the_new_owner(
    world: World,
) -> None:
    await world.saving.take("disk", 1 << 21, claim_of(1))
    world.disks.marking.clear()
    late = asyncio.ensure_future(world.saving.checkpoint("disk"))
    await world.disks.inside.wait()  # its slot is in the log; meanwhile the instance dies and its files are claimed
    await world.saving.retake("disk", claim_of(2))
    world.disks.marking.set()
    await late
    await world.saving.seal(claim_of(2))
    saved = await world.saving.save("disk")  # not sealed out: the disk is the newest owner's
    assert (await world.saving.read("disk")).epoch == 2
    assert saved.generation == 2


async def test_a_checkpoint_that_ends_after_its_disk_became_an_orphan_leaves_it_one(world: World) -> None:
    await world.saving.take("disk", 1 << 21, claim_of(1))
    world.disks.marking.clear()
    late = asyncio.ensure_future(world.saving.checkpoint("disk"))
    await world.disks.inside.wait()
    await world.saving.orphan("disk")
    world.disks.marking.set()
    await late
    assert (await world.saving.read("disk")).orphan


async def test_the_last_good_save_is_found_past_slots_that_cannot_be_read(world: World) -> None:
    log = world.log("ses_1")
    for tree in ("one", "two", "three"):
        log.append(epoch=1, template=TEMPLATE, tree=tree, previous=None, files=1, bytes=1)
    world.bucket.put("logs/ses_1/000000000002", b"garbage")
    assert await world.saving.last_good("ses_1", before=3) == 1
    world.bucket.put("logs/ses_1/000000000003", b"garbage")
    assert await world.restarted().last_good("ses_1", before=4) == 1
    world.trees.broken.add("one")
    assert await world.saving.last_good("ses_1", before=4) is None


async def test_the_first_save_after_a_rewind_that_the_log_does_not_have_is_newer_than_the_rewind(world: World) -> None:
    await world.saving.take("old", 1 << 21, claim_of(1))
    assert (await world.saving.checkpoint("old")).generation == 1
    await world.saving.take("new", 1 << 21, claim_of(3, generation=2))
    saved = await world.saving.save("new")
    newest = await world.saving.newest("ses_1")
    assert newest is not None
    assert saved.generation == newest.generation == 3


async def test_the_logs_of_those_who_save_stay_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many others were seen since the first time: opening a log costs listing it."""
    world, opened = World(), []

    def log(owner: str) -> SlotLog:
        opened.append(owner)
        return SlotLog(world.bucket, owner)

    monkeypatch.setattr(saving, "KNOWN_LOGS", 2)
    room = Saving(world.parts, slots=log)
    for owner in ("ses_1", "ses_2", "ses_1", "ses_3", "ses_1"):
        await room.seal(replace(claim_of(1), owner=owner))
    assert opened == ["ses_1", "ses_2", "ses_3"]


async def test_whatever_rules_a_function_may_have_fit_into_the_record_of_a_disk(world: World) -> None:
    rules = parse_rules(
        SaveRules(("/home/user/" + "\x01" * 245,) * 50, ("\U0001f54a" * 64,) * 50, "\U0001f54a" * 32768)
    )
    await world.saving.take("disk", 1 << 21, replace(claim_of(1), rules=rules))
    assert len(json.dumps(world.disks.records["disk"])) < pool._MAX_RECORD_BYTES


# -- a host that starts over such disks


class NothingPrepared:
    """No instance, neither recorded nor warm."""

    def __init__(self) -> None:
        self.ids = IdRanges()

    async def ensure(self) -> None: ...

    def directories(self) -> list[Path]:
        return []

    def fits(self, instance: object) -> bool:
        return False


async def host_over(world: World) -> Instances:
    prepared = NothingPrepared()
    host = Instances(
        world.parts,
        preparing=cast(Any, prepared),
        saving=world.restarted(),
        warm=cast(Any, prepared),
        memory_reserve_bytes=0,
        on_death=lambda _: None,
    )
    await host.start(warm=False)
    return host


async def test_a_leftover_whose_owner_went_on_elsewhere_becomes_an_orphan_when_it_is_to_be_saved(world: World) -> None:
    await world.saving.take("disk", 1 << 21, claim_of(1))
    await world.saving.checkpoint("disk")
    await world.saving.rewind("ses_1", epoch=2, template=TEMPLATE, tree="other")
    host = await host_over(world)
    assert [left.owner for left in host.leftovers()] == ["ses_1"]
    with pytest.raises(NotFound):
        await host.save_leftover("ses_1")
    assert host.leftovers() == []
    assert (await world.saving.read("disk")).orphan


async def test_erasing_deletes_orphans_of_earlier_lives_too(world: World) -> None:
    """And only those of that owner; their id ranges are free again."""
    bases = {"old": 1 << 21, "newer": 1 << 22, "other": 1 << 23}
    for disk, owner, epoch in (("old", "ses_1", 1), ("newer", "ses_1", 2), ("other", "ses_2", 1)):
        await world.saving.take(disk, bases[disk], replace(claim_of(epoch), owner=owner))
    await world.saving.orphan("other")
    host = await host_over(world)
    assert host.orphaned() == {"ses_1", "ses_2"}
    assert [left.disk for left in host.leftovers()] == ["newer"]
    for _ in range(2):
        await host.erase("ses_1")
    assert list(world.disks.records) == ["other"]
    assert host.orphaned() == {"ses_2"}
    assert host.leftovers() == []
    assert host._preparing.ids._used == {bases["other"]}


async def test_ids_of_an_instance_that_does_not_end_are_not_given_to_another(world: World, tmp_path: Path) -> None:
    class StillThere:
        """A runtime, groups and a network; processes of the group wait for a disk."""

        async def kill(self, name: str) -> None:
            raise Failed("1 process did not end", code="kill_timeout")

        async def done(self, name: str) -> None: ...

        delete = detach = remove = done

    still = cast(Any, StillThere())
    preparing = Preparing(
        replace(world.parts, runtimes={"crun": still}, cgroups=still, network=still),
        run_dir=tmp_path,
        guest_binary=tmp_path,
    )
    base = preparing.ids.acquire()
    instance = Instance(
        "ins_1", tmp_path / "ins_1", InstanceState.PREPARED, "crun", True, "10.0.0.1", tmp_path, 1, base, "ins_1", 1, 1
    )
    with pytest.raises(Failed):
        await preparing.unmake(instance, keep_disk=False)
    assert base in preparing.ids._used


async def test_a_save_does_not_rely_on_whether_anything_seems_to_have_changed(world: World) -> None:
    """What is on its way to the disk does not count for a moment: a look comes again, a last save does not."""
    await world.saving.take("disk", 1 << 21, claim_of(1))
    assert (await world.saving.checkpoint("disk")).generation == 1
    world.disks.seems_changed = False
    assert (await world.saving.checkpoint("disk")).generation == 1
    assert (await world.saving.save("disk")).generation == 2
