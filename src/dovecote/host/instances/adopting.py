"""What a host finds of its own when it starts: instances that run, and disks and directories without one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dovecote.errors import NotFound
from dovecote.host.guest.protocol import VERSION
from dovecote.host.instances.instance import Claim, Instance, Leftover, read_instance
from dovecote.host.instances.mounting import take_back_unfinished
from dovecote.host.instances.preparing import GUEST_ANSWERS_WITHIN, Parts, Preparing, remove_directory
from dovecote.host.instances.saving import Saving
from dovecote.host.processes import is_alive
from dovecote.model.states import InstanceState

log = logging.getLogger(__name__)

USABLE = (InstanceState.READY, InstanceState.FREEZING, InstanceState.FROZEN, InstanceState.SUSPENDED)


@dataclass
class Found:
    claimed: list[Instance] = field(default_factory=list)
    prepared: list[Instance] = field(default_factory=list)
    leftovers: dict[str, Leftover] = field(default_factory=dict)  # by owner
    orphans: dict[str, set[str]] = field(default_factory=dict)  # disks by owner

    def disks(self) -> set[str]:
        return {instance.disk for instance in (*self.claimed, *self.prepared)}

    def has(self, owner: str) -> bool:
        return any(instance.claim and instance.claim.owner == owner for instance in self.claimed)


class Adoption:
    """The truth is what runs and what lies on the disks. One thing that cannot be dealt with stops nothing else."""

    def __init__(self, parts: Parts, preparing: Preparing, saving: Saving) -> None:
        self._parts = parts
        self._preparing = preparing
        self._saving = saving
        self._found = Found()

    async def find(self, *, fits: Callable[[Instance], bool]) -> Found:
        """Takes over what can be used, removes what is nobody's. `fits` says what belongs into the warm pool."""
        recorded: list[Instance] = []
        broken: list[Path] = []
        for directory in self._preparing.directories():
            try:
                recorded.append(read_instance(directory))
            except NotFound:
                broken.append(directory)
        cut_off = await self._parts.network.adopt({instance.id: instance.attachment for instance in recorded})
        await self._parts.roots.adopt()
        for instance in recorded:
            with _one_bad_apple(f"adopting {instance.id}"):
                await self._instance(instance, has_network=instance.id not in cut_off, fits=fits)
        for directory in broken:
            with _one_bad_apple(f"removing {directory.name}"):
                await self._remove_broken(directory)
        await self._saving.sweep()
        for name in await self._parts.disks.list():
            if name not in self._found.disks():
                with _one_bad_apple(f"looking at disk {name}"):
                    await self._disk(name)
        return self._found

    async def _instance(self, instance: Instance, *, has_network: bool, fits: Callable[[Instance], bool]) -> None:
        alive = has_network and is_alive(instance.pid, instance.pid_started)
        # What another version of ours started does not understand us: its files go on in a new one.
        alive = alive and instance.protocol == VERSION
        revived = instance.disk != instance.id  # its disk was somebody's before it was prepared
        self._preparing.ids.adopt([instance.id_base])
        if alive and instance.claim is not None and instance.state in USABLE:
            try:
                await self._claimed(instance, instance.claim)
            except Exception:
                # It would be taken for one that answers; what it holds is found as a leftover.
                log.exception("%s cannot be taken over", instance.id)
                await self._preparing.unmake(instance, keep_disk=instance.claim.keeps_files)
            else:
                self._found.claimed.append(instance)
        elif alive and instance.state is InstanceState.PREPARED and not revived and fits(instance):
            self._found.prepared.append(instance)
        else:
            keep = revived or (instance.claim is not None and instance.claim.keeps_files)
            await self._preparing.unmake(instance, keep_disk=keep)

    async def _claimed(self, instance: Instance, claim: Claim) -> None:
        instance.quiet_since = time.monotonic()
        await take_back_unfinished(self._parts, instance)
        await self._parts.network.apply(instance.address, claim.network)
        if claim.connections:
            await self._parts.network.limit(instance.address, claim.connections)
        if instance.state is InstanceState.FROZEN:
            await self._parts.network.refuse(instance.address)
        elif instance.state is InstanceState.SUSPENDED:
            # Its hibernation was cut short. If the memory was recorded all the same, control ends it.
            await go_on(self._parts, instance)
            await answer_again(self._parts, instance)
        else:
            # It may have been on its way into the ice, or out of it.
            await self._parts.cgroups.thaw(instance.id)
            await answer_again(self._parts, instance)
        await self._parts.roots.hold(claim.workspace)
        instance.holds_root = True
        log.info("adopted %s of %s (%s)", instance.id, claim.owner, instance.state)

    async def _remove_broken(self, directory: Path) -> None:
        """What a preparation that was cut short left, found by the name that all of its parts have."""
        name = directory.name
        await self._parts.cgroups.kill(name)
        for runtime in self._parts.runtimes.values():
            await runtime.delete(name)
        await self._parts.cgroups.remove(name)
        await asyncio.to_thread(remove_directory, directory)

    async def _disk(self, name: str) -> None:
        try:
            record = await self._saving.read(name)
        except NotFound:
            await self._parts.disks.delete(name)  # nobody had it
            return
        self._preparing.ids.adopt([record.id_base])
        if record.orphan:
            self._found.orphans.setdefault(record.owner, set()).add(name)
            return
        left = Leftover(record.owner, name, record.generation, record.epoch)
        other = self._found.leftovers.get(record.owner)
        if self._found.has(record.owner) or (other and other.epoch > left.epoch):
            await self._orphan(record.owner, name)
            return
        if other is not None:
            await self._orphan(record.owner, other.disk)
        self._found.leftovers[record.owner] = left

    async def _orphan(self, owner: str, disk: str) -> None:
        await self._saving.orphan(disk)
        self._found.orphans.setdefault(owner, set()).add(disk)


async def go_on(parts: Parts, instance: Instance) -> None:
    """Takes back what went before the saving of its memory, as far as that had come."""
    await parts.cgroups.thaw(instance.id)
    await parts.runtimes[instance.level].resume(instance.id)
    await instance.door.let_bind(GUEST_ANSWERS_WITHIN)


async def answer_again(parts: Parts, instance: Instance) -> None:
    """Its processes may run: lets connections in, and says so."""
    await parts.network.accept(instance.address)
    instance.become(InstanceState.READY)
    instance.quiet_since = time.monotonic()
    instance.record()


@contextlib.contextmanager
def _one_bad_apple(what: str) -> Iterator[None]:
    """One instance or disk that cannot be dealt with must not keep the host from starting."""
    try:
        yield
    except Exception:
        log.exception("%s failed; it is left as it is", what)
