"""A host in memory, and hosts named after what goes wrong on them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Literal

from dovecote.control.fleet import SERVER_TAG, Claim, Command, Death, Leftover, Memory, Observed, Output, Placed
from dovecote.errors import Conflict, Failed, NoCapacity, NotFound, StorageFailed, Unsupported
from dovecote.host.guest import CommandStatus, Dropped, Exited, Finished, Guest, PortState, Started, Stat
from dovecote.model.sizes import NetworkPolicy
from dovecote.model.states import InstanceState, check_instance_move
from dovecote.model.trees import Change, FileDiff, Hibernated, Lag, LagState, Saved
from dovecote.model.volumes import Mount
from tests.unit.memory_images import MemoryImages
from tests.unit.memory_volumes import MemoryVolumes

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
Method = Literal[
    "claim",
    "freeze",
    "thaw",
    "save",
    "hibernate",
    "awaken",
    "stop",
    "save_leftover",
    "discard",
    "erase",
    "rewind",
    "verify",
    "observe",
    "list_commands",
    "start",
    "wait_port",
]


class Clock:
    """Takes the place of the module `time`; goes on only when told to."""

    def __init__(self) -> None:
        self.now = time.monotonic()

    def monotonic(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class MemoryInstance:
    id: str
    claim: Claim
    address: str
    pid: int
    files: dict[str, bytes]
    generation: int
    quiet_since: float
    state: InstanceState = InstanceState.READY
    commands: list[Running] = field(default_factory=list)
    open_ports: set[int] = field(default_factory=set)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    def become(self, state: InstanceState) -> None:
        check_instance_move(self.state, state)
        self.state = state

    async def tell(self) -> None:
        async with self.changed:
            self.changed.notify_all()


@dataclass
class Running:
    number: int
    command: Command
    output: bytes = b""
    exit_code: int | None = None

    @property
    def is_running(self) -> bool:
        return self.exit_code is None


@dataclass
class Left:
    disk: str
    files: dict[str, bytes]
    generation: int
    epoch: int


class MemoryHost:
    """`calls` are the methods that were called and for whom, in order; `claims` those that an instance was asked with.

    `refuse` lets a method fail, `hold` keeps its callers inside until `let_go`.
    """

    does_open = True  # whether a server opens its port
    does_last = True  # whether a server goes on once started

    def __init__(self, clock: Clock) -> None:
        self.kept_volumes = MemoryVolumes()
        self.kept_images = MemoryImages()
        self.used_mounts: set[str] = set()
        self.clock = clock
        self.on_death: Callable[[Death], None] = lambda _: None
        self.calls: list[tuple[str, str]] = []
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
        self._refusals: dict[str, tuple[BaseException, int | None]] = {}
        self._gates: dict[str, asyncio.Event] = {}
        self._inside: Counter[str] = Counter()
        self._numbers = 0

    # -- for tests

    def refuse(self, method: Method, error: BaseException, *, times: int | None = None) -> None:
        """`times` None is from now on."""
        self._refusals[method] = error, times

    def mend(self, method: Method) -> None:
        self._refusals.pop(method, None)

    def hold(self, method: Method) -> None:
        self._gates[method] = asyncio.Event()

    def let_go(self, method: Method) -> None:
        self._gates.pop(method).set()

    def held(self, method: Method) -> int:
        return self._inside[method]

    def count(self, method: Method) -> int:
        return sum(1 for name, _ in self.calls if name == method)

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
        await self._enter("claim", claim.owner)
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
            await self._enter("freeze", instance.claim.owner)
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
        await self._enter("thaw", instance.claim.owner)
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
            await self._enter("hibernate", instance.claim.owner)
        except BaseException:
            instance.become(InstanceState.READY)
            raise
        saved = self._append(instance.claim.owner, instance.files)
        memory = f"memory-of-{saved.tree}"
        self.memories[memory] = [replace(each) for each in instance.commands]
        return Hibernated(saved, memory)

    async def awaken(self, instance_id: str) -> None:
        instance = self._get(instance_id)
        await self._enter("awaken", instance.claim.owner)
        if instance.state is InstanceState.SUSPENDED:
            instance.become(InstanceState.READY)

    async def save(self, instance_id: str, *, whole: bool = False) -> Saved:
        instance = self._get(instance_id)
        await self._enter("save", instance.claim.owner)
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
        await self._enter("stop", instance.claim.owner)
        if instance_id in self.instances:
            await self._bury(instance)

    async def save_leftover(self, owner: str) -> Saved:
        await self._enter("save_leftover", owner)
        if owner not in self.left:
            raise NotFound(f"nothing of {owner} is left on this host", code="no_leftover")
        saved = self._append(owner, self.left[owner].files)
        self.left[owner] = replace(self.left[owner], generation=saved.generation)
        return saved

    async def discard(self, owner: str) -> None:
        await self._enter("discard", owner)
        self.left.pop(owner, None)

    async def erase(self, owner: str) -> None:
        await self._enter("erase", owner)
        self.left.pop(owner, None)
        self.orphans.pop(owner, None)

    async def rewind(self, owner: str, *, epoch: int, template: str, tree: str) -> Saved:
        await self._enter("rewind", owner)
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
        await self._enter("verify", tree)

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
        await self._enter("observe", "")
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
            _at_work(i),
            requests=self.flows[i.id],
            requests_for=self._quiet_for(i) if self.flows[i.id] else 0.0,
            sent_ago=sent_ago if i.claim.network.outbound_keeps_awake else None,
        )

    async def connections(self, instance_id: str) -> int:
        self._get(instance_id)
        await asyncio.sleep(0)
        return self.flows[instance_id]

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

    async def _enter(self, method: Method, owner: str) -> None:
        """What every call has in common: it is noted, takes a turn of the loop, may be held, and may fail."""
        self.calls.append((method, owner))
        self._inside[method] += 1
        try:
            await asyncio.sleep(0)
            if (gate := self._gates.get(method)) is not None:
                await gate.wait()
        finally:
            self._inside[method] -= 1
        error, times = self._refusals.get(method, (None, None))
        if error is not None:
            if times is not None:
                self._refusals[method] = error, times - 1
                if times <= 1:
                    del self._refusals[method]
            raise error

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
        if _at_work(instance) and instance.state is InstanceState.READY:
            instance.quiet_since = self.clock.now
        return self.clock.now - instance.quiet_since


def _at_work(instance: MemoryInstance) -> int:
    return sum(1 for running in instance.commands if running.is_running and running.command.tag != SERVER_TAG)


class MemoryGuest(Guest):
    """Files are a dictionary, commands run until they are told to end. A frozen one answers once it is thawed."""

    def __init__(self, host: MemoryHost, instance: MemoryInstance) -> None:
        self._host = host
        self._instance = instance

    async def start(self, command: Command) -> Started:
        await self._reach("start")
        running = Running(len(self._instance.commands) + 1, command)
        self._instance.commands.append(running)
        if command.tag == SERVER_TAG:
            if not self._host.does_last:
                running.exit_code, running.output = 1, b"no such module\n"
            elif self._host.does_open:
                self._instance.open_ports.add(int(command.env["PORT"]))
        elif command.tag == "reinstall":
            running.exit_code, running.output = self._host.installs
        await self._instance.tell()
        return Started(running.number, 1000 + running.number, NOW)

    async def run(self, command: Command, *, stdin: bytes | None = None, max_output: int = 1 << 20) -> Finished:
        await self._reach(None)
        self._host.ran.append((command.argv[-1], self._instance.id))
        exit_code = self._host.exits.get(command.argv[-1], 0)
        return Finished(" ".join(command.argv).encode()[:max_output], b"", exit_code, None, False, False)

    async def attach(self, number: int, *, offset: int = 0) -> AsyncGenerator[Output | Dropped | Exited, None]:
        await self._reach(None)
        running = self._instance.commands[number - 1]
        if running.output[offset:]:
            yield Output("stdout", offset, running.output[offset:])
        async with self._instance.changed:
            await self._instance.changed.wait_for(lambda: not running.is_running)
        yield Exited(running.exit_code, None, False, len(running.output))

    async def list_commands(self) -> list[CommandStatus]:
        await self._reach("list_commands")
        return [
            CommandStatus(
                running.number,
                running.command.tag,
                1000 + running.number,
                running.is_running,
                running.exit_code,
                None,
                False,
                NOW,
                len(running.output),
            )
            for running in self._instance.commands
        ]

    async def stat(self, path: str, *, user: str, follow: bool = True) -> Stat:
        await self._reach(None)
        if path not in self._instance.files:
            raise NotFound(f"no file {path}", code="file_not_found")
        return Stat("file", 0o644, 1000, 1000, len(self._instance.files[path]), 0, "")

    async def release(self, number: int) -> None:
        await self._reach(None)

    async def signal(self, number: int, signo: int) -> None:
        await self._reach(None)
        self._instance.commands[number - 1].exit_code = -signo
        await self._instance.tell()

    async def wait_port(self, port: int, timeout: float) -> PortState:
        await self._reach("wait_port")
        ports = self._instance.open_ports
        if timeout > 0:
            try:
                async with asyncio.timeout(timeout), self._instance.changed:
                    await self._instance.changed.wait_for(lambda: port in ports or not self._is_there())
            except TimeoutError:
                pass
        if not self._is_there():
            raise Failed("the guest does not answer", code="guest_unreachable")
        return PortState(is_open=port in ports, loopback=False)

    async def read_file(
        self, path: str, *, user: str, offset: int = 0, length: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        await self._reach(None)
        if path not in self._instance.files:
            raise NotFound(f"no file {path}", code="file_not_found")
        yield self._instance.files[path][offset:][:length]

    async def write_file(
        self,
        path: str,
        chunks: AsyncIterator[bytes] | bytes,
        *,
        user: str,
        mode: int | None = None,
        metadata: Mapping[str, str] | None = None,
        make_parents: bool = True,
        fsync: bool = False,
    ) -> None:
        await self._reach(None)
        data = chunks if isinstance(chunks, bytes) else b"".join([chunk async for chunk in chunks])
        self._instance.files[path] = data

    def _is_there(self) -> bool:
        return self._instance.id in self._host.instances

    async def _reach(self, method: Method | None) -> None:
        if method is not None:
            await self._host._enter(method, self._instance.claim.owner)
        async with self._instance.changed:
            await self._instance.changed.wait_for(lambda: self._instance.state is not InstanceState.FROZEN)
        if not self._is_there():
            raise Failed("the guest does not answer", code="guest_unreachable")


class SlowStart(MemoryHost):
    """Claims take until `let_go("claim")`."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.hold("claim")


