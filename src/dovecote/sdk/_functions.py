"""What the client says and is told of functions. Times are seconds."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Final

from dovecote.sdk._shapes import Mount, Network, Printed, Start, Step


class Kept(Enum):
    """In a change: it stays as it is, where None says that there shall be none."""

    KEPT = "kept"


KEPT: Final = Kept.KEPT


@dataclass(frozen=True)
class Affinity:
    """How a request finds its session: `modes` are none, header, cookie, mcp-sse and mcp-http.

    `ttl` ends a session so long after its creation; `idle_after` None leaves that to its user's tier. With
    `refuses_reuse` an id whose session has ended is refused.
    """

    modes: list[str] = field(default_factory=lambda: ["header"])
    header: str = "x-dovecote-session"
    sse_path: str = "/sse"
    ttl: float | None = None
    idle_after: float | None = None
    refuses_reuse: bool = False
    strict_ids: bool = False


@dataclass(frozen=True)
class Sharing:
    """Sessions and requests at once in an instance, and instances of the function; 0 is no limit."""

    sessions: int = 1
    requests: int = 0
    instances: int = 0


@dataclass(frozen=True)
class Hook:
    """A path of the instance's server, or a shell command."""

    path: str = ""
    command: str = ""
    timeout: float = 30.0


@dataclass(frozen=True)
class Hooks:
    initialize: Hook | None = None
    pre_freeze: Hook | None = None
    pre_stop: Hook | None = None


@dataclass(frozen=True)
class Destination:
    """`to` is webhook, function or queue."""

    to: str
    target: str


@dataclass(frozen=True)
class Invoking:
    """How asynchronous calls are made; `at_once` 0 is no limit."""

    retries: int = 3
    max_age: float = 86400.0
    at_once: int = 0
    on_success: Destination | None = None
    on_failure: Destination | None = None


@dataclass(frozen=True)
class Rules:
    """What sessions do not save, as patterns of gitignore; `keep` wins."""

    leave_out: list[str] = field(default_factory=list)
    keep: list[str] = field(default_factory=list)
    reinstall: str | None = None


@dataclass(frozen=True)
class Revision:
    """What a function runs. `template` is a name, `template_digest` what it meant when the revision was made."""

    id: str
    number: int
    is_current: bool
    template: str
    template_digest: str
    spec: str
    level: str
    network: Network
    env: dict[str, str]
    start: Start | None
    mounts: list[Mount]
    rules: Rules
    sharing: Sharing
    hooks: Hooks
    created_at: datetime


DeployEvent = Step | Printed | Revision


@dataclass(frozen=True)
class Function:
    """Called at `address` with a key, at `public_address` by anybody if it is public."""

    id: str
    name: str
    address: str
    path_address: str
    public_address: str | None
    public: bool
    affinity: Affinity
    affinity_header: str
    invoking: Invoking
    revision_id: str
    revision: Revision
    created_at: datetime
