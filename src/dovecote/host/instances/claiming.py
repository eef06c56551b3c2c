"""Gives an owner an instance that holds its files: its own again, one of the warm pool, or a new one."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from pathlib import Path
from weakref import WeakValueDictionary

from dovecote.errors import DovecoteError, Failed, NoCapacity, NotFound, StorageFailed
from dovecote.host.instances.instance import Claim, Instance, Leftover, Memory, Placed
from dovecote.host.instances.leftovers import Leftovers
from dovecote.host.instances.preparing import Parts, Preparing
from dovecote.host.instances.present import Present
from dovecote.host.instances.rooting import give_root
from dovecote.host.instances.saving import Saving
from dovecote.host.instances.warm import WarmPool
from dovecote.model.sizes import MIB, Limits
from dovecote.model.states import InstanceState
from dovecote.model.trees import Workspace

log = logging.getLogger(__name__)

STARTING_MEMORY = 64 * MIB  # what an instance takes before its first command


class Claiming:
    def __init__(
        self,
        parts: Parts,
        preparing: Preparing,
        saving: Saving,
        warm: WarmPool,
        present: Present,
        leftovers: Leftovers,
        *,
        memory_reserve_bytes: int,
    ) -> None:
        self._parts = parts
        self._preparing = preparing
        self._saving = saving
        self._warm = warm
        self._present = present
        self._leftovers = leftovers
        self._memory_reserve = memory_reserve_bytes
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def lock(self, owner: str) -> asyncio.Lock:
        """Held while the owner is given an instance; whoever holds it knows that nobody is."""
        return self._locks.setdefault(owner, asyncio.Lock())

    async def claim(self, claim: Claim) -> Placed:
        """An instance that holds the owner's files and answers. The same owner gets the same instance.

        Raises NoCapacity (no_memory, no_addresses), StorageFailed (corrupt, disk_full), Conflict (sealed).
        """
        async with self.lock(claim.owner):
            # Files of one that has died must become a leftover first, or they would be passed over.
            await self._present.burial(claim.owner)
            if (there := self._present.of(claim.owner)) is not None:
                return Placed(there.id, there.address, there.pid, "there")
            self._admit(claim)
            claim = await self._brought_up(claim)
            survivor = await self._survivor(claim)
            note = ""
            if survivor is not None:
                instance, how = await self._revive(claim, survivor), "survivor"
            elif claim.memory:
                instance, how, note = await self._remembering(claim)
            else:
                instance, how = await self._fresh(claim)
            left_out: list[str] = []
            if how != "survivor" and claim.keeps_files and claim.workspace.tree is not None:
                left_out = await asyncio.to_thread(self._parts.trees.left_out, claim.workspace.tree)
            return Placed(instance.id, instance.address, instance.pid, how, tuple(left_out), note)

    def memory(self) -> Memory:
        return Memory(_available_memory(), self._memory_reserve)

    def _admit(self, claim: Claim) -> None:
        available = _available_memory()
        if available < self._memory_reserve + STARTING_MEMORY:
            raise NoCapacity(
                f"this host has {available // MIB} MiB of memory left; {self._memory_reserve // MIB} are reserved",
                code="no_memory",
                hint="park sessions that are idle, or add memory",
                retry_after=5,
            )
        if claim.level not in self._parts.runtimes:
            raise NotFound(
                f"this host has no isolation level {claim.level!r}",
                code="no_such_level",
                hint="it has " + ", ".join(sorted(self._parts.runtimes)),
            )

    async def _brought_up(self, claim: Claim) -> Claim:
        """The claim with the newest checkpoint of the owner's log: a host that was lost may have saved after the owner
        heard of it last. Not where what an instance left on this host is at least as new."""
        if not claim.keeps_files or claim.epoch <= 1 or claim.memory:
            return claim  # memory goes with the files that it was saved with
        left = self._leftovers.get(claim.owner)
        try:
            newest = await self._saving.newest(claim.owner)
        except StorageFailed as error:
            if left is None or error.code == "corrupt":
                raise
            log.warning("%s goes on with what it left here, the log cannot be read: %s", claim.owner, error)
            return claim
        if newest is None or newest.generation <= claim.generation:
            return claim
        if left is not None and (left.epoch == newest.epoch or left.generation >= newest.generation):
            return claim
        saved = await self._saving.last_saved(claim.owner)
        assert saved is not None
        log.info("%s goes on with generation %d of its log", claim.owner, saved.generation)
        workspace = Workspace(newest.template, saved.tree)
        return replace(claim, workspace=workspace, generation=saved.generation)

    async def _survivor(self, claim: Claim) -> Leftover | None:
        left = self._leftovers.get(claim.owner)
        if left is None:
            return None
        if left.generation >= claim.generation and not claim.memory:
            return left
        await self._leftovers.orphan(claim.owner)
        return None

    async def _fresh(self, claim: Claim) -> tuple[Instance, str]:
        with self._warm.claiming():
            return await self._taken(claim)

    async def _taken(self, claim: Claim) -> tuple[Instance, str]:
        instance = await self._warm.take(level=claim.level, allow_setuid=claim.allow_setuid)
        how = "pool"
        if instance is None:
            how = "cold"
            instance = await self._preparing.prepare(
                level=claim.level, allow_setuid=claim.allow_setuid, limits=claim.limits
            )
            self._present.watch(instance)
        try:
            await self._equip(instance, claim, is_new=True)
        except BaseException:
            await self._give_up(instance, keep_disk=False)
            raise
        return instance, how

    async def _remembering(self, claim: Claim) -> tuple[Instance, str, str]:
        """Where its processes were, or from its files alone, with the reason."""
        try:
            instance, _ = await self._fresh(claim)
        except Failed as error:
            if error.code != "restore_failed":
                raise
            log.warning("the processes of %s are lost: %s", claim.owner, error)
            instance, how = await self._fresh(replace(claim, memory=None))
            return instance, how, f"its processes could not be restored, it began from its files: {error.message}"
        return instance, "memory", ""

    async def _revive(self, claim: Claim, left: Leftover) -> Instance:
        record = await self._saving.read(left.disk)
        workspace = await self._saving.retake(left.disk, claim)
        instance = await self._preparing.prepare(
            level=claim.level,
            allow_setuid=claim.allow_setuid,
            limits=claim.limits,
            id_base=record.id_base,
            disk=left.disk,
        )
        self._present.watch(instance)
        try:
            await self._equip(instance, replace(claim, workspace=workspace), is_new=False)
        except BaseException:
            await self._give_up(instance, keep_disk=True)
            raise
        self._leftovers.take(claim.owner)
        return instance

    async def _give_up(self, instance: Instance, *, keep_disk: bool) -> None:
        """After a claim that failed; the failure is what the caller hears of."""
        self._present.unwatch(instance)
        try:
            await self._preparing.unmake(instance, keep_disk=keep_disk)
        except (DovecoteError, OSError) as error:
            log.error("something of %s is left until the next start: %s", instance.id, error)

    async def _equip(self, instance: Instance, claim: Claim, *, is_new: bool) -> None:
        """Gives a prepared instance its owner's limits, network and root; `is_new` when its disk holds nothing yet."""
        instance.become(InstanceState.CLAIMED)
        instance.claim = claim
        if claim.mounts:
            instance.record()  # whoever wants to know what is mounted sees it before it is
        else:
            instance.unrecord()
        # All come to their end before the first failure is raised: what undoes them must not race with them.
        done = await asyncio.gather(
            self._limit(instance, claim.limits),
            self._connect(instance, claim),
            give_root(self._parts, instance, claim, is_new=is_new, guest=self._preparing.guest_binary),
            self._own(instance, claim, is_new=is_new),
            return_exceptions=True,
        )
        for failure in done:
            if isinstance(failure, BaseException):
                raise failure
        if is_new and not claim.memory:
            instance.untouched = self._parts.disks.untouched(instance.disk)
        instance.become(InstanceState.READY)
        instance.quiet_since = time.monotonic()
        instance.record()
        self._present.keep(instance)

    async def _limit(self, instance: Instance, limits: Limits) -> None:
        if instance.limits == limits:
            return  # as it was prepared
        instance.limits = None
        roomy = self._parts.runtimes[instance.level].capabilities.roomy(limits)
        await self._parts.cgroups.limit(instance.id, roomy)
        await self._parts.disks.limit(instance.disk, max_bytes=limits.disk_bytes)
        instance.limits = limits

    async def _connect(self, instance: Instance, claim: Claim) -> None:
        if claim.connections:
            await self._parts.network.limit(instance.address, claim.connections)
        await self._parts.network.apply(instance.address, claim.network)

    async def _own(self, instance: Instance, claim: Claim, *, is_new: bool) -> None:
        """Writes down whose files these are, and ends what an earlier owner of them may still save."""
        if claim.keeps_files and is_new:
            await self._saving.take(instance.disk, instance.id_base, claim)
        if not claim.keeps_files or not (claim.generation or claim.epoch > 1):
            return
        try:
            await self._saving.seal(claim)
        except StorageFailed as error:
            if is_new:
                raise
            # Work goes on where the files are; whoever else writes to the log is found out by the first checkpoint.
            log.warning("%s goes on without a seal, the store fails: %s", claim.owner, error)


def _available_memory() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0