class NeverReady(MemoryHost):
    """Servers go on, but their port never opens."""

    does_open = False


class DiesOnStart(MemoryHost):
    """Servers end as soon as they are started, with last words."""

    does_last = False


class DiesLater(MemoryHost):
    """The first `deaths` instances die after they were claimed, before whoever claimed them hears of it."""

    def __init__(self, clock: Clock, deaths: int = 1) -> None:
        super().__init__(clock)
        self.deaths = deaths

    async def claim(self, claim: Claim) -> Placed:
        placed = await super().claim(claim)
        if self.deaths:
            self.deaths -= 1
            await self.die(claim.owner)
        return placed


class FailsSave(MemoryHost):
    """The store takes nothing until `mend_store`."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        full = StorageFailed("no space left", code="disk_full")
        self.refuse("save", full)
        self.refuse("save_leftover", full)

    def mend_store(self) -> None:
        self.mend("save")
        self.mend("save_leftover")


class Corrupt(MemoryHost):
    """Files that were saved cannot be verified when they are to be restored."""

    async def claim(self, claim: Claim) -> Placed:
        if claim.workspace.tree is not None:
            self.claims.append(claim)
            raise StorageFailed(f"{claim.workspace.tree} does not match its digest", code="corrupt")
        return await super().claim(claim)


class FreezeFails(MemoryHost):
    """The cgroup cannot be frozen."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.refuse("freeze", Failed("cannot write freezer.state", code="freeze_failed"))


class NoMemory(MemoryHost):
    """Refuses every claim until `mend("claim")`."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.refuse("claim", NoCapacity("1 MiB of memory left", code="no_memory", retry_after=5))
