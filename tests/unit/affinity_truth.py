"""What must be so of every answer, and between any two of them, whatever has happened."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from dovecote.errors import NotFound
from dovecote.model.records import Function, Session, Start
from dovecote.model.serving import Affinity, Hook, Hooks, Mode, Sharing
from dovecote.model.states import LIVE_SESSION, SessionState
from tests.unit.affinity_callers import Client
from tests.unit.affinity_world import PORT, AffinityWorld
from tests.unit.control_world import until
from tests.unit.memory_gateway import ROUTE_TTL
from tests.unit.memory_host import MemoryHost
from tests.unit.memory_instance import MemoryInstance
from tests.unit.memory_servers import Request, Response

IDLE = timedelta(seconds=100)
TTL = timedelta(seconds=400)
BEGUN, RESTS, ENDS = "begun", "rests", "ends"  # the hooks, by what they run
HOOKS = Hooks(Hook(command=BEGUN), Hook(command=RESTS), Hook(command=ENDS))
MCP = (Mode.MCP_HTTP, Mode.MCP_SSE)
FUNCTIONS = {
    "own": (Affinity(idle_after=IDLE), Sharing(instances=4), HOOKS),
    "seated": (Affinity((Mode.HEADER, Mode.COOKIE), idle_after=IDLE), Sharing(2, requests=2, instances=3), HOOKS),
    "guarded": (Affinity(refuses_reuse=True, idle_after=IDLE, ttl=TTL), Sharing(sessions=3), Hooks()),
    "web": (Affinity((Mode.COOKIE,), idle_after=IDLE, ttl=TTL), Sharing(), Hooks()),
    "tools": (Affinity(MCP, idle_after=IDLE), Sharing(sessions=2), HOOKS),
    "several": (Affinity((Mode.HEADER, Mode.COOKIE, *MCP), idle_after=IDLE), Sharing(requests=3), Hooks()),
    "none": (Affinity((Mode.NONE,), idle_after=IDLE), Sharing(requests=2, instances=2), Hooks()),
}
SERVER = Start("serve", PORT)
Place = tuple[str, str]  # whose session, and an instance


@dataclass
class Truth:
    """`tenants` are ids, `ended` are sessions that must never answer again."""

    there: AffinityWorld
    tenants: list[str]
    functions: dict[tuple[int, str], Function] = field(default_factory=dict)
    users: dict[str, str] = field(default_factory=dict)  # id -> name
    were_at: dict[Place, float] = field(default_factory=dict)  # when a caller was last known to be in an instance
    ended: set[str] = field(default_factory=set)

    @property
    def host(self) -> MemoryHost:
        return self.there.host

    async def session(self, client: Client) -> Session | None:
        """That the client's key names; None where none is alive, or its time is over."""
        world, tenant = self.there.world, self.tenants[client.tenant]
        user = await world.store.tenant(tenant).users.find(name=client.user)
        if user is None or not client.key:
            return None
        function = self.functions[client.tenant, client.function]
        found = await world.store.tenant(tenant).sessions.find(
            user_id=user.id, function_id=function.id, key=client.key, live_marker="live"
        )
        self.users[user.id] = user.name
        if found is not None and found.expires_at is not None and found.expires_at <= self.there.now():
            return None
        return found

    # -- answers

    async def took(self, client: Client, before: Session | None, response: Response) -> None:
        """An instance has answered: it is the one that holds the session, or held it a moment ago."""
        instance = response.instance
        assert instance is not None
        if response.status < 300:
            client.took(response)
        session = await self.session(client)
        assert session is not None, f"{client.name} is answered by {instance.id} for no session"
        assert session.id not in self.ended
        if before is not None and before.id not in self.ended:
            assert session.id == before.id, f"{client.name} lost {before.id} without its end"
        function = self.functions[client.tenant, client.function]
        assert instance.claim.owner in (session.id,) or instance.claim.owner.startswith(function.id + ":")
        if session.instance_id != instance.id:
            # A worker's table may be so old, and only where others keep the instance alive.
            assert not instance.claim.owner.startswith("ses_")
            at = self.were_at.get((_who(session), instance.id))
            assert at is not None, f"{client.name} is in {session.instance_id}, {instance.id} answered"
            assert self.there.clock.now - at <= 2 * ROUTE_TTL
        if response.status == 404 and client.mode in MCP:
            client.forget()  # its server was replaced

    async def refused(self, client: Client, before: Session | None, response: Response, *, was_full: bool) -> None:
        """Each refusal has its reason."""
        code = response.code
        if code in ("no_instances", "instance_full"):
            assert was_full, f"{client.name} is refused with {code}"
            assert response.header("retry-after") is not None
        elif code == "session_expired":
            assert client.function == "guarded"
            assert before is None
        elif code == "no_such_session":
            assert client.mode in MCP
            assert before is None or before.state is SessionState.ENDED
            client.forget()
        else:
            raise AssertionError(f"{client.name} is told {response.status} {code}")

    async def is_full(self, client: Client) -> bool:
        function = self.functions[client.tenant, client.function]
        current = await self.there.world.functions.get(function.tenant_id, function.name)
        sharing = (await self.there.world.functions.revision(function.tenant_id, current.revision_id)).sharing
        if sharing.requests and any(self.host.flows[i.id] >= sharing.requests for i in self.instances(function)):
            return True
        if not sharing.instances:
            return False
        if not sharing.has_seats and function.has_sessions:
            return sum(1 for s in await self.live() if s.function_id == function.id) >= sharing.instances
        return len(self.instances(function)) >= sharing.instances

    def instances(self, function: Function) -> list[MemoryInstance]:
        sessions = self.there.world.sessions.live.all()
        own = {live.session.id for live in sessions if live.session.function_id == function.id}
        return [
            i
            for i in self.host.instances.values()
            if i.claim.owner in own or i.claim.owner.startswith(function.id + ":")
        ]

    # -- between answers

    async def live(self) -> list[Session]:
        """Once what a death has begun to note is noted."""
        found: list[Session] = []

        async def is_noted() -> bool:
            sessions = self.there.world.store.everyone().sessions
            found[:] = [each async for each in sessions.each(state=list(LIVE_SESSION))]
            return all(each.instance_id in self.host.instances for each in found)

        await until(is_noted)
        return found

    async def look(self, open_flows: int) -> None:
        """Seats, instances, counts and what was executed."""
        live = await self.live()
        holders: dict[str, set[str]] = defaultdict(set)
        for session in live:
            holders[str(session.instance_id)].add(session.id)
            self.were_at[_who(session), str(session.instance_id)] = self.there.clock.now
        assert max(Counter(i.claim.owner for i in self.host.instances.values()).values(), default=1) == 1
        for instance in self.host.instances.values():
            if instance.claim.owner.startswith("ses_"):
                assert holders[instance.id] == {instance.claim.owner}
            else:
                await self._shared(instance, holders[instance.id])
            if instance.claim.connections:
                assert self.host.flows[instance.id] <= instance.claim.connections
        assert sum(self.host.flows.values()) == open_flows
        assert max(self.there.servers.executed.values(), default=1) == 1, "work was done twice"
        self._nothing_leaks(is_idle=not open_flows)
        for instance, request in self.there.servers.seen:
            self._saw(instance.id, instance.claim.owner, request)
        self.there.servers.seen.clear()

    async def _shared(self, instance: MemoryInstance, holders: set[str]) -> None:
        revision_id = instance.claim.owner.split(":")[1]
        revision = await self.there.world.store.everyone().revisions.find(id=revision_id)
        assert revision is not None
        assert len(holders) <= revision.sharing.sessions
        [host] = self.there.world.sessions._fleet.hosts().values()
        [known] = [each for each in self.there.world.sessions.placing.on(host) if each.instance_id == instance.id]
        assert set(known.seats) == holders
        assert known.places == 0

    def _nothing_leaks(self, *, is_idle: bool) -> None:
        sessions = self.there.world.sessions
        assert not sessions._waking._claiming
        assert not sessions._waking._waking
        assert not sessions.placing._seating
        assert not sessions.admitting._coming
        assert self.there.wake is not None
        if is_idle:
            assert not sessions.lines._lines
            assert self.there.wake.held == 0

    def _saw(self, instance_id: str, owner: str, request: Request) -> None:
        """What reaches an instance is for it: initialized, and nothing in it that only the gateway understands."""
        assert not [name for name in request.headers if name.startswith("x-gw-") or name == "x-dovecote-key"]
        assert "dovecote-session" not in request.headers.get("cookie", "") + request.path
        assert "." not in request.headers.get("mcp-session-id", "")
        if not owner.startswith("ses_"):
            function = next(f for f in self.functions.values() if owner.startswith(f.id + ":"))
            if FUNCTIONS[function.name][2].initialize is not None:
                assert (BEGUN, instance_id) in self.host.ran

    async def has_ended(self, session_id: str) -> None:
        record = await self.there.world.store.everyone().sessions.find(id=session_id)
        if record is None:
            raise NotFound(session_id)
        assert record.state is SessionState.ENDED
        self.ended.add(session_id)


def _who(session: Session) -> str:
    return f"{session.tenant_id} {session.user_id} {session.function_id} {session.key}"


def alive(sessions: Sequence[Session]) -> list[Session]:
    return sorted((s for s in sessions if s.state is not SessionState.ENDED), key=lambda s: (s.created_at, s.key))
