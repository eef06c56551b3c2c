"""A host in memory."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace

from dovecote.control.fleet import SERVER_TAG, Claim, Command, Connection, Death, Leftover, Memory, Observed, Placed
from dovecote.errors import Conflict, NotFound, StorageFailed, Unsupported
from dovecote.host.guest import Guest
from dovecote.model.sizes import NetworkPolicy
from dovecote.model.states import InstanceState
from dovecote.model.trees import Change, FileDiff, Hibernated, Lag, LagState, Saved
from dovecote.model.volumes import Mount
from tests.unit.memory_calls import Calls
from tests.unit.memory_guest import MemoryGuest
from tests.unit.memory_images import MemoryImages
from tests.unit.memory_instance import Left, MemoryInstance, Running, at_work
from tests.unit.memory_volumes import MemoryVolumes


class Clock:
    """Takes the place of the module `time`; goes on only when told to."""

    def __init__(self) -> None:
        self.now = time.monotonic()

    def monotonic(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class MemoryHost(Calls):
    """`claims` are what an instance was asked with, in order."""

    does_open = True  # whether a server opens its port
    does_last = True  # whether a server goes on once started

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.kept_volumes = MemoryVolumes()
        self.kept_images = MemoryImages()
        self.used_mounts: set[str] = set()
        self.clock = clock
        self.on_death: Callable[[Death], None] = lambda _: None
        self.claims: list[Claim] = []
        self.instances: dict[str, MemoryInstance] = {}
        self.left: dict[str, Left] = {}
        self.orphans: dict[str, list[Left]] = {}
        self.trees: dict[str, dict[str, bytes]] = {}
        self.memories: dict[str, list[Running]] = {}
        self.spoilt: set[str] = set()  # memories that cannot be restored
        self.logs: dict[str, list[Saved]] = {}
        self.left_out: tuple[str, ...] = ()  # of every tree
        self.installs: tuple[int | None, bytes] = (0, b"installed\n")  # how reinstalling ends; None: not by itself
        self.cpu_seconds = 0.0  # of every instance
        self.flows: Counter[str] = Counter()  # requests on their way, by instance
        self.total_memory, self.reserve = 64 << 30, 1 << 30  # bytes of the machine
        self.memory_used: Counter[str] = Counter()  # bytes, by owner
        self.sent_at: dict[str, float] = {}  # when an instance last sent something outside
        self.ran: list[tuple[str, str]] = []  # what was run to its end, and in which instance
        self.exits: dict[str, int] = {}  # of what is run to its end, by its last word
        self._epochs: dict[str, int] = {}
        self._numbers = 0

    # -- for tests

    def of(self, owner: str) -> MemoryInstance | None:
        return next((i for i in self.instances.values() if i.claim.owner == owner), None)

    def starts(self) -> list[Command]:
        """The servers that were started in the instances that there are."""
        return [r.command for i in self.instances.values() for r in i.commands if r.command.tag == SERVER_TAG]

    async def die(self, owner: str, reason: str = "its processes were killed", *, is_told: bool = True) -> None:
        """As when its first process is killed. Not told: control was away when it happened."""
        instance = self.of(owner)
        assert instance is not None
        await self._bury(instance)
        if is_told:
            self.on_death(Death(instance.id, owner, reason))

    def connect(self, address: str) -> bool:
        """A connection to `ip:port` from outside; False where it is reset."""
        ip, _, port = address.partition(":")
        instance = next((i for i in self.instances.values() if i.address == ip), None)
        if instance is None or int(port) not in instance.open_ports or instance.state is not InstanceState.READY:
            return False
        if instance.claim.connections and self.flows[instance.id] >= instance.claim.connections:
            return False
        self.flows[instance.id] += 1
        instance.quiet_since = self.clock.now
        return True

    def disconnect(self, address: str) -> None:
        ip = address.partition(":")[0]
        for instance in self.instances.values():
            if instance.address == ip and self.flows[instance.id]:
                self.flows[instance.id] -= 1

    async def end_server(self, instance: MemoryInstance) -> None:
        """Its server ends by itself; the instance goes on."""
        for running in instance.commands:
            running.exit_code = 1
        instance.open_ports.clear()
        await instance.tell()

    # -- the contract

    async def claim(self, claim: Claim) -> Placed:
        await self.enter("claim", claim.owner)
        self.claims.append(claim)
        there = self.of(claim.owner)
        if there is not None:
            return Placed(there.id, there.address, there.pid, "there")
        if claim.keeps_files:
            if claim.epoch < self._epochs.get(claim.owner, 0):
                raise Conflict("a later epoch has claimed it", code="sealed")
            self._epochs[claim.owner] = claim.epoch
        left = self.left.get(claim.owner)
        if left is not None and left.generation >= claim.generation and not claim.memory:
            del self.left[claim.owner]
            instance, how = self._made(claim, left.files, left.generation), "survivor"
        else:
            if left is not None:
                self._orphan(claim.owner)
            tree = claim.workspace.tree
            instance, how = self._made(claim, dict(self.trees[tree]) if tree else {}, claim.generation), "pool"
        if claim.memory and how == "pool":
            if claim.memory in self.spoilt:
                return Placed(
                    instance.id, instance.address, instance.pid, "cold", note="its processes could not be restored"
                )
            instance.commands = [replace(each) for each in self.memories[claim.memory]]
            servers = [each.command for each in instance.commands if each.is_running and "PORT" in each.command.env]
            instance.open_ports = {int(server.env["PORT"]) for server in servers}
            return Placed(instance.id, instance.address, instance.pid, "memory")
        is_restored = how == "pool" and claim.workspace.tree is not None
        left_out = self.left_out if is_restored else ()
        return Placed(instance.id, instance.address, instance.pid, how, left_out)

    async def freeze(self, instance_id: str, *, force: bool = False) -> bool:
        instance = self._get(instance_id)
        if instance.state is InstanceState.FROZEN:
            return True
        instance.become(InstanceState.FREEZING)
        try:
            await self.enter("freeze", instance.claim.owner)
        except BaseException:
            instance.become(InstanceState.READY)
            raise
        if self.flows[instance_id] and not force:
            instance.become(InstanceState.READY)
            return False
        instance.become(InstanceState.FROZEN)
        return True

    async def thaw(self, instance_id: str) -> None:
        instance = self._get(instance_id)
        await self.enter("thaw", instance.claim.owner)
        if instance.state is InstanceState.FROZEN:
            instance.become(InstanceState.READY)
            instance.quiet_since = self.clock.now
            await instance.tell()

    async def hibernate(self, instance_id: str) -> Hibernated:
        instance = self._get(instance_id)
        if instance.claim.level != "runsc":
            raise Unsupported(f"{instance.claim.level} cannot", code="cannot_hibernate", hint="use runsc")
        instance.become(InstanceState.SUSPENDED)
        try:
            await self.enter("hibernate", instance.claim.owner)
        except BaseException:
            instance.become(InstanceState.READY)
            raise
        saved = self._append(instance.claim.owner, instance.files)
        memory = f"memory-of-{saved.tree}"
        self.memories[memory] = [replace(each) for each in instance.commands]
        return Hibernated(saved, memory)

    async def awaken(self, instance_id: str) -> None:
        instance = self._get(instance_id)
        await self.enter("awaken", instance.claim.owner)
        if instance.state is InstanceState.SUSPENDED:
            instance.become(InstanceState.READY)

    async def save(self, instance_id: str, *, whole: bool = False) -> Saved:
        instance = self._get(instance_id)
        await self.enter("save", instance.claim.owner)
        saved = self._append(instance.claim.owner, instance.files)
        instance.generation = saved.generation
        if whole and instance.claim.rules.leave_out:
            self.trees[f"{saved.tree}-whole"] = dict(instance.files)
            saved = replace(saved, tree=f"{saved.tree}-whole")
        return saved

    async def lag(self, instance_id: str) -> Lag:
        instance = self._get(instance_id)
        saved = self.trees[self.logs[instance.claim.owner][-1].tree] if self.logs.get(instance.claim.owner) else None
        pending = [path for path, text in instance.files.items() if (saved or {}).get(path) != text]
        state = LagState.PENDING if pending else LagState.SAVED
        return Lag(state, pending=len(pending), recovery_point=instance.claim.recovery_point)

    async def set_network(self, instance_id: str, network: NetworkPolicy) -> None:
        instance = self._get(instance_id)
        instance.claim = replace(instance.claim, network=network)

    async def set_recovery_point(self, instance_id: str, seconds: float) -> None:
        instance = self._get(instance_id)
        instance.claim = replace(instance.claim, recovery_point=seconds)

    async def capture(self, instance_id: str) -> str:
        instance = self._get(instance_id)
        tree = f"captured-{len(self.trees)}"
        self.trees[tree] = dict(instance.files)
        return tree

    @property
    def images(self) -> MemoryImages:
        return self.kept_images

    @property
    def volumes(self) -> MemoryVolumes:
        return self.kept_volumes

    def buckets(self) -> list[str]:
        return ["datasets"]

    async def mount(self, instance_id: str, mount: Mount) -> None:
        instance = self._get(instance_id)
        instance.claim = replace(instance.claim, mounts=(*instance.claim.mounts, mount))

    async def unmount(self, instance_id: str, at: str, *, force: bool = False) -> None:
        instance = self._get(instance_id)
        if at in self.used_mounts and not force:
            raise StorageFailed("something inside uses the mount", code="busy")
        left = tuple(mount for mount in instance.claim.mounts if mount.at != at)
        instance.claim = replace(instance.claim, mounts=left)

    async def stop(self, instance_id: str, *, grace: float = 2.0) -> None:
        instance = self._get(instance_id)
        await self.enter("stop", instance.claim.owner)
        if instance_id in self.instances:
            await self._bury(instance)

    async def save_leftover(self, owner: str) -> Saved:
        await self.enter("save_leftover", owner)
        if owner not in self.left:
            raise NotFound(f"nothing of {owner} is left on this host", code="no_leftover")
        saved = self._append(owner, self.left[owner].files)
        self.left[owner] = replace(self.left[owner], generation=saved.generation)
        return saved

    async def discard(self, owner: str) -> None:
        await self.enter("discard", owner)
        self.left.pop(owner, None)

    async def erase(self, owner: str) -> None:
        await self.enter("erase", owner)
        self.left.pop(owner, None)
        self.orphans.pop(owner, None)

    async def rewind(self, owner: str, *, epoch: int, template: str, tree: str) -> Saved:
        await self.enter("rewind", owner)
        if self.of(owner) is not None:
            raise Conflict(f"{owner} has an instance", code="busy")
        if epoch < self._epochs.get(owner, 0):
            raise Conflict("a later epoch has claimed it", code="sealed")
        self._epochs[owner] = epoch
        return self._append(owner, self.trees[tree])

    async def changes(self, template: str, old: str, new: str) -> list[Change]:
        before, after = self.trees[old], self.trees[new]
        return [
            Change(path, "added" if path not in before else "removed" if path not in after else "content", None, None)
            for path in sorted(before.keys() | after.keys())
            if before.get(path) != after.get(path)
        ]

    async def archive(self, template: str, tree: str, path: str) -> AsyncGenerator[bytes, None]:
        """Not a zip file: the names and texts below the path, in order."""
        for name, text in sorted(self.trees[tree].items()):
            if name.startswith(path):
                yield f"{name}={text.decode()}\n".encode()

    async def diff(self, template: str, old: str, new: str, path: str) -> FileDiff:
        before, after = self.trees[old].get(path), self.trees[new].get(path)
        if before is None and after is None:
            raise NotFound(f"nothing is at {path}", code="no_such_path")
        old_bytes, new_bytes = (None if text is None else len(text) for text in (before, after))
        return FileDiff(path, old_bytes, new_bytes, "" if before == after else f"-{before!r}\n+{after!r}\n")

    async def verify(self, template: str, tree: str) -> None:
        await self.enter("verify", tree)

    async def last_saved(self, owner: str) -> Saved | None:
        return self.logs[owner][-1] if self.logs.get(owner) else None

    async def last_good(self, owner: str, *, before: int) -> int | None:
        earlier = [saved.generation for saved in self.logs.get(owner, []) if saved.generation < before]
        return earlier[-1] if earlier else None

    def leftovers(self) -> list[Leftover]:
        return [Leftover(owner, left.disk, left.generation, left.epoch) for owner, left in self.left.items()]

    def orphaned(self) -> frozenset[str]:
        return frozenset(self.orphans)

    async def observe(self) -> list[Observed]:
        await self.enter("observe", "")
        return [self._seen(i) for i in self.instances.values()]

    def memory(self) -> Memory:
        used = sum(self.memory_used[i.claim.owner] for i in self.instances.values())
        return Memory(self.total_memory - used, self.reserve)

    async def look(self, instance_id: str) -> Observed:
        return self._seen(self._get(instance_id))

    def _seen(self, i: MemoryInstance) -> Observed:
        sent_ago = self.clock.now - self.sent_at[i.id] if i.id in self.sent_at else None
        return Observed(
            i.id,
            i.claim.owner,
            i.state,
            i.address,
            i.pid,
            self._quiet_for(i),
            at_work(i),
            requests=self.flows[i.id],
            requests_for=self._quiet_for(i) if self.flows[i.id] else 0.0,
            sent_ago=sent_ago if i.claim.network.outbound_keeps_awake else None,
        )

    async def connections(self, instance_id: str) -> int:
        self._get(instance_id)
        await asyncio.sleep(0)
        return self.flows[instance_id]

    async def dial(self, instance_id: str, port: int, *, loopback: bool = False) -> Connection:
        return self._get(instance_id).dial(port, loopback)

    async def usage(self, instance_id: str) -> dict[str, int | float]:
        used = sum(map(len, self._get(instance_id).files.values()))
        memory = self.memory_used[self._get(instance_id).claim.owner] or 3072
        return {
            "disk_bytes": used,
            "cpu_seconds": self.cpu_seconds,
            "memory_bytes": memory + 1024,
            "cache_bytes": 1024,
        }

    def guest(self, instance_id: str) -> Guest:
        return MemoryGuest(self, self._get(instance_id))

    # -- inside

    def _made(self, claim: Claim, files: dict[str, bytes], generation: int) -> MemoryInstance:
        self._numbers += 1
        instance = MemoryInstance(
            id=f"ins_{self._numbers}",
            claim=claim,
            address=f"10.201.0.{self._numbers}",
            pid=100 + self._numbers,
            files=files,
            generation=generation,
            quiet_since=self.clock.now,
        )
        self.instances[instance.id] = instance
        return instance

    def _orphan(self, owner: str) -> None:
        self.orphans.setdefault(owner, []).append(self.left.pop(owner))

    def _get(self, instance_id: str) -> MemoryInstance:
        try:
            return self.instances[instance_id]
        except KeyError:
            raise NotFound(f"no instance {instance_id} on this host", code="no_such_instance") from None

    def _append(self, owner: str, files: dict[str, bytes]) -> Saved:
        log = self.logs.setdefault(owner, [])
        is_same = bool(log) and self.trees[log[-1].tree] == files  # the same files are the same tree
        tree = log[-1].tree if is_same else f"tree-{owner}-{len(log) + 1}"
        saved = Saved(tree, len(log) + 1, len(files), 0, sum(map(len, files.values())))
        self.trees[saved.tree] = dict(files)
        log.append(saved)
        return saved

    async def _bury(self, instance: MemoryInstance) -> None:
        del self.instances[instance.id]
        instance.become(InstanceState.GONE)
        if instance.claim.keeps_files:
            self.left[instance.claim.owner] = Left(
                instance.id, instance.files, instance.generation, instance.claim.epoch
            )
        await instance.tell()

    def _quiet_for(self, instance: MemoryInstance) -> float:
        if at_work(instance) and instance.state is InstanceState.READY:
            instance.quiet_since = self.clock.now
        return self.clock.now - instance.quiet_since
