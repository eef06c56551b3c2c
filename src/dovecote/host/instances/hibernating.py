"""Saves an instance's memory with its files, as of one moment in which nothing inside runs."""

from __future__ import annotations

import asyncio

from dovecote.errors import Conflict
from dovecote.host.instances.adopting import answer_again, go_on
from dovecote.host.instances.instance import Instance
from dovecote.host.instances.preparing import Parts
from dovecote.host.instances.saving import Saving
from dovecote.host.runtime import cannot_hibernate
from dovecote.model.states import InstanceState
from dovecote.model.trees import Hibernated, Saved


async def hibernate(parts: Parts, saving: Saving, instance: Instance) -> Hibernated:
    """It stands still afterwards. Raises Unsupported (cannot_hibernate), Failed, StorageFailed; then it goes on."""
    if not parts.runtimes[instance.level].capabilities.can_hibernate:
        raise cannot_hibernate(instance.level)
    async with instance.hibernating:
        try:
            async with instance.lock:
                await _suspend(parts, instance)
            # Not under that lock: a checkpoint that is under way waits for it.
            saved, memory = await _both(parts, saving, instance)
        except BaseException:
            if not instance.is_dead:
                await asyncio.shield(awaken(parts, instance))
            raise
    return Hibernated(saved, memory)


async def _both(parts: Parts, saving: Saving, instance: Instance) -> tuple[Saved, str]:
    """Both come to their end before the first failure is raised: nothing runs behind the back of what undoes them."""
    saved, memory = await asyncio.gather(
        saving.save(instance.disk, whole=True), _memory(parts, instance), return_exceptions=True
    )
    for each in (saved, memory):
        if isinstance(each, BaseException):
            raise each
    assert isinstance(saved, Saved)
    assert isinstance(memory, str)
    return saved, memory


async def _memory(parts: Parts, instance: Instance) -> str:
    place = await asyncio.to_thread(parts.memories.place)
    try:
        await parts.runtimes[instance.level].save_memory(instance.id, place)
        return await asyncio.to_thread(parts.memories.keep, place)
    finally:
        await asyncio.to_thread(parts.memories.drop, place)


async def _suspend(parts: Parts, instance: Instance) -> None:
    """Refused, its door shut, and paused; in that order, each of which can be taken back."""
    if instance.state is InstanceState.SUSPENDED:
        return
    if instance.is_dead:
        raise Conflict(f"{instance.id} is ending", code="stopping")
    # Said first: what follows is taken back as far as it came.
    instance.become(InstanceState.SUSPENDED)
    instance.record()
    await parts.network.refuse(instance.address)
    await parts.cgroups.thaw(instance.id)
    await instance.guest.suspend()
    instance.door.forget_socket()
    await parts.runtimes[instance.level].pause(instance.id)


async def awaken(parts: Parts, instance: Instance) -> None:
    """Takes a hibernation back: it goes on where it stands. May be repeated."""
    async with instance.lock:
        if instance.state is InstanceState.SUSPENDED and not instance.is_dead:
            await go_on(parts, instance)
            await answer_again(parts, instance)
