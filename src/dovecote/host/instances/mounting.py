"""Volumes in instances: mounted as a claim says, and into one that runs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from dataclasses import replace
from pathlib import Path

from dovecote.errors import Conflict, DovecoteError, NotFound, Unsupported
from dovecote.host.instances.instance import Instance, read_instance
from dovecote.host.instances.preparing import Parts
from dovecote.host.storage import mounts
from dovecote.host.storage.inside import place
from dovecote.host.storage.volumes import clone_mount, closing, taken
from dovecote.model.volumes import BUCKET, Mount, covers

log = logging.getLogger(__name__)


async def mount_all(parts: Parts, instance: Instance) -> None:
    """What the claim names, once its root is in place."""
    if instance.claim is not None:
        for mount in instance.claim.mounts:
            await _attach(parts, instance, mount)


async def place_all(parts: Parts, instance: Instance, root: Path) -> None:
    """The same into a root in which nothing runs yet, mounted on the host."""
    assert instance.claim is not None
    for each in instance.claim.mounts:
        detached = await _open(parts, instance, each)
        # Whoever waits may leave, but the descriptor's number must not become another's under the thread.
        placing = asyncio.get_running_loop().run_in_executor(None, _place, detached, root, each.at, instance.id_base)
        await asyncio.shield(placing)


async def mount(parts: Parts, instance: Instance, wanted: Mount) -> None:
    """One more. May be repeated. Raises Conflict (exists) when another mount is there, NotFound, StorageFailed."""
    assert instance.claim is not None
    _check_live(parts, instance)
    if wanted in instance.claim.mounts and wanted.at in instance.mounted:
        return
    for there in instance.claim.mounts:
        if covers(there.at, wanted.at):
            raise Conflict(f"a volume is mounted at {there.at}", code="exists", hint="unmount it first")
    # Written first: whoever wants to know what is mounted sees it before it is.
    instance.opening = wanted
    instance.record()
    try:
        await _attach(parts, instance, wanted)
    except BaseException:
        _failed(instance, wanted)
        raise
    instance.claim = replace(instance.claim, mounts=(*instance.claim.mounts, wanted))
    instance.opening = None
    instance.record()


async def unmount(parts: Parts, instance: Instance, at: str, *, force: bool) -> None:
    """May be repeated. Raises StorageFailed (busy) unless forced."""
    assert instance.claim is not None
    _check_live(parts, instance)
    number = instance.mounted.get(at)
    if number is not None:
        await parts.entrance.detach(instance.pid, number, lazy=force)
        del instance.mounted[at]
    if instance.opening is not None and instance.opening.at == at:
        instance.opening = None
    instance.claim = replace(instance.claim, mounts=tuple(m for m in instance.claim.mounts if m.at != at))
    instance.record()


async def take_back_unfinished(parts: Parts, instance: Instance) -> None:
    """After a restart: nobody was told of a mount that was on its way then."""
    if instance.opening is not None:
        await _take_back(parts, instance, instance.opening.at)
        _failed(instance, instance.opening)


def mounted_paths(instances_dir: Path, volume: str) -> list[str]:
    """Paths of a volume that instances have, or are about to have, by what is recorded of them."""
    found = []
    for directory in instances_dir.glob("*"):
        with contextlib.suppress(NotFound, OSError):  # its preparation was cut short, or it is just gone
            if volume.encode() not in (directory / "instance.json").read_bytes():
                continue  # most name another
            instance = read_instance(directory)
            all_of_it = (*(instance.claim.mounts if instance.claim else ()), instance.opening)
            found += [mount.path for mount in all_of_it if mount is not None and mount.volume == volume]
    return found


def _check_live(parts: Parts, instance: Instance) -> None:
    if not parts.runtimes[instance.level].capabilities.can_mount_live:
        raise Unsupported(
            f"at isolation level {instance.level} mounts of a running sandbox stay as they are",
            code="no_live_mount",
            hint="park the session first: it wakes with the mounts that it has then",
        )


async def _attach(parts: Parts, instance: Instance, mount: Mount) -> None:
    """Whoever waits may leave: what was begun comes to its end all the same, and is taken back then."""
    detached = await _open(parts, instance, mount)
    attaching = asyncio.ensure_future(_attached(parts, instance, mount.at, detached))
    try:
        await asyncio.shield(attaching)
    except asyncio.CancelledError:
        await asyncio.shield(asyncio.ensure_future(_given_up(parts, instance, mount, attaching)))
        raise


async def _attached(parts: Parts, instance: Instance, at: str, detached: int) -> None:
    try:
        # Written first: what is mounted and not written down could never be unmounted.
        instance.mounted[at] = mounts.mount_id(detached)
        instance.record()
        await parts.entrance.attach(instance.pid, detached, at, owner=instance.id_base)
    except Exception:
        await _take_back(parts, instance, at)
        raise
    finally:
        os.close(detached)


async def _given_up(parts: Parts, instance: Instance, mount: Mount, attaching: asyncio.Future[None]) -> None:
    await asyncio.wait({attaching})
    if attaching.cancelled() or attaching.exception() is None:
        await _take_back(parts, instance, mount.at)
    _failed(instance, mount)


def _failed(instance: Instance, mount: Mount) -> None:
    """It is not on its way any more, unless it is there or may be."""
    if instance.opening is mount and mount.at not in instance.mounted:
        instance.opening = None
        instance.record()


async def _take_back(parts: Parts, instance: Instance, at: str) -> None:
    """A helper that failed may have attached it: what cannot be looked after stays written down."""
    number = instance.mounted.get(at)
    if number is None:
        return
    try:
        await parts.entrance.detach(instance.pid, number, lazy=True)
    except DovecoteError as error:
        log.warning("a mount at %s of %s may be left: %s", at, instance.id, error)
        return
    instance.mounted.pop(at, None)
    instance.record()


def _place(detached: int, root: Path, at: str, owner: int) -> None:
    try:
        place(detached, root, at, owner=owner)
    finally:
        os.close(detached)


async def _open(parts: Parts, instance: Instance, mount: Mount) -> int:
    """What is named, of a volume or a bucket, as a detached mount; the caller closes it."""
    if mount.volume.startswith(BUCKET):
        return await parts.buckets.open(mount)
    return await taken(asyncio.get_running_loop().run_in_executor(None, _open_volume, parts, instance, mount))


def _open_volume(parts: Parts, instance: Instance, mount: Mount) -> int:
    userns = mounts.user_namespace(instance.id_base)
    try:
        with closing(parts.volumes.open(mount)) as place:
            return clone_mount(place, mount, userns)
    finally:
        os.close(userns)
