"""What goes over the wire: one model a noun, and how a record becomes it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from dovecote.model import records
from dovecote.model.addresses import Addresses
from dovecote.model.rules import Reinstall
from dovecote.model.sizes import NetworkPolicy
from dovecote.model.volumes import Mount

Item = TypeVar("Item")


class Body(BaseModel):
    """What a client sends. A field that we do not know is an error, not a silence."""

    model_config = ConfigDict(extra="forbid")


class Page(BaseModel, Generic[Item]):
    items: list[Item]
    next: str | None = Field(None, description="Pass it as `after` for the next page; null on the last one.")


class ErrorDetail(BaseModel):
    code: str = Field(description="Stable; for programs.")
    message: str = Field(description="For a person.")
    hint: str = Field(description="What to do next; may be empty.")
    request_id: str


class ErrorShape(BaseModel):
    error: ErrorDetail


class NetworkShape(Body):
    """What an instance may reach. Other instances, the host and metadata addresses are never reachable."""

    internet: bool = True
    allow_cidrs: list[str] = Field(default_factory=list, max_length=100, description="Reachable in any case.")
    deny_cidrs: list[str] = Field(
        default_factory=list, max_length=100, description="Parts of the internet that are not."
    )

    outbound_keeps_awake: bool = Field(default=False, description="Whether traffic with the outside counts as use.")

    def record(self) -> NetworkPolicy:
        return NetworkPolicy(self.internet, tuple(self.allow_cidrs), tuple(self.deny_cidrs), self.outbound_keeps_awake)


class StartShape(Body):
    """How the server of a session or an app is started."""

    command: str = Field(min_length=1, max_length=32768, description="A shell command that stays in the foreground.")
    port: int = Field(ge=0, le=65535, description="The port that it opens; 0 for none.")
    cwd: str = Field("", max_length=4096, description="Empty is where the template's commands start.")
    env: dict[str, str] = Field(default_factory=dict)
    argv: list[str] = Field(
        default_factory=list, max_length=1000, description="Words to run without a shell, in place of the command."
    )
    ready: str = Field(
        "", max_length=32768, description="A shell command that ends with 0 once a server without a port is ready."
    )

    def record(self) -> records.Start:
        return records.Start(self.command, self.port, self.cwd, self.env, tuple(self.argv), self.ready)


class MountShape(Body):
    """A volume, or a path in one, and where it shows inside."""

    volume: str = Field(min_length=1, max_length=100, description="The volume's name.")
    at: str = Field(max_length=4096, description="An absolute path inside; made where it is missing.")
    path: str = Field("", max_length=4096, description="`user/session/task` in the volume; made where it is missing.")
    read_only: bool = False
    uid: int = Field(1000, ge=0, le=65535, description="Who owns the mounted directory, inside.")
    gid: int = Field(1000, ge=0, le=65535)

    @classmethod
    def of(cls, mount: Mount) -> MountShape:
        return cls(**{name: value for name, value in vars(mount).items() if name != "max_bytes"})


class NewMount(MountShape):
    max_bytes: int | None = Field(None, description="A limit of the path, set before it is mounted; it stays there.")

    def record(self) -> Mount:
        return Mount(self.volume, self.at, self.path, self.read_only, self.uid, self.gid, self.max_bytes)


class ReinstallShape(BaseModel):
    """What became of dependencies that rules had left out, when the session was restored last."""

    state: str = Field(description="running, done or failed; the session goes on all the same.")
    directories: list[str] = Field(description="Those that had been left out.")
    command: str = Field(description="The last one that ran; empty when nothing said how to install.")
    exit_code: int | None
    output: str = Field(description="The end of what it printed.")


class SessionShape(BaseModel):
    id: str
    key: str = Field(description="The client's own name for it, sent in the function's affinity header.")
    function_id: str
    user_id: str
    state: str
    desired: str
    reason: str = Field(description="Why it is in this state, for a person.")
    tier: str
    idle_after_seconds: float | None = Field(description="Overrides the tier's; null leaves it to the tier.")
    quiet_after_seconds: float | None
    created_at: datetime
    last_active_at: datetime
    expires_at: datetime | None = Field(description="It ends then, whatever happens.")
    timeout_at: datetime | None = Field(description="`at_timeout` comes then; null while it is paused.")
    at_timeout: str = Field(description="end, pause or park.")
    awake_until: datetime | None = Field(description="End of its lease, by now perhaps in the past.")
    is_paused: bool
    is_hibernated: bool = Field(description="Parked with its processes: they go on where they were.")
    park: str = Field(description="What is kept when nobody uses it: files or memory.")
    resumes_on_use: bool = Field(description="Whether any use ends a pause; if not, only `:resume` does.")
    metadata: dict[str, str]
    network: NetworkShape | None = Field(description="Its own; null leaves it to its function.")
    ended_at: datetime | None
    saved_at: datetime | None
    saved_generation: int
    start: StartShape | None
    reinstall: ReinstallShape | None = Field(description="null where nothing had been left out.")
    slug: str
    address: str | None = Field(description="Where its started server answers; null without a start.")
    port_address: str = Field(description="Address of any of its ports: put the number for `{port}`.")


class InstanceShape(BaseModel):
    instance_id: str
    pid: int = Field(description="Its PID 1 as the host sees it; 0 where that is not this machine.")
    address: str = Field(description="Inside the host; nobody but the gateway can reach it.")
    usage: dict[str, int | float] = Field(description="What it uses now; units are in the names.")


class SampleShape(BaseModel):
    """What a session used at one moment."""

    at: datetime
    cpu_percent: float = Field(description="Of all its CPUs, since the sample before.")
    cpus: float
    memory_bytes: int = Field(description="What its limit is held against, page cache included.")
    cache_bytes: int
    max_memory_bytes: int
    disk_bytes: int
    max_disk_bytes: int


class LagShape(BaseModel):
    """How far the store is behind a session's files."""

    state: str = Field(description="saved, pending, failing (work goes on, it is tried again), on_host or damaged.")
    saved_ago_seconds: float | None = Field(description="Since the last save; null when none is known.")
    behind_seconds: float = Field(description="Age of the oldest change that is not saved.")
    pending: int | None = Field(description="Files and directories written to since; null: too many to count, or all.")
    recovery_point_seconds: float | None = Field(description="What its tier promises; null without an instance.")
    error_code: str = Field(description="Why the last save failed; empty when it did not.")


