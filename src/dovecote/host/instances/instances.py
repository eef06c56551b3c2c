"""The instances of one host: claimed, frozen, thawed, stopped, and adopted again after a restart."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from weakref import WeakValueDictionary

from dovecote.background import Background
from dovecote.errors import Conflict, DovecoteError, Failed, NoCapacity, NotFound, StorageFailed
from dovecote.host.guest import Guest
from dovecote.host.instances import mounting
from dovecote.host.instances.adopting import Adoption, answer_again
from dovecote.host.instances.capturing import capture
from dovecote.host.instances.checkpoints import Checkpoints
from dovecote.host.instances.hibernating import awaken, hibernate
from dovecote.host.instances.instance import (
    Claim,
    Death,
    Instance,
    Leftover,
    Observed,
    Placed,
)
from dovecote.host.instances.leftovers import Leftovers
from dovecote.host.instances.past import archived, diff
from dovecote.host.instances.preparing import Parts, Preparing
from dovecote.host.instances.rooting import give_root
from dovecote.host.instances.saving import Saving
from dovecote.host.instances.warm import WarmPool
from dovecote.host.storage.changes import changes
from dovecote.host.storage.images import Images
from dovecote.host.storage.volumes import Volumes
from dovecote.model.sizes import MIB, NetworkPolicy
from dovecote.model.states import InstanceState
from dovecote.model.trees import Change, FileDiff, Hibernated, Lag, Saved, Workspace
from dovecote.model.volumes import Mount

log = logging.getLogger(__name__)

STARTING_MEMORY = 64 * MIB  # what an instance takes before its first command
LIST_TIMEOUT = 2.0
UNANSWERED = 30  # looks in a row at a guest that does not answer, after which it counts as quiet
BURIED_WITHIN = 30.0
GRACE_AT_END = 1.0  # seconds that commands get when the whole host goes down
SERVER_TAG = "start"  # a command with this tag is a server that waits for requests: it keeps nobody awake


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
        self._memory_reserve = memory_reserve_bytes
        self._on_death = on_death
        self._live: dict[str, Instance] = {}
        self._by_owner: dict[str, Instance] = {}
        self._leftovers = Leftovers(saving, release=lambda base: preparing.ids.release(base))
        self._claims: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._background = Background()
        self._expecting = asyncio.Lock()
        self._checkpoints = Checkpoints(
            saving,
            parts.disks,
            live=lambda: list(self._live.values()),
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
            self._keep(instance)
        for instance in found.prepared:
            self._watch(instance)
            self._warm.adopt(instance)
        self._leftovers.adopt(found.leftovers, found.orphans)
        if warm:
            self._warm.start(self._watch)
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
        for instance in self._live.values():
            self._unwatch(instance)

    async def clear(self) -> int:
        """Ends every instance and counts them; files of their owners stay on the disks."""
        count = len(self._live) + len(self._warm)
        await self._warm.clear()
        await asyncio.gather(*(self.stop(instance_id, grace=GRACE_AT_END) for instance_id in list(self._live)))
        return count

    # -- what control asks for

    async def claim(self, claim: Claim) -> Placed:
        """An instance that holds the owner's files and answers. The same owner gets the same instance.

        Raises NoCapacity (no_memory, no_addresses), StorageFailed (corrupt, disk_full), Conflict (sealed).
        """
        async with self._claims.setdefault(claim.owner, asyncio.Lock()):
            while (there := self._by_owner.get(claim.owner)) is not None:
                if there.is_dead:
                    # Its files must become a leftover first, or they would be passed over.
                    await _buried(there)
                    continue
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
        instance = await self._warm.take(level=claim.level, allow_setuid=claim.allow_setuid)
        how = "pool"
        if instance is None:
            how = "cold"
            instance = await self._preparing.prepare(
                level=claim.level, allow_setuid=claim.allow_setuid, limits=claim.limits
            )
            self._watch(instance)
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
        self._watch(instance)
        try:
            await self._equip(instance, replace(claim, workspace=workspace), is_new=False)
        except BaseException:
            await self._give_up(instance, keep_disk=True)
            raise
        self._leftovers.take(claim.owner)
        return instance

    async def _give_up(self, instance: Instance, *, keep_disk: bool) -> None:
        """After a claim that failed; the failure is what the caller hears of."""
        self._unwatch(instance)
        try:
            await self._preparing.unmake(instance, keep_disk=keep_disk)
        except (DovecoteError, OSError) as error:
            log.error("something of %s is left until the next start: %s", instance.id, error)

    async def _equip(self, instance: Instance, claim: Claim, *, is_new: bool) -> None:
        """Gives a prepared instance its owner's limits, network and root; `is_new` when its disk holds nothing yet."""
        instance.become(InstanceState.CLAIMED)
        instance.claim = claim
        instance.record()
        # All come to their end before the first failure is raised: what undoes them must not race with them.
        done = await asyncio.gather(
            self._parts.cgroups.limit(instance.id, self._parts.runtimes[claim.level].capabilities.roomy(claim.limits)),
            self._parts.disks.limit(instance.disk, max_bytes=claim.limits.disk_bytes),
            self._parts.network.apply(instance.address, claim.network),
            give_root(self._parts, instance, claim, is_new=is_new, guest=self._preparing.guest_binary),
            self._own(instance, claim, is_new=is_new),
            return_exceptions=True,
        )
        for failure in done:
            if isinstance(failure, BaseException):
                raise failure
        instance.become(InstanceState.READY)
        instance.quiet_since = time.monotonic()
        instance.record()
        self._keep(instance)

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

    async def freeze(self, instance_id: str, *, force: bool = False) -> bool:
        """Stops its processes where they are; False when a request is on its way, and then nothing has changed.

        With `force` it does not look: what is on its way stands still until it is thawed.

        New connections are refused first, then flows are looked for, then the processes are frozen: no request is
        caught by the freezing, and a later one is refused at once and comes back through wake.
        """
        instance = self._get(instance_id)
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
        instance = self._get(instance_id)
        async with instance.lock:
            if instance.state is not InstanceState.FROZEN:
                return
            await self._parts.cgroups.thaw(instance.id)
            await answer_again(self._parts, instance)

    async def hibernate(self, instance_id: str) -> Hibernated:
        """Its memory and its files, of one moment, in the store. It stands still from then on until `stop` or `awaken`.

        Raises Unsupported (cannot_hibernate), Failed, StorageFailed, Conflict (sealed); then it goes on.
        """
        return await hibernate(self._parts, self._saving, self._get(instance_id))

    async def awaken(self, instance_id: str) -> None:
        """One that was hibernated goes on where it stands."""
        await awaken(self._parts, self._get(instance_id))

    async def save(self, instance_id: str, *, whole: bool = False) -> Saved:
        """A checkpoint of its files while it goes on. Raises StorageFailed, Conflict (sealed)."""
        instance = self._get(instance_id)
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
        return await self._checkpoints.lag(self._get(instance_id))

    async def set_recovery_point(self, instance_id: str, seconds: float) -> None:
        instance = self._get(instance_id)
        async with instance.lock:
            assert instance.claim is not None
            if instance.claim.recovery_point != seconds:
                instance.claim = replace(instance.claim, recovery_point=seconds)
                instance.record()

    async def set_network(self, instance_id: str, network: NetworkPolicy) -> None:
        instance = self._get(instance_id)
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
        instance = self._get(instance_id)
        return await capture(self._parts, instance, self._still(instance))

    @property
    def images(self) -> Images:
        return self._parts.images

    async def mount(self, instance_id: str, mount: Mount) -> None:
        """Into an instance that runs or is frozen. Raises Conflict (exists), NotFound (no_such_path), StorageFailed."""
        instance = self._get(instance_id)
        async with instance.lock:
            await mounting.mount(self._parts, instance, mount)

    async def unmount(self, instance_id: str, at: str, *, force: bool = False) -> None:
        """Raises StorageFailed (busy) when something inside uses it, unless forced."""
        instance = self._get(instance_id)
        async with instance.lock:
            await mounting.unmount(self._parts, instance, at, force=force)

    async def stop(self, instance_id: str, *, grace: float = 2.0) -> None:
        """Ends it: refuse, SIGTERM to its processes, `grace` seconds, SIGKILL. Kept files become a leftover."""
        instance = self._get(instance_id)
        async with instance.lock:
            if instance.id not in self._live:
                return
            self._unwatch(instance)
            instance.is_dead = True
            if grace and instance.state in (InstanceState.READY, InstanceState.FROZEN):
                await self._shut_down(instance, grace)
            instance.become(InstanceState.STOPPING)
            instance.record()
            await self._bury(instance)

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
        await self._burials(owner)
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
        await self._leftovers.discard(owner)

    async def erase(self, owner: str) -> None:
        """Deletes that and the owner's orphans. May be repeated."""
        await self._burials(owner)
        await self._leftovers.erase(owner)

    async def _burials(self, owner: str) -> None:
        """What dies now becomes a leftover first."""
        dying = self._by_owner.get(owner)
        if dying is not None and dying.is_dead:
            await _buried(dying)

    async def rewind(self, owner: str, *, epoch: int, template: str, tree: str) -> Saved:
        """An older tree becomes the newest checkpoint of the owner. Raises Conflict (busy) while it has an instance."""
        async with self._claims.setdefault(owner, asyncio.Lock()):
            if owner in self._by_owner:
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
        return self._get(instance_id).guest

    def leftovers(self) -> list[Leftover]:
        return self._leftovers.list()

    def orphaned(self) -> frozenset[str]:
        return self._leftovers.orphaned()

    async def observe(self) -> list[Observed]:
        """All claimed instances. Costs one dump of the network's activity, and asks each guest that is awake."""
        activity = await self._parts.network.activity()
        now = time.monotonic()
        await asyncio.gather(*(self._look(instance, activity, now) for instance in list(self._live.values())))
        return [
            Observed(i.id, i.claim.owner, i.state, i.address, i.pid, now - i.quiet_since, i.commands)
            for i in self._live.values()
            if i.claim is not None
        ]

    async def usage(self, instance_id: str) -> dict[str, int | float]:
        instance = self._get(instance_id)
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
        instance = self._live.get(instance_id)
        if instance is None or instance.claim is None:
            return
        owner = instance.claim.owner
        log.warning("%s of %s ends: the session was taken over elsewhere", instance_id, owner)
        await self.stop(instance_id, grace=0)
        await self._leftovers.orphan(owner)

    async def _look(self, instance: Instance, activity: dict[str, float], now: float) -> None:
        if instance.state is not InstanceState.READY:
            return
        since_packet = activity.get(instance.address)
        if since_packet is not None:
            instance.quiet_since = max(instance.quiet_since, now - since_packet)
        try:
            commands = await asyncio.wait_for(instance.guest.list_commands(), LIST_TIMEOUT)
        except (DovecoteError, TimeoutError) as error:
            # Short of CPU perhaps, which is not quiet; but nobody may stay awake by never answering.
            instance.unanswered += 1
            if instance.unanswered <= UNANSWERED:
                instance.quiet_since = now
            elif instance.unanswered == UNANSWERED + 1:
                log.warning("the guest of %s does not answer: %s", instance.id, error)
            return
        instance.unanswered = 0
        instance.commands = sum(1 for command in commands if command.is_running and command.tag != SERVER_TAG)
        if instance.commands:
            instance.quiet_since = now

    def _get(self, instance_id: str) -> Instance:
        try:
            return self._live[instance_id]
        except KeyError:
            raise NotFound(f"no instance {instance_id} on this host", code="no_such_instance") from None

    def _keep(self, instance: Instance) -> None:
        assert instance.claim is not None
        self._live[instance.id] = instance
        self._by_owner[instance.claim.owner] = instance
        if instance.pidfd < 0:
            self._watch(instance)

    def _watch(self, instance: Instance) -> None:
        if not instance.pid:
            return  # a claim starts its first process
        try:
            instance.pidfd = os.pidfd_open(instance.pid)
        except ProcessLookupError:
            asyncio.get_running_loop().call_soon(self._died, instance)
            return
        asyncio.get_running_loop().add_reader(instance.pidfd, self._died, instance)

    def _unwatch(self, instance: Instance) -> None:
        if instance.pidfd >= 0:
            asyncio.get_running_loop().remove_reader(instance.pidfd)
            os.close(instance.pidfd)
            instance.pidfd = -1

    def _died(self, instance: Instance) -> None:
        self._unwatch(instance)
        instance.is_dead = True
        if self._warm.drop(instance) or instance.id in self._live:
            self._background.run(self._after_death(instance), f"burying {instance.id}")

    async def _after_death(self, instance: Instance) -> None:
        async with instance.lock:
            if instance.claim is None:
                await self._preparing.unmake(instance, keep_disk=False)
                return
            if instance.id not in self._live:
                return
            reason = "its processes were killed"
            with contextlib.suppress(DovecoteError, OSError):
                if self._parts.cgroups.usage(instance.id).oom_kills:
                    reason = "it ran out of memory"
            log.warning("%s of %s died: %s", instance.id, instance.claim.owner, reason)
            try:
                self._on_death(Death(instance.id, instance.claim.owner, reason))
            finally:
                await self._bury(instance)

    async def _bury(self, instance: Instance) -> None:
        """After its last process: frees what it used; files that are kept become a leftover."""
        claim = instance.claim
        assert claim is not None
        self._live.pop(instance.id, None)
        instance.become(InstanceState.GONE)
        try:
            await self._preparing.unmake(instance, keep_disk=claim.keeps_files)
            if claim.keeps_files:
                await self._leftovers.keep(claim.owner, instance.disk)
        except Exception:
            # Its files are not offered to anybody now: something of it may still write to them.
            log.exception("%s of %s is not gone, it is looked at again at the next start", instance.id, claim.owner)
        finally:
            # Last: whoever waits for it finds the leftover.
            if self._by_owner.get(claim.owner) is instance:
                del self._by_owner[claim.owner]
            instance.buried.set()


async def _buried(instance: Instance) -> None:
    try:
        await asyncio.wait_for(instance.buried.wait(), BURIED_WITHIN)
    except TimeoutError as error:
        hint = "look for processes in D state"
        raise Failed(f"{instance.id} does not end", code="kill_timeout", hint=hint) from error


def _available_memory() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0
