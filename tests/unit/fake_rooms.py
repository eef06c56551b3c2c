"""The rooms below the API, in memory, for tests of the edges."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias, cast

from starlette.types import ASGIApp, Receive, Scope, Send

from dovecote.api import rooms as api_rooms
from dovecote.api.app import build
from dovecote.control.sandboxes import (
    CommandStatus,
    Contexts,
    Dropped,
    Entry,
    Event,
    Exited,
    FileChange,
    Finished,
    Listing,
    Output,
    Started,
    Stat,
    Watchers,
)
from dovecote.control.sessions import Activity
from dovecote.control.sessions.activity import Reason, ToCome
from dovecote.control.sessions.idle import Why
from dovecote.control.templates import Done, Printed, Step
from dovecote.errors import Conflict, DeadlineExceeded, Invalid, NotFound, Unauthenticated
from dovecote.model.addresses import Addresses
from dovecote.model.ids import new_id, random_text
from dovecote.model.past import HookRun, Past
from dovecote.model.records import ApiKey, App, Chat, Function, Revision, Session, Start, Template, Turn, User
from dovecote.model.sizes import NetworkPolicy
from dovecote.model.states import Desired, SessionState, TemplateState
from dovecote.model.trees import Inside, Lag, LagState
from dovecote.model.trees import Template as OwnTemplate
from tests.unit.context_guest import ContextGuest, contexts_of

DEFAULT_SCALE: dict[str, Any] = {
    "minimum": 0,
    "maximum": 5,
    "target_concurrency": 10,
    "idle_after": timedelta(seconds=60),
}
NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
TENANT = new_id("ten")
OTHER = new_id("ten")
Statuses: TypeAlias = list[CommandStatus]
Instances: TypeAlias = list[Any]
Templates: TypeAlias = list[Template]
OwnTemplates: TypeAlias = list[OwnTemplate]
Names: TypeAlias = list[str]

KEY = "dvc_good"
OTHER_KEY = "dvc_other"


@dataclass
class Principal:
    tenant_id: str
    key_id: str = "key"


@dataclass
class NewKey:
    secret: str
    key: ApiKey


class FakeTenancy:
    def __init__(self) -> None:
        self.tenants = {KEY: TENANT, OTHER_KEY: OTHER}
        self.keys: dict[str, ApiKey] = {}
        self.tiers: dict[str, str] = {}

    async def authenticate(self, secret: str) -> Principal:
        if secret not in self.tenants:
            raise Unauthenticated("not a key of ours", hint="`dovecote key create` makes one")
        return Principal(self.tenants[secret])

    async def create_key(self, tenant_id: str, name: str) -> NewKey:
        key = ApiKey(new_id("key"), tenant_id, "digest", name, NOW)
        self.keys[key.id] = key
        return NewKey(f"dvc_{random_text()}", key)

    async def list_keys(self, tenant_id: str) -> list[ApiKey]:
        return list(self.keys.values())

    async def revoke_key(self, tenant_id: str, key_id: str) -> None:
        self.keys[key_id] = replace(self.keys[key_id], revoked_at=NOW)

    async def user(self, tenant_id: str, name: str, tier: str = "default") -> User:
        return User(new_id("usr"), tenant_id, name, self.tiers.get(name, tier), NOW)

    async def find_user(self, tenant_id: str, name: str) -> User | None:
        return await self.user(tenant_id, name) if name in self.tiers else None

    async def list_users(self, tenant_id: str, *, after: str | None = None, limit: int = 100) -> list[User]:
        return [await self.user(tenant_id, name) for name in self.tiers]


@dataclass
class View:
    instance_id: str
    address: str
    pid: int
    usage: dict[str, int | float]


class FakeSessions:
    def __init__(self, tenancy: FakeTenancy) -> None:
        self.tenancy = tenancy
        self.all: dict[str, Session] = {}
        self.created: list[dict[str, Any]] = []
        self.lookups = 0
        self.failure: Exception | None = None
        self.its_lag = Lag(LagState.PENDING, saved_ago=0.81, behind=0.4, pending=3, recovery_point=2.0)

    async def create(self, tenant_id: str, *, key: str | None, env: Any, wake: bool, **rest: Any) -> Session:
        if any(each.key == key for each in self.all.values()):
            raise Conflict(f"there is a session {key!r}", code="exists")
        self.created.append({"env": env, **rest})
        session = Session(
            id=new_id("ses"),
            tenant_id=tenant_id,
            user_id=new_id("usr"),
            function_id=new_id("fun"),
            revision_id=new_id("rev"),
            key=key or random_text(),
            slug=random_text(),
            state=SessionState.READY if wake else SessionState.NEW,
            desired=Desired.LIVE,
            created_at=NOW,
            last_active_at=NOW,
            tier=rest["tier"] or "default",
            idle_after=rest["idle_after"],
            mounts=tuple(rest.get("mounts", ())),
            metadata=rest.get("metadata") or {},
        )
        self.all[session.id] = session
        return session

    async def get(self, tenant_id: str, session_id: str) -> Session:
        self.lookups += 1
        if self.failure is not None:
            raise self.failure
        session = self.all.get(session_id)
        if session is None or session.tenant_id != tenant_id:
            raise NotFound(f"no session {session_id}", code="no_such_session")
        return session

    async def list(self, tenant_id: str, *, after: str | None, limit: int, **_: Any) -> list[Session]:
        mine = [each for each in self.all.values() if each.tenant_id == tenant_id]
        ids = [each.id for each in mine if each.state is not SessionState.ENDED]
        first = ids.index(after) + 1 if after else 0
        return [self.all[each] for each in ids[first : first + limit]]

    async def update(self, tenant_id: str, session_id: str, *, idle_after: timedelta | None, **_: Any) -> Session:
        return await self._become(tenant_id, session_id, idle_after=idle_after)

    async def delete(self, tenant_id: str, session_id: str) -> None:
        await self._become(tenant_id, session_id, state=SessionState.ENDED)

    async def wake(self, tenant_id: str, session_id: str) -> Session:
        return await self._become(tenant_id, session_id, state=SessionState.READY)

    async def freeze(self, tenant_id: str, session_id: str) -> Session:
        return await self._become(tenant_id, session_id, state=SessionState.FROZEN)

    async def park(self, tenant_id: str, session_id: str) -> Session:
        return await self._become(tenant_id, session_id, state=SessionState.PARKED)

    async def save(self, tenant_id: str, session_id: str) -> Session:
        return await self._become(tenant_id, session_id, saved_at=NOW)

    async def set_start(self, tenant_id: str, session_id: str, start: Start | None) -> Session:
        return await self._become(tenant_id, session_id, start=start)

    async def set_user_tier(self, tenant_id: str, name: str, tier: str) -> User:
        self.tenancy.tiers[name] = tier
        return await self.tenancy.user(tenant_id, name)

    async def lease(self, tenant_id: str, session_id: str, span: timedelta) -> Session:
        return await self._become(tenant_id, session_id, awake_until=NOW + span)

    async def release(self, tenant_id: str, session_id: str) -> Session:
        return await self._become(tenant_id, session_id, awake_until=NOW)

    async def activity(self, tenant_id: str, session_id: str) -> Activity:
        session = await self.get(tenant_id, session_id)
        return Activity(
            state=session.state,
            why="awake: `npm run dev` runs",
            reasons=[Reason(Why.COMMANDS, "`npm run dev` runs", since=NOW)],
            next=[ToCome("end", NOW)],
            unused_for=timedelta(seconds=3),
            window=timedelta(minutes=5),
            is_promised=False,
            awake_until=session.awake_until,
            past=Past()
            .moved(NOW, "ready", "woken")
            .ran(HookRun("initialize", NOW, False, 0.5, "it answered 500"))
            .breached(NOW, "its processes were killed"),
        )

    async def lag(self, tenant_id: str, session_id: str) -> Lag:
        await self.get(tenant_id, session_id)
        return self.its_lag

    async def instance(self, tenant_id: str, session_id: str) -> View:
        await self.get(tenant_id, session_id)
        return View("ins_x", "10.201.0.7", 4242, {"memory_bytes": 1 << 20})

    async def _become(self, tenant_id: str, session_id: str, **changes: Any) -> Session:
        self.all[session_id] = replace(await self.get(tenant_id, session_id), **changes)
        return self.all[session_id]


@dataclass
class FakeSandboxes:
    """Commands do what `script` says; files are a dictionary."""

    calls: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    events: list[Event | Exception] = field(default_factory=list)
    finish: Callable[[tuple[str, ...]], Finished] = field(
        default=lambda argv: Finished(" ".join(argv).encode(), b"", 0, None, False, False)
    )
    entry: Stat = field(default=Stat("link", 0o777, 1000, 7, 3, 0, "to", "bird", "", {"a": "b"}))
    entries: int = 1
    changes: list[FileChange] = field(
        default_factory=lambda: [FileChange("watching", is_directory=True), FileChange("rename", "a", "b")]
    )
    is_detached: bool = False
    goes_on: bool = False  # after its events a command goes on, until `over`
    over: asyncio.Event = field(default_factory=asyncio.Event)
    over_when: dict[str, object] | None = None  # that call ends it
    statuses: list[CommandStatus] = field(default_factory=list)
    has_no_terminal: bool = False
    is_deaf: bool = False
    largest_piece: int = 0
    guest: ContextGuest = field(default_factory=ContextGuest)
    received: int = 0

    def __post_init__(self) -> None:
        self.watchers = Watchers(self._begin)

    @property
    def contexts(self) -> Contexts:
        return contexts_of(self.guest)

    async def run(self, tenant_id: str, session_id: str, **arguments: Any) -> Finished:
        self.calls.append(arguments)
        return self.finish(arguments["argv"])

    async def start(self, tenant_id: str, session_id: str, **arguments: Any) -> Started:
        self.calls.append(arguments)
        return Started(7, 1234, NOW)

    async def stream(self, tenant_id: str, session_id: str, **arguments: Any) -> AsyncIterator[Event]:
        self.calls.append(arguments)
        async for event in self._play():
            yield event

    async def attach(self, tenant_id: str, session_id: str, number: int, *, offset: int = 0) -> AsyncIterator[Event]:
        self.calls.append({"number": number, "offset": offset})
        async for event in self._play():
            yield event

    async def _play(self) -> AsyncIterator[Event]:
        try:
            for event in self.events:
                if isinstance(event, Exception):
                    raise event
                yield event
            if self.goes_on:
                await self.over.wait()
                yield Exited(0, None, False, 0)
        except (GeneratorExit, asyncio.CancelledError):
            self.is_detached = True
            raise

    async def signal(self, tenant_id: str, session_id: str, number: int, signo: int) -> None:
        self.calls.append({"number": number, "signo": signo})

    async def resize(self, tenant_id: str, session_id: str, number: int, rows: int, cols: int) -> None:
        if self.has_no_terminal:
            raise Invalid(f"no terminal for command {number}", code="no_terminal")
        self.calls.append({"number": number, "size": (rows, cols)})

    async def write_stdin(
        self, tenant_id: str, session_id: str, number: int, data: bytes, *, timeout: float = 30
    ) -> None:
        if self.is_deaf:
            raise DeadlineExceeded(f"command {number} does not read its input", code="stdin_blocked")
        self.calls.append({"number": number, "data": data})

    async def close_stdin(self, tenant_id: str, session_id: str, number: int) -> None:
        self.calls.append({"number": number, "closed": True})
        if self.over_when in self.calls:
            self.over.set()

    async def commands(self, tenant_id: str, session_id: str) -> Statuses:
        return self.statuses

    async def release(self, tenant_id: str, session_id: str, number: int) -> None:
        self.calls.append({"number": number, "released": True})

    async def stat(self, tenant_id: str, session_id: str, path: str, **how: Any) -> Stat:
        self.calls.append(how)
        if not how.get("follow", True):
            return self.entry
        if any(name.startswith(path.rstrip("/") + "/") for name in self.files):
            return Stat("directory", 0o755, 1000, 1000, 0, 0, "")
        if path not in self.files:
            raise NotFound(f"no file {path}", code="file_not_found")
        return Stat("file", 0o640, 1000, 1000, len(self.files[path]), 0, "")

    async def read_file(self, tenant_id: str, session_id: str, path: str, **_: Any) -> AsyncIterator[bytes]:
        if path not in self.files:
            raise NotFound(f"no file {path}", code="file_not_found")
        content = self.files[path]
        for at in range(0, len(content), 1 << 16):
            yield content[at : at + (1 << 16)]

    async def write_file(
        self, tenant_id: str, session_id: str, path: str, chunks: AsyncIterator[bytes], **how: Any
    ) -> None:
        self.calls.append(how)
        content = bytearray()
        async for chunk in chunks:
            self.largest_piece = max(self.largest_piece, len(chunk))
            self.received += len(chunk)
            content = (content + chunk)[: 1 << 20]
        self.files[path] = bytes(content)

    async def remove(self, tenant_id: str, session_id: str, path: str, **_: Any) -> None:
        self.files.pop(path)

    async def rename(self, tenant_id: str, session_id: str, source: str, target: str, **_: Any) -> None:
        self.files[target] = self.files.pop(source)

    async def alter(self, tenant_id: str, session_id: str, path: str, **how: Any) -> Stat:
        self.calls.append(how)
        return self.entry

    async def list_dir(self, tenant_id: str, session_id: str, path: str, **how: Any) -> Listing:
        self.calls.append(how)
        return Listing([Entry(f"{i}", self.entry) for i in range(self.entries)], self.entries > how["most"])

    async def make_dir(self, tenant_id: str, session_id: str, path: str, **_: Any) -> bool:
        return path not in self.files

    async def make_link(self, tenant_id: str, session_id: str, path: str, target: str, **_: Any) -> None:
        self.files[path] = target.encode()

    async def watch(self, tenant_id: str, session_id: str, path: str, **how: Any) -> AsyncGenerator[FileChange, None]:
        self.calls.append(how)
        for change in self.changes:
            yield change

    async def _begin(self, tenant_id: str, session_id: str, path: str, recursive: bool, user: str | None) -> Any:
        changes = self.watch(tenant_id, session_id, path, recursive=recursive)
        await anext(changes)
        return changes


class FakeApps:
    def __init__(self) -> None:
        self.all: dict[str, App] = {}

    async def publish(self, tenant_id: str, session_id: str, *, name: str | None, start: Any, **scale: Any) -> App:
        app = App(
            new_id("app"),
            tenant_id,
            name or "made-up",
            new_id("fun"),
            new_id("rev"),
            session_id,
            created_at=NOW,
            **{**DEFAULT_SCALE, **{key: value for key, value in scale.items() if value is not None}},
        )
        self.all[app.name] = app
        return app

    async def get(self, tenant_id: str, name: str) -> App:
        if name not in self.all:
            raise NotFound(f"no app {name}", code="no_such_app")
        return self.all[name]

    async def list(self, tenant_id: str, *, after: str | None, limit: int) -> list[App]:
        return list(self.all.values())

    async def update(self, tenant_id: str, name: str, **changes: Any) -> App:
        given = {key: value for key, value in changes.items() if value is not None}
        self.all[name] = replace(await self.get(tenant_id, name), **given)
        return self.all[name]

    async def unpublish(self, tenant_id: str, name: str) -> None:
        self.all.pop((await self.get(tenant_id, name)).name)

    async def instances(self, tenant_id: str, name: str) -> Instances:
        return []


class FakeFunctions:
    async def get(self, tenant_id: str, name: str) -> Function:
        return Function(new_id("fun"), tenant_id, name, new_id("rev"), NOW, random_text())

    async def create(self, tenant_id: str, name: str, **_: Any) -> Function:
        return await self.get(tenant_id, name)

    async def revision(self, tenant_id: str, revision_id: str) -> Revision:
        what = ("digest-of-base", "base", None, "small", "crun", NetworkPolicy())
        return Revision(revision_id, tenant_id, new_id("fun"), 1, *what, start=None, env={}, created_at=NOW)

    async def list(self, tenant_id: str, *, after: str | None, limit: int) -> list[Function]:
        return [await self.get(tenant_id, "sandbox")]

    def templates(self) -> OwnTemplates:
        return [OwnTemplate("base", "digest-of-base", Inside("user", "/home/user", True, {}))]

    def templates_on_demand(self) -> Names:
        return ["code"]


class FakeChats:
    def __init__(self) -> None:
        self.chats: dict[str, Chat] = {}
        self.kept: list[Turn] = []

    async def create(self, tenant_id: str, *, session_id: str, user: str, title: str) -> Chat:
        chat = Chat(new_id("cha"), tenant_id, user, session_id, title, NOW)
        self.chats[chat.id] = chat
        return chat

    async def get(self, tenant_id: str, chat_id: str) -> Chat:
        return self.chats[chat_id]

    async def add_turn(self, tenant_id: str, chat_id: str, messages: list[dict[str, Any]]) -> Turn:
        turn = Turn(new_id("trn"), tenant_id, chat_id, len(self.kept) + 1, messages, NOW)
        self.kept.append(turn)
        return turn

    async def turns(self, tenant_id: str, chat_id: str, *, after: str | None, limit: int, rewound: bool) -> list[Turn]:
        return [turn for turn in self.kept if rewound or turn.rewound_at is None]

    async def rewind(self, tenant_id: str, chat_id: str, number: int) -> Turn:
        self.kept = [turn if turn.number <= number else replace(turn, rewound_at=NOW) for turn in self.kept]
        return self.kept[number - 1]

    async def fork(self, tenant_id: str, chat_id: str, number: int, *, key: str | None, wake: bool) -> Chat:
        forked = replace(self.chats[chat_id], id=new_id("cha"), title=f"{number} {key} {wake}")
        self.chats[forked.id] = forked
        return forked

    async def list(self, tenant_id: str, *, user: str | None, after: str | None, limit: int) -> list[Chat]:
        return list(self.chats.values())


class FakeVolumes:
    async def resolve(self, tenant_id: str, mounts: list[Any], *, user: str | None = None) -> tuple[Any, ...]:
        return tuple(mounts)


class FakeTemplates:
    """`failure` comes after the first step."""

    def __init__(self) -> None:
        self.prepared: list[str] = []
        self.kept = [Template(new_id("tpl"), TENANT, "alpine", TemplateState.READY, "alpine:3", NOW, NOW, "digest")]
        self.failure: Exception | None = None
        self.received = 0

    async def _making(self, name: str, source: str) -> AsyncIterator[Any]:
        yield Step("fetching", 1, 2)
        if self.failure is not None:
            raise self.failure
        yield Printed("hello\n")
        inside = Inside("root", "/root", True, {})
        self.kept.append(replace(self.kept[0], name=name, source=source, pinned=inside, start=Start("run", 80)))
        yield Done(self.kept[-1])

    async def prepare(self, name: str) -> AsyncIterator[Step]:
        self.prepared.append(name)
        yield Step(f"template {name}")

    async def pull(self, tenant_id: str, name: str, reference: str, **_: Any) -> AsyncIterator[Any]:
        return self._making(name, reference)

    async def unpack(self, tenant_id: str, name: str, archive: AsyncIterator[bytes], **_: Any) -> AsyncIterator[Any]:
        async for chunk in archive:
            self.received += len(chunk)
        return self._making(name, "archive")

    async def list(self, tenant_id: str, *, after: str | None, limit: int) -> Templates:
        return self.kept

    async def get(self, tenant_id: str, name: str) -> Template:
        return next(each for each in self.kept if each.name == name)

    async def delete(self, tenant_id: str, name: str) -> None:
        self.kept = [each for each in self.kept if each.name != name]


async def nothing_here(scope: Scope, receive: Receive, send: Send) -> None:
    raise NotFound("no tools here")


@dataclass
class Rooms:
    tenancy: FakeTenancy = field(default_factory=FakeTenancy)
    sessions: FakeSessions = field(init=False)
    sandboxes: FakeSandboxes = field(default_factory=FakeSandboxes)
    apps: FakeApps = field(default_factory=FakeApps)
    functions: FakeFunctions = field(default_factory=FakeFunctions)
    chats: FakeChats = field(default_factory=FakeChats)
    snapshots: object = None
    volumes: FakeVolumes = field(default_factory=FakeVolumes)
    templates: FakeTemplates = field(default_factory=FakeTemplates)
    is_ready: bool = True

    def __post_init__(self) -> None:
        self.sessions = FakeSessions(self.tenancy)

    def api(self, tools: ASGIApp = nothing_here) -> ASGIApp:
        rooms = api_rooms.Rooms(
            tenancy=cast(Any, self.tenancy),
            sessions=cast(Any, self.sessions),
            sandboxes=cast(Any, self.sandboxes),
            apps=cast(Any, self.apps),
            functions=cast(Any, self.functions),
            chats=cast(Any, self.chats),
            snapshots=cast(Any, self.snapshots),
            volumes=cast(Any, self.volumes),
            templates=cast(Any, self.templates),
            metering=cast(Any, None),
            contents=cast(Any, None),
            deployments=cast(Any, None),
            invocations=cast(Any, None),
            webhook_secrets=cast(Any, None),
            addresses=Addresses("localhost", 8080),
        )
        return build(rooms, tools=tools, is_ready=lambda: self.is_ready, version="0.0.0")


__all__ = ["KEY", "OTHER_KEY", "Dropped", "Exited", "Output", "Rooms", "Started"]
