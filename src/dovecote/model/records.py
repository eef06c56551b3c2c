"""The records that Dovecote keeps. Each has its tenant; what changes has a generation for compare-and-swap."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from dovecote.model.past import Past
from dovecote.model.rules import Reinstall, SaveRules
from dovecote.model.serving import Affinity, Hooks, Invoking, Mode, Sharing
from dovecote.model.sizes import NetworkPolicy
from dovecote.model.states import AtTimeout, Desired, Park, SessionState, SnapshotCause, TemplateState
from dovecote.model.trees import Inside
from dovecote.model.volumes import Mount


@dataclass(frozen=True)
class Start:
    """How the server of a session or an app is started: a shell command, and the port that it opens, or 0 for none.

    With `argv` those words are run as they are, without a shell. `cwd` empty is where the template's commands start.
    `ready` is a shell command that ends with 0 once a server without a port is ready.
    """

    command: str
    port: int
    cwd: str = ""
    env: dict[str, str] = field(default_factory=dict)
    argv: tuple[str, ...] = ()
    ready: str = ""


@dataclass(frozen=True)
class Tenant:
    """`webhook_secret` signs what its webhooks are told; "" until it is first needed.

    The one before it signs too until `webhook_secret_before_until`, so that receivers can change over.
    """

    id: str
    name: str
    created_at: datetime
    webhook_secret: str = ""
    webhook_secret_before: str = ""
    webhook_secret_before_until: datetime | None = None
    generation: int = 0


@dataclass(frozen=True)
class User:
    """An end user of a tenant's product. `name` is the tenant's own id for that person."""

    id: str
    tenant_id: str
    name: str
    tier: str
    created_at: datetime
    generation: int = 0


@dataclass(frozen=True)
class ApiKey:
    """`digest` is blake3 of the secret in hex: the secret itself is shown once and not kept."""

    id: str
    tenant_id: str
    digest: str
    name: str
    created_at: datetime
    revoked_at: datetime | None = None
    generation: int = 0


@dataclass(frozen=True)
class Function:
    """A named workload. What it runs is its current revision.

    `slug` is its unguessable name in addresses; a public one needs no key where it is called by that.
    """

    id: str
    tenant_id: str
    name: str
    revision_id: str
    created_at: datetime
    slug: str
    affinity: Affinity = Affinity()
    invoking: Invoking = Invoking()
    is_public: bool = False
    generation: int = 0

    @property
    def has_sessions(self) -> bool:
        return not self.affinity.has(Mode.NONE)

    def is_shared(self, revision: Revision) -> bool:
        """Whether several callers are in one instance, whose files are nobody's own."""
        return not self.has_sessions or revision.sharing.has_seats


@dataclass(frozen=True)
class Revision:
    """What a function runs; immutable, hence without a generation that moves."""

    id: str
    tenant_id: str
    function_id: str
    number: int
    template: str  # digest of the template's tree
    template_name: str
    tree: str | None  # digest of a delta over the template, for apps
    spec: str
    level: str  # isolation level: crun, runc, ...
    network: NetworkPolicy
    start: Start | None
    env: dict[str, str]
    created_at: datetime
    mounts: tuple[Mount, ...] = ()
    rules: SaveRules = SaveRules()
    sharing: Sharing = Sharing()
    hooks: Hooks = Hooks()
    pinned: Inside | None = None  # None in rows of earlier versions; `Functions.revision` puts in what they ran
    generation: int = 0

    @property
    def inside(self) -> Inside:
        """What the pinned template is like, whatever its name means by now."""
        assert self.pinned is not None, self.id
        return self.pinned


@dataclass(frozen=True)
class Template:
    """What functions of a tenant may start from, by name.

    `digest` is None until it was ready once; while a name is made anew, and when that fails, it stays what it was.
    Revisions pin the digest, so they neither see a template change nor mind when it is removed.
    """

    id: str
    tenant_id: str
    name: str
    state: TemplateState
    source: str  # a reference, or `archive` or `build`
    created_at: datetime
    updated_at: datetime
    digest: str | None = None  # of its tree
    source_digest: str = ""  # sha256 of the manifest of its image
    pinned: Inside | None = None
    start: Start | None = None  # of functions that name none
    files: int = 0
    total_bytes: int = 0
    error_code: str = ""
    reason: str = ""  # why making it failed
    build_id: str = ""  # of the making that it is the result of, or that is under way; a UUID
    spec: str = ""  # of sandboxes that name none; "" leaves it to their function
    generation: int = 0


