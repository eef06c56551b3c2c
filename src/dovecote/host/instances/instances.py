"""The instances of one host: claimed, frozen, thawed, stopped, and adopted again after a restart."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import replace
from functools import partial

from dovecote.background import Background
from dovecote.errors import Conflict, DovecoteError
from dovecote.host.guest import Guest
from dovecote.host.instances import mounting
from dovecote.host.instances.adopting import Adoption, answer_again
from dovecote.host.instances.capturing import capture
from dovecote.host.instances.checkpoints import Checkpoints
from dovecote.host.instances.claiming import Claiming
from dovecote.host.instances.connections import Connection, dial
from dovecote.host.instances.hibernating import awaken, hibernate
from dovecote.host.instances.instance import (
    Death,
    Instance,
    Leftover,
)
from dovecote.host.instances.leftovers import Leftovers
from dovecote.host.instances.looking import Looking
from dovecote.host.instances.past import archived, diff
from dovecote.host.instances.preparing import Parts, Preparing
from dovecote.host.instances.present import Present
from dovecote.host.instances.saving import Saving
from dovecote.host.instances.warm import WarmPool
from dovecote.host.storage.changes import changes
from dovecote.host.storage.images import Images
from dovecote.host.storage.volumes import Volumes
from dovecote.model.sizes import NetworkPolicy
from dovecote.model.states import InstanceState
from dovecote.model.trees import Change, FileDiff, Hibernated, Lag, Saved, Workspace
from dovecote.model.volumes import Mount

log = logging.getLogger(__name__)

GRACE_AT_END = 1.0  # seconds that commands get when the whole host goes down


class Instances:
    """Every method may be repeated; an unknown id raises NotFound."""

    def __init__(
        self,
        parts: Parts,
        *,
        preparing: Preparing,
        saving: Saving,
        warm: WarmPool,
        memory_reserve_bytes: int,
        on_death: Callable[[Death], None],
    ) -> None:
        self._parts = parts
        self._preparing = preparing
        self._saving = saving
        self._warm = warm
        self._leftovers = Leftovers(saving, release=lambda base: preparing.ids.release(base))
        self._background = Background()
        self._present = Present(parts, preparing, warm, self._leftovers, background=self._background, on_death=on_death)
        self._claiming = Claiming(
            parts,
            preparing,
            saving,
            warm,
            self._present,
            self._leftovers,
            memory_reserve_bytes=memory_reserve_bytes,
        )
        self.claim, self.memory = self._claiming.claim, self._claiming.memory
        looking = Looking(parts, self._present)
        self.observe, self.look = looking.observe, looking.look
        self._expecting = asyncio.Lock()
        self._checkpoints = Checkpoints(
            saving,
            parts.disks,
            live=self._present.all,
            on_sealed=self._sealed,
            still=self._still,
        )

    # -- coming and going of the host itself

    async def start(self, *, warm: bool = True) -> None:
        """Adopts what runs, removes what is nobody's, and begins to fill the warm pool unless told not to."""
        await self._preparing.ensure()
        await asyncio.to_thread(self._parts.memories.clear)
        found = await Adoption(self._parts, self._preparing, self._saving).find(fits=self._warm.fits)
        for instance in found.claimed:
            self._present.keep(instance)
        for instance in found.prepared:
            self._present.watch(instance)
            self._warm.adopt(instance)
        self._leftovers.adopt(found.leftovers, found.orphans)
        if warm:
            self._warm.start(self._present.watch)
            self._checkpoints.start()

    async def trees_of_disks(self) -> set[str]:
        """Trees that files on this host's disks are changes of, those of orphans too."""
        return await self._saving.trees()

    async def trees_of_instances(self) -> set[str]:
        """Trees below the roots of all that was ever recorded to run here and is not gone, adopted or not."""
        return await asyncio.to_thread(self._preparing.trees)

    async def stop_host(self) -> None:
        """Lets go of everything without ending it: instances go on, a next start adopts them."""
        await self._warm.stop()
        await self._checkpoints.stop()
        await self._background.stop()
        for instance in self._present.all():
            self._present.unwatch(instance)

    async def clear(self) -> int:
        """Ends every instance and counts them; files of their owners stay on the disks."""
        count = len(self._present.all()) + len(self._warm)
        await self._warm.clear()
        await asyncio.gather(*(self.stop(instance.id, grace=GRACE_AT_END) for instance in self._present.all()))
        return count

    # -- what control asks for

    async def freeze(self, instance_id: str, *, force: bool = False) -> bool:
        """Stops its processes where they are; False when a request is on its way, and then nothing has changed.

        With `force` it does not look: what is on its way stands still until it is thawed.

        New connections are refused first, then flows are looked for, then the processes are frozen: no request is
        caught by the freezing, and a later one is refused at once and comes back through wake.
        """
        instance = self._present.get(instance_id)
        async with instance.lock:
            if instance.state is InstanceState.FROZEN:
                return True
            instance.become(InstanceState.FREEZING)
            instance.record()
            try:
                await self._parts.network.refuse(instance.address)
                if not force and await self._parts.network.flows(instance.address):
                    await answer_again(self._parts, instance)
                    return False
                await self._parts.cgroups.freeze(instance.id)
            except BaseException:
                await self._parts.cgroups.thaw(instance.id)
                await answer_again(self._parts, instance)
                raise
            instance.become(InstanceState.FROZEN)
            instance.record()
            return True

    async def thaw(self, instance_id: str) -> None:
        instance = self._present.get(instance_id)
        async with instance.lock:
            if instance.state is not InstanceState.FROZEN:
                return
            await self._parts.cgroups.thaw(instance.id)
            await answer_again(self._parts, instance)

    async def hibernate(self, instance_id: str) -> Hibernated:
        """Its memory and its files, of one moment, in the store. It stands still from then on until `stop` or `awaken`.

        Raises Unsupported (cannot_hibernate), Failed, StorageFailed, Conflict (sealed); then it goes on.
        """
        return await hibernate(self._parts, self._saving, self._present.get(instance_id))

    async def awaken(self, instance_id: str) -> None:
        """One that was hibernated goes on where it stands."""
        await awaken(self._parts, self._present.get(instance_id))

    async def save(self, instance_id: str, *, whole: bool = False) -> Saved:
        """A checkpoint of its files while it goes on. Raises StorageFailed, Conflict (sealed)."""
        instance = self._present.get(instance_id)
        return await self._saving.save(instance.disk, whole=whole, still=partial(self._still, instance))

    @contextlib.asynccontextmanager
    async def _still(self, instance: Instance) -> AsyncIterator[None]:
        """A moment in which nothing inside runs: a snapshot beside a writer is not of one moment."""
        async with instance.lock:  # nobody freezes or thaws it meanwhile
            if instance.state is InstanceState.READY and not instance.is_dead:
                async with self._parts.pauses.still(instance.id):
                    yield
            else:
                yield

    async def lag(self, instance_id: str) -> Lag:
        """How far its files are ahead of the store."""
        return await self._checkpoints.lag(self._present.get(instance_id))

    async def set_recovery_point(self, instance_id: str, seconds: float) -> None:
        instance = self._present.get(instance_id)
        async with instance.lock:
            assert instance.claim is not None
            if instance.claim.recovery_point != seconds:
                instance.claim = replace(instance.claim, recovery_point=seconds)
                instance.record()

    async def set_network(self, instance_id: str, network: NetworkPolicy) -> None:
        instance = self._present.get(instance_id)
        async with instance.lock:
            assert instance.claim is not None
            await self._parts.network.apply(instance.address, network)
            instance.claim = replace(instance.claim, network=network)
            instance.record()

    @property
    def volumes(self) -> Volumes:
        return self._parts.volumes

    def buckets(self) -> list[str]:
        return self._parts.buckets.names()

    async def capture(self, instance_id: str) -> str:
        instance = self._present.get(instance_id)
        return await capture(self._parts, instance, self._still(instance))

    @property
    def images(self) -> Images:
        return self._parts.images

    async def mount(self, instance_id: str, mount: Mount) -> None:
        """Into an instance that runs or is frozen. Raises Conflict (exists), NotFound (no_such_path), StorageFailed."""
        instance = self._present.get(instance_id)
        async with instance.lock:
            await mounting.mount(self._parts, instance, mount)

    async def unmount(self, instance_id: str, at: str, *, force: bool = False) -> None:
        """Raises StorageFailed (busy) when something inside uses it, unless forced."""
        instance = self._present.get(instance_id)
        async with instance.lock:
            await mounting.unmount(self._parts, instance, at, force=force)

    async def stop(self, instance_id: str, *, grace: float = 2.0) -> None:
        """Ends it: refuse, SIGTERM to its processes, `grace` seconds, SIGKILL. Kept files become a leftover."""
        instance = self._present.get(instance_id)
        async with instance.lock:
            if self._present.find(instance.id) is None:
                return
            self._present.unwatch(instance)
            instance.is_dead = True
            if grace and instance.state in (InstanceState.READY, InstanceState.FROZEN):
                await self._shut_down(instance, grace)
            instance.become(InstanceState.STOPPING)
            instance.record()
            await self._present.bury(instance)

    async def _shut_down(self, instance: Instance, grace: float) -> None:
        try:
            await self._parts.network.refuse(instance.address)
            if instance.state is InstanceState.FROZEN:
                await self._parts.cgroups.thaw(instance.id)
            await instance.guest.shutdown(grace)
        except (DovecoteError, OSError) as error:
            log.warning("%s did not shut down by itself: %s", instance.id, error)

    async def save_leftover(self, owner: str) -> Saved:
        """Saves what the owner's last instance left on this host. The disk stays until `discard`.

        Raises NotFound (no_leftover), also when the owner went on elsewhere since: then it is an orphan.
        """
        await self._present.burial(owner)
        saved = await self._leftovers.save(owner)
        left = self._leftovers.get(owner)
        if left is not None:
            template = (await self._saving.read(left.disk)).template
            self._background.run(self._expect(Workspace(template, saved.tree)), f"readying the files of {owner}")
        return saved

    async def _expect(self, workspace: Workspace) -> None:
        """Builds and mounts what a claim will soon ask for; one at a time, as somebody may be waiting for another."""
        async with self._expecting:
            try:
                await self._parts.roots.hold(workspace)
            except DovecoteError as error:
                log.warning("tree %s is not ready for a claim: %s", (workspace.tree or "")[:16], error)
            else:
                await self._parts.roots.release(workspace)

    async def discard(self, owner: str) -> None:
        """Deletes what the owner's last instance left. May be repeated."""
        async with self._claiming.lock(owner):
            await self._leftovers.discard(owner)

    async def erase(self, owner: str) -> None:
        """Deletes that and the owner's orphans. May be repeated."""
        async with self._claiming.lock(owner):
            await self._present.burial(owner)
            await self._leftovers.erase(owner)

    async def rewind(self, owner: str, *, epoch: int, template: str, tree: str) -> Saved:
        """An older tree becomes the newest checkpoint of the owner. Raises Conflict (busy) while it has an instance."""
        async with self._claiming.lock(owner):
            if self._present.of(owner) is not None:
                raise Conflict(f"{owner} has an instance", code="busy", hint="stop it first")
            return await self._saving.rewind(owner, epoch=epoch, template=template, tree=tree)

    async def changes(self, template: str, old: str, new: str) -> list[Change]:
        def compare() -> list[Change]:
            trees = self._parts.trees
            return changes(trees.entries(template), trees.entries(old), trees.entries(new))

        return await asyncio.to_thread(compare)

    def archive(self, template: str, tree: str, path: str) -> AsyncGenerator[bytes, None]:
        return archived(self._parts, Workspace(template, tree), path)

    async def diff(self, template: str, old: str, new: str, path: str) -> FileDiff:
        return await diff(self._parts, template, old, new, path)

    async def verify(self, template: str, tree: str) -> None:
        await self._saving.verify(template, tree)

    async def last_saved(self, owner: str) -> Saved | None:
        return await self._saving.last_saved(owner)

    async def last_good(self, owner: str, *, before: int) -> int | None:
        return await self._saving.last_good(owner, before=before)

    def guest(self, instance_id: str) -> Guest:
        instance = self._present.get(instance_id)
        instance.asked_at = 0.0  # commands may come of it
        return instance.guest

    def leftovers(self) -> list[Leftover]:
        return self._leftovers.list()

    def orphaned(self) -> frozenset[str]:
        return self._leftovers.orphaned()

    async def connections(self, instance_id: str) -> int:
        return await self._parts.network.flows(self._present.get(instance_id).address)

    async def dial(self, instance_id: str, port: int, *, loopback: bool = False) -> Connection:
        return await dial(self._present.get(instance_id), self._parts.network, port, loopback=loopback)

    async def usage(self, instance_id: str) -> dict[str, int | float]:
        instance = self._present.get(instance_id)
        used = self._parts.cgroups.usage(instance.id)
        disk = await self._parts.disks.usage(instance.disk)
        return {
            "memory_bytes": used.memory_bytes,
            "cache_bytes": used.cache_bytes,
            "cpu_seconds": used.cpu_seconds,
            "pids": used.pids,
            "oom_kills": used.oom_kills,
            "disk_bytes": disk.bytes,
        }

    # -- inside

    def _sealed(self, instance_id: str) -> None:
        """Its session goes on elsewhere: it ends, and what it has that was not saved stays here as an orphan."""
        self._background.run(self._step_down(instance_id), f"stepping down with {instance_id}")

    async def _step_down(self, instance_id: str) -> None:
        instance = self._present.find(instance_id)
        if instance is None or instance.claim is None:
            return
        owner = instance.claim.owner
        log.warning("%s of %s ends: the session was taken over elsewhere", instance_id, owner)
        await self.stop(instance_id, grace=0)
        await self._leftovers.orphan(owner)
