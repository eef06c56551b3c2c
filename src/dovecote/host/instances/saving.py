"""Saves the files of an owner: a running instance's, or what an instance left on the disk."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from weakref import WeakValueDictionary

from pydantic import TypeAdapter, ValidationError

from dovecote.errors import Conflict, DovecoteError, Invalid, NotFound, StorageFailed
from dovecote.host.instances.instance import Claim
from dovecote.host.instances.preparing import Parts
from dovecote.host.storage.change import TooTangled
from dovecote.host.storage.ignoring import Chosen, choose
from dovecote.host.storage.log import Slot, SlotLog
from dovecote.host.storage.trees import TreeSaved, Usage
from dovecote.model.ids import random_text
from dovecote.model.patterns import TooCostly
from dovecote.model.rules import SaveRules
from dovecote.model.trees import Saved, Workspace

log = logging.getLogger(__name__)

FOLD_AFTER = 64  # slots of changes
FOLD_BYTES = 64 << 20  # that they carry
MOST_CHANGES = 100_000  # inodes; beyond that looking at the whole upper costs no more
KNOWN_LOGS = 4096
FURTHEST_BACK = 100  # slots of a log that are looked at for a good save
SNAPSHOT = "save-"  # begins the name of a snapshot that is being folded


Still = Callable[[], AbstractAsyncContextManager[object]]


@dataclass(frozen=True)
class Checkpoint:
    """What one did. `behind`: slots of changes since the last tree in the log."""

    generation: int
    names: int
    added_bytes: int
    behind: int


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
    home: str = ""
    rules: SaveRules = SaveRules()
    chosen: str = ""  # digest of what was left out of the newest tree in the log


_RECORD = TypeAdapter(DiskRecord)


class Saving:
    def __init__(self, parts: Parts, *, slots: Callable[[str], SlotLog]) -> None:
        self._parts = parts
        self._open_log = slots
        self._logs: OrderedDict[str, SlotLog] = OrderedDict()  # of owners seen last: they know where they end
        self._busy: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._writing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def _slots(self, owner: str) -> SlotLog:
        slots = self._logs.get(owner) or self._open_log(owner)
        self._logs[owner] = slots
        self._logs.move_to_end(owner)
        while len(self._logs) > KNOWN_LOGS:
            self._logs.popitem(last=False)
        return slots

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
                home=claim.home,
                rules=claim.rules,
            ),
        )

    async def retake(self, disk: str, claim: Claim) -> Workspace:
        """The same for a disk that survived; answers the trees that it is an upper of."""
        record = await self._revise(
            disk,
            lambda now: replace(
                now,
                epoch=claim.epoch,
                generation=max(now.generation, claim.generation),
                home=claim.home,
                rules=claim.rules,
            ),
        )
        return Workspace(record.template, record.tree)

    async def read(self, disk: str) -> DiskRecord:
        body = await self._parts.disks.read_record(disk)
        if body is None:
            raise NotFound(f"disk {disk} belongs to nobody")
        try:
            return _RECORD.validate_python(body)
        except ValidationError as error:
            raise StorageFailed(f"the record of disk {disk} cannot be read", code="corrupt") from error

    async def save(self, disk: str, *, whole: bool = False, still: Still = nullcontext) -> Saved:
        """A checkpoint that is a tree of its own. What was saved earlier stays whatever happens.

        Nobody asks whether anything was changed: only a snapshot knows of what is on its way to the disk.
        `whole` answers a tree that also has what rules leave out of the checkpoint. `still` is around each moment that
        is saved: whoever writes to the disk rests in it.
        Raises StorageFailed; Conflict (sealed) when another host owns the session by now.
        """
        async with self._busy.setdefault(disk, asyncio.Lock()):
            record = await self.read(disk)
            added_bytes = (await self._checkpoint(disk, record, still)).added_bytes
            record = await self.read(disk)
            saved = await asyncio.to_thread(self._fold, record)
            saved = replace(saved, added_bytes=saved.added_bytes + added_bytes)
            if whole and record.chosen:
                tree = await self._whole(disk, record, still)
                saved = replace(saved, tree=tree.digest, files=tree.files, total_bytes=tree.total_bytes)
            return saved

    async def _snapshot(self, disk: str, to: str, still: Still) -> Path:
        await self._parts.disks.write_out(disk)
        async with still():
            return await self._parts.disks.snapshot(disk, to)

    async def _whole(self, disk: str, record: DiskRecord, still: Still) -> TreeSaved:
        snapshot = SNAPSHOT + random_text(12)
        async with AsyncExitStack() as undo:
            undo.push_async_callback(self._parts.disks.delete, snapshot)
            path = await self._snapshot(disk, snapshot, still)
            workspace = Workspace(record.template, record.tree)
            async with self._parts.roots.merged(workspace, path / "upper", id_base=record.id_base) as merged:
                return await asyncio.to_thread(self._save_delta, record, path / "upper", merged, Chosen())

    def _save_delta(self, record: DiskRecord, upper: Path, merged: Path, chosen: Chosen) -> TreeSaved:
        return self._parts.trees.save_delta(
            upper,
            merged,
            id_base=record.id_base,
            template=record.template,
            previous=record.tree,
            rules=chosen.rules,
        )

    async def checkpoint(self, disk: str, *, still: Still = nullcontext) -> Checkpoint:
        """Brings the owner's log up to this moment. Costs what has changed since the last one, not what is there.

        Raises StorageFailed; Conflict (sealed) when another host owns the session by now.
        """
        async with self._busy.setdefault(disk, asyncio.Lock()):
            record = await self.read(disk)
            if record.generation and not await self._parts.disks.is_changed(disk):
                return Checkpoint(record.generation, 0, 0, 0)
            done = await self._checkpoint(disk, record, still)
            if done.behind >= FOLD_AFTER or (self._slots(record.owner).unfolded_bytes or 0) >= FOLD_BYTES:
                await asyncio.to_thread(self._fold, await self.read(disk))
            return done

    async def _checkpoint(self, disk: str, record: DiskRecord, still: Still) -> Checkpoint:
        snapshot = SNAPSHOT + random_text(12)
        async with AsyncExitStack() as undo:
            undo.push_async_callback(self._parts.disks.delete, snapshot)
            path = await self._snapshot(disk, snapshot, still)
            workspace = Workspace(record.template, record.tree)
            async with self._parts.roots.merged(workspace, path / "upper", id_base=record.id_base) as merged:
                chosen = await asyncio.to_thread(choose, merged, record.home, record.rules)
                done = None
                try:
                    # Under other rules than before, also what nobody has written to comes and goes.
                    if chosen.digest == record.chosen:
                        done = await self._append_changes(disk, record, snapshot, merged, chosen)
                    if done is None:
                        done = await self._append_tree(record, path / "upper", merged, chosen)
                except TooCostly:
                    log.warning("the rules of %s cost too much: all of its files are saved", record.owner)
                    chosen = Chosen()
                    done = await self._append_tree(record, path / "upper", merged, chosen)
            # Once the log has it: a mark may be older than the log, never newer.
            await self._parts.disks.mark(disk, snapshot)
            # The disk may have been claimed again meanwhile: whose it is stays as it is.
            generation = done.generation
            await self._revise(disk, lambda now: replace(now, generation=generation, chosen=chosen.digest))
        return done

    async def _append_changes(
        self, disk: str, record: DiskRecord, snapshot: str, merged: Path, chosen: Chosen
    ) -> Checkpoint | None:
        """None where only the whole upper tells, or where the log has moved on from what the mark stands for."""
        if not record.generation:
            return None
        changed = await self._parts.disks.changed(disk, snapshot=snapshot, most=MOST_CHANGES)
        if changed is None:
            return None
        try:
            made = await asyncio.to_thread(
                self._parts.trees.save_change,
                self._parts.disks.path(snapshot) / "upper",
                self._parts.disks.mark_of(disk) / "upper",
                merged,
                changed=changed,
                id_base=record.id_base,
                rules=chosen.rules,
            )
            if made is None:
                return Checkpoint(record.generation, 0, 0, 0)
            payload, names = made
            slot = await asyncio.to_thread(
                self._slots(record.owner).append_changes, payload, epoch=record.epoch, generation=record.generation
            )
        except TooTangled:
            return None
        except Conflict as error:
            if error.code != "log_moved":
                raise
            return None
        return Checkpoint(slot.generation, names, len(payload), slot.n - slot.since)

    async def _append_tree(self, record: DiskRecord, upper: Path, merged: Path, chosen: Chosen) -> Checkpoint:
        tree = await asyncio.to_thread(self._save_delta, record, upper, merged, chosen)
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
            after=record.generation,  # the log may lack a rewind that the owner's record has
        )
        return Checkpoint(slot.generation, tree.files, tree.added_bytes, 0)

    def _fold(self, record: DiskRecord) -> Saved:
        """Makes the newest checkpoint one with a tree of its own."""
        slots = self._slots(record.owner)
        last = slots.last_whole(epoch=record.epoch)
        if last is None:
            raise StorageFailed(f"nothing of {record.owner} is saved", code="corrupt")
        newest, changes = last
        saved = self._resolve(newest, changes)
        if newest.since:
            self._parts.trees.verify_stored(saved.tree)
            slots.append(
                epoch=record.epoch,
                template=newest.template,
                tree=saved.tree,
                previous=newest.tree,
                files=saved.files,
                bytes=saved.total_bytes,
                generation=newest.generation,
            )
            with suppress(StorageFailed, NotFound):  # what stays is collected one day
                slots.empty(newest)
        return saved

    def _resolve(self, slot: Slot, changes: list[bytes]) -> Saved:
        """A slot's whole state as a tree, which is made if the slot carries changes."""
        if not slot.since:
            return Saved(slot.tree, slot.generation, slot.files, 0, slot.bytes)
        tree = self._parts.trees.fold(slot.tree, changes)
        return Saved(tree.digest, slot.generation, tree.files, tree.added_bytes, tree.total_bytes)

    async def rewind(self, owner: str, *, epoch: int, template: str, tree: str) -> Saved:
        """Appends a checkpoint with a tree that was saved earlier, after everyone before `epoch` is sealed off."""
        return await asyncio.to_thread(self._rewind, owner, epoch, template, tree)

    async def verify(self, template: str, tree: str) -> None:
        """That a tree can be gone back to: it is over that template, and whole in the store."""
        await asyncio.to_thread(self._verify, template, tree)

    def _verify(self, template: str, tree: str) -> Usage:
        usage = self._parts.trees.usage(tree)
        if usage.template != template:
            raise Invalid(f"tree {tree[:16]} is not over template {template[:16]}", code="wrong_template")
        self._parts.trees.verify_stored(tree)
        return usage

    def _rewind(self, owner: str, epoch: int, template: str, tree: str) -> Saved:
        usage = self._verify(template, tree)
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
        record = await self._revise(disk, lambda now: replace(now, orphan=True))
        log.warning("disk %s of %s is older than what was saved elsewhere: kept as an orphan", disk, record.owner)

    async def forget(self, disk: str) -> int | None:
        """Deletes a disk; answers the id range that became free."""
        try:
            base = (await self.read(disk)).id_base
        except DovecoteError:
            base = None
        await self._parts.disks.delete(disk)
        return base

    async def trees(self) -> set[str]:
        """What the disks of this host are uppers of, orphans' too. Raises StorageFailed."""
        found: set[str | None] = set()
        for name in await self._parts.disks.list():
            if name.startswith(SNAPSHOT):
                continue
            try:
                record = await self.read(name)
            except NotFound:
                continue
            found |= {record.template, record.tree}
        return {tree for tree in found if tree}

    async def sweep(self) -> None:
        """Deletes snapshots of saves that were cut short."""
        for name in await self._parts.disks.list():
            if name.startswith(SNAPSHOT):
                await self._parts.disks.delete(name)

    async def last_saved(self, owner: str) -> Saved | None:
        """The newest checkpoint in the owner's log as a tree: the log may be ahead of every record."""
        return await asyncio.to_thread(self._last_saved, owner)

    def _last_saved(self, owner: str) -> Saved | None:
        last = self._slots(owner).last_whole()
        return self._resolve(*last) if last else None

    async def newest(self, owner: str) -> Slot | None:
        """The newest checkpoint in the owner's log as it stands there; a few small questions to the store."""
        return await asyncio.to_thread(self._slots(owner).last)

    async def last_good(self, owner: str, *, before: int) -> int | None:
        """The newest generation earlier than `before` whose tree can be mounted; None when there is none."""
        return await asyncio.to_thread(self._last_good, owner, before)

    def _last_good(self, owner: str, before: int) -> int | None:
        slots = self._slots(owner)
        newest = slots.length()
        for n in range(newest, max(0, newest - FURTHEST_BACK), -1):
            try:
                slot = slots.read(n)
            except NotFound:  # older slots have been collected
                return None
            except StorageFailed as error:
                log.warning("slot %d of %s is passed over: %s", n, owner, error)
                continue
            if slot.kind == "checkpoint" and slot.generation < before and self._is_whole(slot.tree):
                return slot.generation
        return None

    def _is_whole(self, tree: str) -> bool:
        try:
            self._parts.trees.ensure_image(tree)
        except DovecoteError:
            return False
        return True

    async def _revise(self, disk: str, change: Callable[[DiskRecord], DiskRecord]) -> DiskRecord:
        """Changes the record as it is now, one after the other: a checkpoint may end when its instance is long gone."""
        async with self._writing.setdefault(disk, asyncio.Lock()):
            record = change(await self.read(disk))
            await self._write(disk, record)
            return record

    async def _write(self, disk: str, record: DiskRecord) -> None:
        await self._parts.disks.write_record(disk, _RECORD.dump_python(record, mode="json"))
