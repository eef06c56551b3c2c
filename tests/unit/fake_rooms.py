"""The rooms below the API, in memory, for tests of the edges."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypeAlias, cast

from starlette.types import ASGIApp, Receive, Scope, Send

from dovecote.api import rooms as api_rooms
from dovecote.api.app import build
from dovecote.control.templates import Done, Printed, Step
from dovecote.errors import NotFound
from dovecote.model.addresses import Addresses
from dovecote.model.ids import new_id, random_text
from dovecote.model.records import App, Chat, Function, Revision, Start, Template, Turn
from dovecote.model.sizes import NetworkPolicy
from dovecote.model.states import TemplateState
from dovecote.model.trees import Inside
from dovecote.model.trees import Template as OwnTemplate
from tests.unit.fake_sandboxes import FakeSandboxes
from tests.unit.fake_sessions import FakeSessions
from tests.unit.fake_tenancy import KEY, NOW, OTHER_KEY, TENANT, FakeTenancy

DEFAULT_SCALE: dict[str, Any] = {
    "minimum": 0,
    "maximum": 5,
    "target_concurrency": 10,
    "idle_after": timedelta(seconds=60),
}
Instances: TypeAlias = list[Any]
Templates: TypeAlias = list[Template]
OwnTemplates: TypeAlias = list[OwnTemplate]
Names: TypeAlias = list[str]


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


class FakeBases:
    def made(self) -> OwnTemplates:
        return [OwnTemplate("base", "digest-of-base", Inside("user", "/home/user", True, {}))]

    def not_made(self) -> Names:
        return ["code"]


class FakeFunctions:
    bases = FakeBases()

    async def get(self, tenant_id: str, name: str) -> Function:
        return Function(new_id("fun"), tenant_id, name, new_id("rev"), NOW, random_text())

    async def create(self, tenant_id: str, name: str, **_: Any) -> Function:
        return await self.get(tenant_id, name)

    async def revision(self, tenant_id: str, revision_id: str) -> Revision:
        what = ("digest-of-base", "base", None, "small", "crun", NetworkPolicy())
        return Revision(revision_id, tenant_id, new_id("fun"), 1, *what, start=None, env={}, created_at=NOW)

    async def list(self, tenant_id: str, *, after: str | None, limit: int) -> list[Function]:
        return [await self.get(tenant_id, "sandbox")]


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


__all__ = ["KEY", "NOW", "OTHER_KEY", "FakeSandboxes", "Rooms", "nothing_here"]
