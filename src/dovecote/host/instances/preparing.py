"""Makes an instance that waits in its stub root for a claim, and unmakes any instance without leaving a trace."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import socket
import time
from collections.abc import Awaitable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dovecote.errors import DovecoteError, Failed, NoCapacity, NotFound
from dovecote.host.instances.instance import Instance, read_instance
from dovecote.host.network import Attachment, Network
from dovecote.host.processes import process_started
from dovecote.host.runtime import Box, Cgroups, Pauses, Runtime, ensure_stub
from dovecote.host.storage import mounts
from dovecote.host.storage.entrance import Entrance
from dovecote.host.storage.images import Images
from dovecote.host.storage.memories import Memories
from dovecote.host.storage.pool import Disks
from dovecote.host.storage.roots import Roots
from dovecote.host.storage.trees import Trees
from dovecote.host.storage.volumes import Buckets, Volumes
from dovecote.model.ids import new_id
from dovecote.model.sizes import Limits
from dovecote.model.states import InstanceState

log = logging.getLogger(__name__)

FIRST_ID = 1 << 21  # below it are the host's own users and the usual subordinate ranges
ID_COUNT = 1 << 16
RANGES = (1 << 32) // ID_COUNT - FIRST_ID // ID_COUNT - 1
GUEST_ANSWERS_WITHIN = 5.0  # seconds
HOSTNAME = "sandbox"


@dataclass(frozen=True)
class Parts:
    """The drivers of one host."""

    runtimes: Mapping[str, Runtime]
    cgroups: Cgroups
    pauses: Pauses
    network: Network
    disks: Disks
    roots: Roots
    entrance: Entrance
    trees: Trees
    volumes: Volumes
    buckets: Buckets
    images: Images
    memories: Memories


class IdRanges:
    """Gives each instance, and each upper that outlives one, a range of host ids of its own."""

    def __init__(self) -> None:
        self._used: set[int] = set()
        self._next = 0

    def adopt(self, bases: Iterable[int]) -> None:
        self._used.update(bases)

    def acquire(self) -> int:
        for _ in range(RANGES):
            base = FIRST_ID + self._next * ID_COUNT
            self._next = (self._next + 1) % RANGES
            if base not in self._used:
                self._used.add(base)
                return base
        raise NoCapacity("every range of user ids is taken", code="no_ids", hint="remove sessions that are not needed")

    def release(self, base: int) -> None:
        self._used.discard(base)


class Preparing:
    def __init__(self, parts: Parts, *, run_dir: Path, guest_binary: Path) -> None:
        self.parts = parts
        self.ids = IdRanges()
        self._instances_dir = run_dir / "instances"
        self._stub = run_dir / "stub"
        self._guest_binary = guest_binary

    async def ensure(self) -> None:
        """Makes the stub root that all instances start in. May be repeated."""
        self._instances_dir.mkdir(parents=True, exist_ok=True, mode=0o711)
        self._instances_dir.chmod(0o711)
        ensure_stub(self._stub, self._guest_binary)

    @property
    def guest_binary(self) -> Path:
        return self._guest_binary

    def directories(self) -> list[Path]:
        return [path for path in self._instances_dir.iterdir() if path.is_dir()]

    def trees(self) -> set[str]:
        """What the recorded instances were claimed for."""
        found: set[str] = set()
        for directory in self.directories():
            with contextlib.suppress(NotFound):  # its preparation was cut short, or it is just gone
                claim = read_instance(directory).claim
                if claim is not None:
                    found |= {tree for tree in (claim.workspace.template, claim.workspace.tree) if tree}
        return found

    async def prepare(
        self, *, level: str, allow_setuid: bool, limits: Limits, id_base: int | None = None, disk: str | None = None
    ) -> Instance:
        """A guest that runs in the stub root with a network, a cgroup and a disk of its own; without the guest where
        roots cannot be swapped.

        With `disk` (and the `id_base` that its files are owned by) an upper that survived is used again.
        Whatever fails, nothing of it is left behind. Raises NoCapacity, Failed, StorageFailed.
        """
        runtime = self.parts.runtimes[level]
        instance_id = new_id("ins")
        directory = self._instances_dir / instance_id
        directory.mkdir(mode=0o711)
        async with contextlib.AsyncExitStack() as undo:
            undo.callback(remove_directory, directory)
            base = self.ids.acquire() if id_base is None else id_base
            if id_base is None:
                undo.callback(self.ids.release, base)
            # Undoing may be repeated and of nothing, so it is promised before: one of three may fail.
            undo.push_async_callback(self.parts.cgroups.remove, instance_id)
            if disk is None:
                undo.push_async_callback(self.parts.disks.delete, instance_id)
            made = await asyncio.gather(
                self.parts.network.attach(),
                self.parts.cgroups.create(instance_id, runtime.capabilities.roomy(limits)),
                self._disk(disk or instance_id, limits, base, exists=disk is not None),
                return_exceptions=True,
            )
            attachment = made[0]
            if isinstance(attachment, Attachment):
                undo.push_async_callback(self.parts.network.detach, attachment.address)
            for failure in made:
                if isinstance(failure, BaseException):
                    raise failure
            assert isinstance(attachment, Attachment)
            undo.push_async_callback(runtime.delete, instance_id)
            instance = Instance(
                id=instance_id,
                directory=directory,
                state=InstanceState.PREPARED,
                level=level,
                allow_setuid=allow_setuid,
                address=attachment.address,
                netns=attachment.netns,
                network_index=attachment.index,
                id_base=base,
                disk=disk or instance_id,
                pid=0,
                pid_started=0,
                limits=limits,
                quiet_since=time.monotonic(),
            )
            if runtime.capabilities.can_swap_root:
                await self._start_in_stub(instance, limits)
            await self.parts.roots.prepare(base)
            instance.record()
            undo.pop_all()
            return instance

    async def _start_in_stub(self, instance: Instance, limits: Limits) -> None:
        with _listen(instance.socket) as listener:
            instance.pid = await self.parts.runtimes[instance.level].start(
                Box(
                    id=instance.id,
                    directory=instance.directory,
                    rootfs=self._stub,
                    id_base=instance.id_base,
                    id_count=ID_COUNT,
                    netns=instance.netns,
                    cgroup=instance.id,
                    listener=listener,
                    argv=("/guest", "3"),
                    hostname=HOSTNAME,
                    allow_setuid=instance.allow_setuid,
                    open_files=limits.open_files,
                )
            )
        await instance.guest.hello(timeout=GUEST_ANSWERS_WITHIN)
        started = process_started(instance.pid)
        if started is None:
            raise Failed("the guest ended at once", code="runtime_failed")
        instance.pid_started = started

    async def _disk(self, name: str, limits: Limits, owner: int, *, exists: bool) -> None:
        if exists:
            await self.parts.disks.limit(name, max_bytes=limits.disk_bytes)
        else:
            await self.parts.disks.create(name, max_bytes=limits.disk_bytes, owner=owner)

    async def unmake(self, instance: Instance, *, keep_disk: bool) -> None:
        """Ends whatever of the instance is there. May be repeated; goes on past a step that fails, then raises it."""
        failures: list[BaseException] = []

        async def step(act: Awaitable[None]) -> None:
            try:
                await act
            except (DovecoteError, OSError) as error:
                log.warning("unmaking %s: %s", instance.id, error)
                failures.append(error)

        await step(self.parts.runtimes[instance.level].kill(instance.id))
        await step(self.parts.cgroups.kill(instance.id))
        await step(self.parts.runtimes[instance.level].delete(instance.id))
        await step(asyncio.to_thread(unmount_below, instance.directory))
        await step(self.parts.network.detach(instance.address))
        await step(self.parts.cgroups.remove(instance.id))
        if instance.claim is not None and instance.holds_root:
            instance.holds_root = False
            await step(self.parts.roots.release(instance.claim.workspace))
        if not keep_disk:
            await step(self.parts.disks.delete(instance.disk))
            if not failures:  # or another's processes might run with its ids beside those that are left of it
                self.ids.release(instance.id_base)
        if instance.pidfd >= 0:
            os.close(instance.pidfd)
            instance.pidfd = -1
        if failures:
            raise failures[0]
        remove_directory(instance.directory)


def unmount_below(directory: Path) -> None:
    """Roots, volumes in them, and doors."""
    for point in mounts.mounted_below(directory):
        mounts.unmount(point, detach=True)


def remove_directory(directory: Path) -> None:
    """Never through a mount: what is below one belongs to others."""
    unmount_below(directory)
    if not mounts.mounted_below(directory):
        shutil.rmtree(directory, ignore_errors=True)


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Bound by a short relative name: a socket's path may have 107 bytes only.
        directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
        try:
            listener.bind(f"/proc/self/fd/{directory}/{path.name}")
        finally:
            os.close(directory)
        path.chmod(0o600)
        listener.listen(128)
    except BaseException:
        listener.close()
        raise
    return listener
