"""Saves the files of an owner: a running instance's, or what an instance left on the disk."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakValueDictionary

from dovecote.errors import DovecoteError, Invalid, NotFound, StorageFailed
from dovecote.host.instances.instance import Claim
from dovecote.host.instances.preparing import Parts
from dovecote.host.storage.log import SlotLog
from dovecote.model.ids import random_text
from dovecote.model.trees import Saved, Workspace

log = logging.getLogger(__name__)

FURTHEST_BACK = 100  # slots of a log that are looked at for a good save
SNAPSHOT = "save-"  # begins the name of a snapshot that is being folded


@dataclass(frozen=True)
class DiskRecord:
    """Whose files a disk holds, over which trees, and up to which save they are known to the store."""

    owner: str
    id_base: int
    epoch: int
    generation: int
    template: str
    tree: str | None
    orphan: bool = False


class Saving:
    def __init__(self, parts: Parts, *, slots: Callable[[str], SlotLog]) -> None:
        self._parts = parts
        self._slots = slots
        self._busy: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def seal(self, claim: Claim) -> None:
        """From now on no earlier owner's save is accepted. Raises Conflict (sealed) when a later one has claimed."""
        await asyncio.to_thread(self._slots(claim.owner).seal, claim.epoch)

    async def take(self, disk: str, id_base: int, claim: Claim) -> None:
        """Writes whose the disk is, before the owner may write to it."""
        await self._write(
            disk,
            DiskRecord(
                owner=claim.owner,
                id_base=id_base,
                epoch=claim.epoch,
                generation=claim.generation,
                template=claim.workspace.template,
                tree=claim.workspace.tree,
            ),
        )

    async def retake(self, disk: str, claim: Claim) -> Workspace:
        """The same for a disk that survived; answers the trees that it is an upper of."""
        record = await self.read(disk)
        generation = max(record.generation, claim.generation)
        await self._write(disk, replace(record, epoch=claim.epoch, generation=generation))
        return Workspace(record.template, record.tree)

    async def read(self, disk: str) -> DiskRecord:
        body = await self._parts.disks.read_record(disk)
        if body is None:
            raise NotFound(f"disk {disk} belongs to nobody")
        try:
            return DiskRecord(**body)
        except TypeError as error:
            raise StorageFailed(f"the record of disk {disk} cannot be read", code="corrupt") from error

    async def save(self, disk: str, *, before: Callable[[], Awaitable[Any]] | None = None) -> Saved:
        """Snapshot, fold, write, append to the owner's log. What was saved earlier stays whatever happens.

        `before` runs just ahead of the snapshot (flushing the file system from inside).
        Raises StorageFailed; Conflict (sealed) when another host owns the session by now.
        """
        async with self._busy.setdefault(disk, asyncio.Lock()):
            record = await self.read(disk)
            if before is not None:
                await before()
            snapshot = SNAPSHOT + random_text(12)
            async with AsyncExitStack() as undo:
                undo.push_async_callback(self._parts.disks.delete, snapshot)
                path = await self._parts.disks.snapshot(disk, snapshot)
                workspace = Workspace(record.template, record.tree)
                merged = await undo.enter_async_context(
                    self._parts.roots.merged(workspace, path / "upper", id_base=record.id_base)
                )
                tree = await asyncio.to_thread(
                    self._parts.trees.save_delta,
                    path / "upper",
                    merged,
                    id_base=record.id_base,
                    template=record.template,
                    previous=record.tree,
                )
                for note in tree.notes:
                    log.info("saving %s: %s", record.owner, note)
                await asyncio.to_thread(self._parts.trees.verify_stored, tree.digest)
            slot = await asyncio.to_thread(
                self._slots(record.owner).append,
                epoch=record.epoch,
                template=record.template,
                tree=tree.digest,
                previous=record.tree,
                files=tree.files,
                bytes=tree.total_bytes,
            )
            await self._write(disk, replace(record, generation=slot.generation))
            return Saved(tree.digest, slot.generation, tree.files, tree.new_bytes, tree.total_bytes)

    async def rewind(self, owner: str, *, epoch: int, template: str, tree: str) -> Saved:
        """Appends a checkpoint with a tree that was saved earlier, after everyone before `epoch` is sealed off."""
        return await asyncio.to_thread(self._rewind, owner, epoch, template, tree)

    def _rewind(self, owner: str, epoch: int, template: str, tree: str) -> Saved:
        usage = self._parts.trees.usage(tree)
        if usage.template != template:
            raise Invalid(f"tree {tree[:16]} is not over template {template[:16]}", code="wrong_template")
        self._parts.trees.verify_stored(tree)
        slots = self._slots(owner)
        newest = slots.seal(epoch)
        slot = slots.append(
            epoch=epoch,
            template=template,
            tree=tree,
            previous=newest.tree if newest else None,
            files=usage.files,
            bytes=usage.total_bytes,
        )
        return Saved(tree, slot.generation, usage.files, 0, usage.total_bytes)

    async def orphan(self, disk: str) -> None:
        """Files that cannot be their owner's any more (it went on elsewhere) are kept, but never used by themselves."""
        record = await self.read(disk)
        log.warning("disk %s of %s is older than what was saved elsewhere: kept as an orphan", disk, record.owner)
        await self._write(disk, replace(record, orphan=True))

    async def forget(self, disk: str) -> int | None:
        """Deletes a disk; answers the id range that became free."""
        try:
            base = (await self.read(disk)).id_base
        except DovecoteError:
            base = None
        await self._parts.disks.delete(disk)
        return base

    async def sweep(self) -> None:
        """Deletes snapshots of saves that were cut short."""
        for name in await self._parts.disks.list():
            if name.startswith(SNAPSHOT):
                await self._parts.disks.delete(name)

    async def last_saved(self, owner: str) -> Saved | None:
        """The newest checkpoint in the owner's log, for a caller that died between the save and its own record."""
        slot = await asyncio.to_thread(self._slots(owner).last)
        if slot is None:
            return None
        return Saved(slot.tree, slot.generation, slot.files, 0, slot.bytes)

    async def last_good(self, owner: str, *, before: int) -> int | None:
        """The newest generation earlier than `before` whose tree can be mounted; None when there is none."""
        return await asyncio.to_thread(self._last_good, owner, before)

    def _last_good(self, owner: str, before: int) -> int | None:
        slots = self._slots(owner)
        newest = slots.last()
        if newest is None:
            return None
        for n in range(newest.n, max(0, newest.n - FURTHEST_BACK), -1):
            slot = slots.read(n)
            if slot.kind == "checkpoint" and slot.generation < before and self._is_whole(slot.tree):
                return slot.generation
        return None

    def _is_whole(self, tree: str) -> bool:
        try:
            self._parts.trees.ensure_image(tree)
        except DovecoteError:
            return False
        return True

    async def _write(self, disk: str, record: DiskRecord) -> None:
        await self._parts.disks.write_record(disk, vars(record))