class AppShape(BaseModel):
    id: str
    name: str
    address: str
    function_id: str
    revision_id: str
    session_id: str = Field(description="The session that it was published from.")
    minimum: int
    maximum: int
    target_concurrency: int
    idle_after_seconds: float
    created_at: datetime


class AppInstanceShape(BaseModel):
    instance_id: str
    address: str
    is_ready: bool


class ChatShape(BaseModel):
    id: str
    session_id: str
    user_id: str
    title: str
    created_at: datetime


class TurnShape(BaseModel):
    id: str
    chat_id: str
    number: int
    messages: list[dict[str, Any]]
    created_at: datetime
    snapshot_id: str | None = Field(description="The session's files at its end.")
    snapshot_note: str | None = Field(description="Why it has no snapshot.")
    rewound_at: datetime | None = Field(description="When the chat went back to before it.")


class KeyShape(BaseModel):
    id: str
    name: str
    created_at: datetime
    revoked_at: datetime | None


class NewKeyShape(KeyShape):
    secret: str = Field(description="Shown this once.")


class UserShape(BaseModel):
    id: str
    name: str
    tier: str
    created_at: datetime


class PortShape(BaseModel):
    port: int
    loopback_only: bool = Field(description="It listens on 127.0.0.1 only: a forward reaches it, the gateway cannot.")
    address: str


