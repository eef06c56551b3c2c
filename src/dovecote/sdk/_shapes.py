"""What the client gives back: frozen dataclasses, which `_reading` fills from JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypedDict


@dataclass(frozen=True)
class Start:
    """How the server of a session or an app is started: a shell command, and the port that it opens, 0 for none.

    With `argv` those words are run without a shell. `cwd` empty is where the template's commands start. `ready` is a
    command that ends with 0 once a server without a port is ready.
    """

    command: str
    port: int
    cwd: str = ""
    env: dict[str, str] = field(default_factory=dict)
    argv: list[str] = field(default_factory=list)
    ready: str = ""


@dataclass(frozen=True)
class Mount:
    """A volume by its name, or a path in it, and where it shows inside. `uid` and `gid` own the mounted directory.

    `max_bytes` gives the path a limit of its own before it is mounted; mounts that are listed do not say it.
    """

    volume: str
    at: str
    path: str = ""
    read_only: bool = False
    uid: int = 1000
    gid: int = 1000
    max_bytes: int | None = None


@dataclass(frozen=True)
class PathLimit:
    """Of a path in a volume. `used_bytes` is None where nothing is there; the next mount makes it again."""

    id: str
    path: str
    max_bytes: int
    used_bytes: int | None
    created_at: datetime


@dataclass(frozen=True)
class Volume:
    id: str
    name: str
    user_id: str | None
    max_bytes: int
    used_bytes: int | None
    created_at: datetime


@dataclass(frozen=True)
class Template:
    """What functions start from. `state` is building, ready or failed; `usable` says whether functions can name it."""

    name: str
    state: str
    usable: bool
    source: str
    id: str | None = None
    source_digest: str = ""
    digest: str | None = None
    user: str | None = None
    directory: str | None = None
    env: dict[str, str] = field(default_factory=dict)
    start: Start | None = None
    files: int = 0
    total_bytes: int = 0
    error_code: str = ""
    reason: str = ""
    created_at: datetime | None = None
    updated_at: datetime | None = None


@dataclass(frozen=True)
class Step:
    """What is done to make a template, how much of it, of how much; 0 is not known."""

    what: str
    done: int = 0
    total: int = 0


@dataclass(frozen=True)
class Printed:
    """Output of a command of a build."""

    text: str


TemplateEvent = Step | Printed | Template


@dataclass(frozen=True)
class Reinstall:
    """Of dependencies that rules had left out. `state` is running, done or failed; `output` ends what was printed."""

    state: str
    directories: list[str]
    command: str
    exit_code: int | None
    output: str


@dataclass(frozen=True)
class Network:
    """What an instance may reach: the internet but for `deny_cidrs`, and private networks by name, "10.1.0.0/16"."""

    internet: bool = True
    allow_cidrs: list[str] = field(default_factory=list)
    deny_cidrs: list[str] = field(default_factory=list)
    outbound_keeps_awake: bool = False


class SandboxWishes(TypedDict, total=False):
    """What one may say of a sandbox that is made."""

    key: str
    user: str
    tier: str
    idle_after: float
    ttl: float
    timeout: float
    at_timeout: str
    resumes_on_use: bool
    env: Mapping[str, str]
    metadata: Mapping[str, str]
    mounts: Sequence[Mount]
    template: str
    spec: str
    level: str
    network: Network
    snapshot: str


@dataclass(frozen=True)
class SessionView:
    """A session as the server last told of it."""

    id: str
    key: str
    function_id: str
    user_id: str
    state: str
    desired: str
    reason: str
    tier: str
    idle_after_seconds: float | None
    quiet_after_seconds: float | None
    created_at: datetime
    last_active_at: datetime
    expires_at: datetime | None
    ended_at: datetime | None
    saved_at: datetime | None
    saved_generation: int
    start: Start | None
    slug: str
    address: str | None
    port_address: str
    reinstall: Reinstall | None = None
    timeout_at: datetime | None = None
    at_timeout: str = "end"
    is_paused: bool = False
    is_hibernated: bool = False
    park: str = "files"
    resumes_on_use: bool = True
    metadata: dict[str, str] = field(default_factory=dict)
    network: Network | None = None
    awake_until: datetime | None = None


@dataclass(frozen=True)
class Change:
    """How a path differs: `what` is added, removed, type, content or attributes."""

    path: str
    what: str
    old_bytes: int | None
    new_bytes: int | None


@dataclass(frozen=True)
class FileDiff:
    """How the text of one file has changed: a unified `diff`. Sizes are None where it is not there."""

    path: str
    old_bytes: int | None
    new_bytes: int | None
    diff: str
    is_binary: bool
    is_truncated: bool


@dataclass(frozen=True)
class Snapshot:
    """A session's files as they were saved, by name. `cause` is asked, turn, before_rewind or published."""

    id: str
    session_id: str
    label: str
    cause: str
    saved_generation: int
    files: int
    total_bytes: int
    is_pinned: bool
    created_at: datetime
    outlives_session: bool = False
    has_memory: bool = False


@dataclass(frozen=True)
class Lag:
    """How far the store is behind a session's files. `state` is saved, pending, failing, on_host or damaged.

    `pending` counts what was written to since the last save; None where nobody counted.
    """

    state: str
    saved_ago_seconds: float | None
    behind_seconds: float
    pending: int | None
    recovery_point_seconds: float | None
    error_code: str


@dataclass(frozen=True)
class Instance:
    instance_id: str
    pid: int
    address: str
    usage: dict[str, float]


@dataclass(frozen=True)
class Sample:
    """What a session used at one moment. `cpu_percent` is of all its CPUs, since the sample before."""

    at: datetime
    cpu_percent: float
    cpus: float
    memory_bytes: int
    cache_bytes: int
    max_memory_bytes: int
    disk_bytes: int
    max_disk_bytes: int


@dataclass(frozen=True)
class App:
    id: str
    name: str
    address: str
    function_id: str
    revision_id: str
    session_id: str
    minimum: int
    maximum: int
    target_concurrency: int
    idle_after_seconds: float
    created_at: datetime


@dataclass(frozen=True)
class AppInstance:
    instance_id: str
    address: str
    is_ready: bool


@dataclass(frozen=True)
class Chat:
    id: str
    session_id: str
    user_id: str
    title: str
    created_at: datetime


@dataclass(frozen=True)
class Turn:
    """`snapshot_id` names the session's files at its end; without one, `snapshot_note` says why."""

    id: str
    chat_id: str
    number: int
    messages: list[dict[str, Any]]
    created_at: datetime
    snapshot_id: str | None = None
    snapshot_note: str | None = None
    rewound_at: datetime | None = None


@dataclass(frozen=True)
class Key:
    """`secret` is there only in the answer that made it."""

    id: str
    name: str
    created_at: datetime
    revoked_at: datetime | None
    secret: str | None = None


@dataclass(frozen=True)
class User:
    id: str
    name: str
    tier: str
    created_at: datetime


@dataclass(frozen=True)
class Port:
    port: int
    loopback_only: bool
    address: str