@dataclass(frozen=True)
class Session:
    """The tie between a caller and one instance, and the name of its workspace.

    `(tenant_id, user_id, function_id, key)` is unique among sessions that have not ended. `slug` is its unguessable
    name in addresses. `tree` is the last tree that was saved; `epoch` grows with each new owner of the workspace.
    """

    id: str
    tenant_id: str
    user_id: str
    function_id: str
    revision_id: str
    key: str
    slug: str
    state: SessionState
    desired: Desired
    created_at: datetime
    last_active_at: datetime
    tier: str
    idle_after: timedelta | None = None  # overrides the tier's
    quiet_after: timedelta | None = None  # overrides the setting
    expires_at: datetime | None = None
    env: dict[str, str] = field(default_factory=dict)
    start: Start | None = None
    host_id: str | None = None
    instance_id: str | None = None
    tree: str | None = None
    saved_generation: int = 0
    saved_at: datetime | None = None
    epoch: int = 0
    reason: str = ""  # why it is in this state, for a person: "idle for 5 min"
    ended_at: datetime | None = None
    mounts: tuple[Mount, ...] = ()  # of its own, besides those of its revision
    reinstall: Reinstall | None = None  # of dependencies that rules had left out, at the last restoring
    park: Park = Park.FILES
    memory: str | None = None  # tree of its processes as saved with `tree`; None once it has gone on from there
    live_marker: str = "live"  # the session's own id once ended, so that the key becomes free again
    metadata: dict[str, str] = field(default_factory=dict)  # the client's own words, to find it by
    timeout_at: datetime | None = None  # moved by its client, taken away by a pause
    at_timeout: AtTimeout = AtTimeout.END
    resumes_on_use: bool = True  # whether any use of it ends a pause, or only being asked to
    token: str = ""  # lets its holder act inside this session alone; "" in none
    needs_token: bool = True  # where a client names it by its slug: whether that alone will do
    network: NetworkPolicy | None = None  # overrides its revision's
    awake_until: datetime | None = None  # a lease: it is neither frozen nor parked before
    past: Past = Past()
    generation: int = 0

    @property
    def is_hibernated(self) -> bool:
        """Its processes go on where they were when it wakes."""
        return self.memory is not None

    @property
    def is_paused(self) -> bool:
        """Somebody said that it should rest, whatever it is that holds its files and memory meanwhile."""
        return self.desired is Desired.PARKED


@dataclass(frozen=True)
class App:
    """A published project: a function reached through a domain, on as many instances as its visitors need."""

    id: str
    tenant_id: str
    name: str  # unique in the installation: it is a host name
    function_id: str
    revision_id: str
    source_session_id: str
    minimum: int
    maximum: int
    target_concurrency: int
    idle_after: timedelta
    created_at: datetime
    removed_at: datetime | None = None
    generation: int = 0


@dataclass(frozen=True)
class Chat:
    """A conversation with an agent; its session holds the files."""

    id: str
    tenant_id: str
    user_id: str
    session_id: str
    title: str
    created_at: datetime
    generation: int = 0


@dataclass(frozen=True)
class Turn:
    """One exchange of a chat. `messages` are the provider-neutral messages, as the agent wrote them.

    `snapshot_id` names the session's files at its end; without one, `snapshot_note` says why.
    """

    id: str
    tenant_id: str
    chat_id: str
    number: int
    messages: list[dict[str, Any]]
    created_at: datetime
    snapshot_id: str | None = None
    snapshot_note: str | None = None
    rewound_at: datetime | None = None  # the chat went back to before it
    generation: int = 0


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint of a session that can be named: files are `tree` over `template`, processes are `memory` if any."""

    id: str
    tenant_id: str
    session_id: str
    label: str
    cause: SnapshotCause
    template: str
    tree: str
    saved_generation: int  # of the session's saves; what it was when the snapshot was taken
    files: int
    total_bytes: int
    created_at: datetime
    is_pinned: bool = False  # kept whatever the tier says
    outlives_session: bool = False  # kept after the end of its session; pinned then
    memory: str | None = None  # tree of the processes as they were with these files
    generation: int = 0


@dataclass(frozen=True)
class Volume:
    """Files that outlive instances and may be shared by them, with a hard limit; one user's, or the tenant's."""

    id: str
    tenant_id: str
    name: str
    user_id: str | None
    host_id: str
    max_bytes: int
    created_at: datetime
    generation: int = 0


@dataclass(frozen=True)
class PathLimit:
    """What a path in a volume may hold. Not settled: its host may not have it yet, or not any more.

    `is_lifted`: it is about to go, as soon as its host has lifted it.
    """

    id: str
    tenant_id: str
    volume_id: str
    path: str
    max_bytes: int
    created_at: datetime
    is_settled: bool = False
    is_lifted: bool = False
    generation: int = 0