def shown(text: str) -> str:
    """A name from inside as text: bytes that are not UTF-8 become the replacement character."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


async def streamed(first: bytes, chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """The body of an answer whose first piece is there; whatever makes it ends with it."""
    try:
        yield first
        async for chunk in chunks:
            yield chunk
    finally:
        if isinstance(chunks, AsyncGenerator):
            await chunks.aclose()


def seconds(duration: timedelta | None) -> float | None:
    return duration.total_seconds() if duration is not None else None


def in_a_zone(moment: datetime | None) -> datetime | None:
    """A time without its zone is UTC."""
    return moment if moment is None or moment.tzinfo else moment.replace(tzinfo=UTC)


def duration(value: float | None) -> timedelta | None:
    return timedelta(seconds=value) if value is not None else None


def start_shape(start: records.Start | None) -> StartShape | None:
    if start is None:
        return None
    return StartShape(
        command=start.command, port=start.port, cwd=start.cwd, env=start.env, argv=[*start.argv], ready=start.ready
    )


def _reinstall_shape(reinstall: Reinstall | None) -> ReinstallShape | None:
    if reinstall is None:
        return None
    return ReinstallShape(
        state=reinstall.state,
        directories=[*reinstall.directories],
        command=reinstall.command,
        exit_code=reinstall.exit_code,
        output=reinstall.output,
    )


def network_shape(network: NetworkPolicy) -> NetworkShape:
    return NetworkShape(
        internet=network.internet,
        allow_cidrs=[*network.allow_cidrs],
        deny_cidrs=[*network.deny_cidrs],
        outbound_keeps_awake=network.outbound_keeps_awake,
    )


def session_shape(session: records.Session, addresses: Addresses) -> SessionShape:
    return SessionShape(
        id=session.id,
        key=session.key,
        function_id=session.function_id,
        user_id=session.user_id,
        state=session.state.value,
        desired=session.desired.value,
        reason=session.reason,
        tier=session.tier,
        idle_after_seconds=seconds(session.idle_after),
        quiet_after_seconds=seconds(session.quiet_after),
        created_at=session.created_at,
        last_active_at=session.last_active_at,
        expires_at=session.expires_at,
        timeout_at=session.timeout_at,
        at_timeout=session.at_timeout,
        awake_until=session.awake_until,
        is_paused=session.is_paused,
        is_hibernated=session.is_hibernated,
        park=session.park,
        resumes_on_use=session.resumes_on_use,
        metadata=session.metadata,
        network=network_shape(session.network) if session.network else None,
        ended_at=session.ended_at,
        saved_at=session.saved_at,
        saved_generation=session.saved_generation,
        start=start_shape(session.start),
        reinstall=_reinstall_shape(session.reinstall),
        slug=session.slug,
        address=addresses.box(session.slug, session.start.port) if session.start else None,
        port_address=addresses.box(session.slug, 0).replace("//0-", "//{port}-"),
    )


def app_shape(app: records.App, addresses: Addresses) -> AppShape:
    return AppShape(
        id=app.id,
        name=app.name,
        address=addresses.app(app.name),
        function_id=app.function_id,
        revision_id=app.revision_id,
        session_id=app.source_session_id,
        minimum=app.minimum,
        maximum=app.maximum,
        target_concurrency=app.target_concurrency,
        idle_after_seconds=app.idle_after.total_seconds(),
        created_at=app.created_at,
    )


def chat_shape(chat: records.Chat) -> ChatShape:
    return ChatShape(
        id=chat.id, session_id=chat.session_id, user_id=chat.user_id, title=chat.title, created_at=chat.created_at
    )


def turn_shape(turn: records.Turn) -> TurnShape:
    return TurnShape(
        id=turn.id,
        chat_id=turn.chat_id,
        number=turn.number,
        messages=turn.messages,
        created_at=turn.created_at,
        snapshot_id=turn.snapshot_id,
        snapshot_note=turn.snapshot_note,
        rewound_at=turn.rewound_at,
    )


def key_shape(key: records.ApiKey) -> KeyShape:
    return KeyShape(id=key.id, name=key.name, created_at=key.created_at, revoked_at=key.revoked_at)
