"""Gives an instance its root: swapped in where that can be done, else the sandbox starts in it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from dovecote.errors import DovecoteError, Failed, NoCapacity, StorageFailed
from dovecote.host.instances.door import PROGRAM, SOCKET, Door
from dovecote.host.instances.instance import Claim, Instance
from dovecote.host.instances.mounting import mount_all, place_all
from dovecote.host.instances.preparing import GUEST_ANSWERS_WITHIN, HOSTNAME, ID_COUNT, Parts
from dovecote.host.processes import process_started
from dovecote.host.runtime import DOOR, Box
from dovecote.host.storage import mounts

ROOT = "root"  # below the instance's directory


async def give_root(parts: Parts, instance: Instance, claim: Claim, *, is_new: bool, guest: Path) -> None:
    """From then on its guest answers in the files of the claim, volumes and all; with `claim.memory` its processes
    are those that were saved. `is_new`: its disk holds nothing yet."""
    root = await parts.roots.assemble(
        claim.workspace,
        disk=parts.disks.path(instance.disk),
        id_base=instance.id_base,
        setuid=claim.allow_setuid,
        is_new=is_new,
    )
    instance.holds_root = True
    if parts.runtimes[instance.level].capabilities.can_swap_root:
        try:
            await parts.entrance.swap_root(instance.pid, root, id_base=instance.id_base)
        finally:
            os.close(root)
        await mount_all(parts, instance)
    else:
        await asyncio.to_thread(mounts.mount_at, root, instance.directory / ROOT)
        await place_all(parts, instance, instance.directory / ROOT)
        await _start(parts, instance, claim, guest)


async def _start(parts: Parts, instance: Instance, claim: Claim, guest: Path) -> None:
    door = instance.door
    await asyncio.to_thread(door.make, guest)
    instance.has_door = True
    image = await asyncio.to_thread(parts.memories.place) if claim.memory else None
    try:
        if claim.memory and image:
            await _bring(parts, claim.memory, image)
        instance.pid = await parts.runtimes[instance.level].start(_box(instance, claim, door, image))
        started = process_started(instance.pid)
        if started is None:
            raise Failed("the sandbox ended at once", code="runtime_failed")
        instance.pid_started = started
        await door.let_bind(GUEST_ANSWERS_WITHIN)
    except DovecoteError as error:
        # A store that fails now may have it later; with anything else that fails the processes are lost.
        if not image or isinstance(error, NoCapacity | StorageFailed):
            raise
        raise Failed(error.message, code="restore_failed", hint=error.hint) from error
    finally:
        if image:
            await asyncio.to_thread(parts.memories.drop, image)


async def _bring(parts: Parts, memory: str, image: Path) -> None:
    try:
        await asyncio.to_thread(parts.memories.bring, memory, image)
    except StorageFailed as error:
        if error.code != "corrupt":
            raise
        raise Failed(error.message, code="restore_failed", hint=error.hint) from error


def _box(instance: Instance, claim: Claim, door: Door, image: Path | None) -> Box:
    return Box(
        id=instance.id,
        directory=instance.directory,
        rootfs=instance.directory / ROOT,
        id_base=instance.id_base,
        id_count=ID_COUNT,
        netns=instance.netns,
        cgroup=instance.id,
        listener=None,
        argv=(f"{DOOR}/{PROGRAM}", f"{DOOR}/{SOCKET}"),
        hostname=HOSTNAME,
        allow_setuid=claim.allow_setuid,
        open_files=claim.limits.open_files,
        door=door.path,
        memory=image,
    )
