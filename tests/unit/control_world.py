"""The rooms of control as `main` joins them, over a real store and a host in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest

from dovecote.control.apps import Apps, apps, turns
from dovecote.control.apps.running import RunningApp
from dovecote.control.deployments import DeployedFiles, Deployments
from dovecote.control.fleet import Death, Fleet
from dovecote.control.functions import Functions
from dovecote.control.sandboxes import Sandboxes
from dovecote.control.sessions import (
    Keeping,
    Routed,
    Routing,
    Sessions,
    activity,
    admitting,
    keeping,
    ledger,
    live,
    placing,
    seats,
    starting,
)
from dovecote.control.templates import Templates
from dovecote.control.tenancy import Tenancy
from dovecote.model.records import Session, Start
from dovecote.model.states import SessionState
from dovecote.model.trees import Inside, Template
from dovecote.store import Store, open_store
from tests.unit.memory_host import Clock, MemoryHost

HOST_ID = "local"
BASE = Template("base", "digest-of-base", Inside("user", "/home/user", True, {"LANG": "C.UTF-8"}))
START = Start("python3 app.py", 8000)
AT_ONCE = timedelta(microseconds=1)
BOUND = 10.0  # seconds that anything may take


@dataclass
class Load:
    """What the gateway counted of an app."""

    active: int = 0
    total: int = 0


class World:
    """One control over one store and one host; `restart` makes another one over the same."""

    def __init__(self, store: Store, host: MemoryHost, clock: Clock, tenant: str, other: str, builds: Path) -> None:
        self.store, self.host, self.clock = store, host, clock
        self.builds = builds
        self.tenant, self.other = tenant, other
        self.endpoints: Mapping[str, Sequence[str]] = {}
        self.told: list[Mapping[str, Sequence[str]]] = []
        self.loads: dict[str, Load] = {}
        self.start_timeout = BOUND
        self.join()

    def join(self) -> None:
        fleet = Fleet({HOST_ID: self.host})
        self.tenancy = Tenancy(self.store)
        self.functions = Functions(
            self.store, templates={"base": BASE}, level="crun", levels=frozenset({"crun", "runsc"})
        )
        self.sessions = Sessions(self.store, fleet, self.functions, self.tenancy, start_timeout=self.start_timeout)
        self.routing = Routing(self.store, self.sessions, self.functions, self.tenancy)
        self.sandboxes = Sandboxes(self.sessions)
        self.templates = Templates(self.store, fleet, self.functions, level="crun", work_dir=self.builds)
        files = DeployedFiles(fleet, self.functions, level="crun", work_dir=self.builds)
        self.deployments = Deployments(self.store, fleet, self.functions, self.sessions, files)
        self.apps = Apps(
            self.store,
            fleet,
            self.functions,
            self.sessions,
            start_timeout=self.start_timeout,
            set_endpoints=self._set_endpoints,
            loads=self._loads,
        )
        self.keeping = Keeping(
            self.store, fleet, self.functions, self.sessions, quiet_after=10, strays=[self.apps.strays]
        )
        self.host.on_death = self._died

    def _died(self, death: Death) -> None:
        self.sessions.died(death)
        self.apps.died(death)

    async def _set_endpoints(self, endpoints: Mapping[str, Sequence[str]]) -> None:
        self.endpoints = endpoints
        self.told.append(endpoints)

    async def _loads(self) -> Mapping[str, Load]:
        return self.loads

    async def restart(self) -> None:
        """Control goes and comes again; the host went on."""
        await self.leave()
        self.join()
        await self.keeping.adopt()
        await self.apps.adopt()
        await self.templates.adopt()

    async def leave(self) -> None:
        self.host.on_death = lambda _: None
        await self.keeping.stop()
        await self.sessions.placing.stop()
        await self.apps.stop()
        await self.templates.stop()
        await self.deployments.files.stop()

    async def tick(self) -> None:
        """One look at all sessions, and the moves that come of it to their end."""
        await self.keeping.tick()
        await self.keeping.stop()

    # -- sessions

    async def record(self, session: Session) -> Session:
        """As the store has it."""
        return await self.store.tenant(session.tenant_id).sessions.get(session.id)

    async def rewrite(self, session: Session, **changes: object) -> Session:
        """What a control that was cut short would have left in the store."""
        now = await self.record(session)
        return await self.store.tenant(session.tenant_id).sessions.swap(replace(now, **changes))  # type: ignore[arg-type]

    async def rewrite_seat(self, session: Session, **changes: object) -> None:
        """Changes the record of a session that has a seat, and what the room has in memory of it."""
        seat = self.sessions.seated(session.id)
        assert seat is not None
        seat.session = await self.rewrite(session, **changes)

    async def becomes(self, session: Session, state: SessionState) -> Session:
        async def is_so() -> bool:
            return (await self.record(session)).state is state

        await until(is_so)
        return await self.record(session)

    async def write(self, session: Session, text: bytes, path: str = "/home/user/note") -> None:
        await self.sandboxes.write_file(session.tenant_id, session.id, path, text)

    async def read(self, session: Session, path: str = "/home/user/note") -> bytes:
        return b"".join([chunk async for chunk in self.sandboxes.read_file(session.tenant_id, session.id, path)])

    # -- apps

    async def call(self, function: str, *, user: str, key: str | None, tenant: str | None = None) -> Routed:
        """Where a request for a function of the tenant goes."""
        return await self.routing.function(
            await self.functions.get(tenant or self.tenant, function), user=user, key=key
        )

    def running(self, name: str) -> RunningApp:
        return self.apps._apps[name]


MakeWorld = Callable[[MemoryHost], AbstractAsyncContextManager[World]]


async def until(is_so: Callable[[], bool] | Callable[[], Awaitable[bool]]) -> None:
    """Returns when it is so; fails after BOUND."""
    async with asyncio.timeout(BOUND):
        while True:
            answer = is_so()
            if answer if isinstance(answer, bool) else await answer:
                return
            await asyncio.sleep(0.001)


@asynccontextmanager
async def world_on(host: MemoryHost, directory: Path, patch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """Rooms that take their time from the host's clock."""
    for module in (activity, admitting, apps, turns, keeping, live, ledger, placing, seats):
        patch.setattr(module, "time", host.clock)
    patch.setattr(starting, "LOOK_EVERY", 0.05)
    path = directory / "store.sqlite"
    if "file" not in _migrated:
        await _migrate(path)
        _migrated["file"] = path.read_bytes()
    path.write_bytes(_migrated["file"])
    store = open_store(f"sqlite:///{path}")
    await store.open()
    try:
        first, second = [tenant.id for tenant in await store.everyone().tenants.list()]
        world = World(store, host, host.clock, first, second, directory / "builds")
        yield world
        await world.leave()
    finally:
        await store.close()


_migrated: dict[str, bytes] = {}  # migrations run once, each world gets a copy


async def _migrate(path: Path) -> None:
    store = open_store(f"sqlite:///{path}")
    await store.open()
    try:
        await store.migrate()
        for name in ("first", "second"):
            await Tenancy(store).create_tenant(name)
    finally:
        await store.close()
