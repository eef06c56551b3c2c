"""How a function's callers are served: who stays with one instance, how many share it, what is called at its turns."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum

from dovecote.errors import Invalid
from dovecote.model.ids import parse_header_name

DEFAULT_HEADER = "x-dovecote-session"
DEFAULT_USER = "default"
PUBLIC_USER = "(public)"  # everybody who calls a public function without a key
_WEBHOOK = re.compile(r"https?://[^@\s/?#]+([/?#]\S*)?")
MOST_IN_AN_INSTANCE = 200  # sessions, and requests at once, as Function Compute has it
MOST_INSTANCES = 1000
MOST_RETRIES = 8
LONGEST_AGE = timedelta(hours=24)
SHORTEST_TTL, LONGEST_TTL = timedelta(seconds=1), timedelta(days=365)
LONGEST_HOOK = {
    "initialize": timedelta(seconds=300),
    "pre_freeze": timedelta(seconds=90),
    "pre_stop": timedelta(seconds=90),
}


class Mode(StrEnum):
    """What in a request names its session."""

    NONE = "none"  # nothing: any instance will do
    HEADER = "header"  # a header with an id that the client chooses, or that the gateway made
    COOKIE = "cookie"  # a cookie with an id that the gateway made
    MCP_SSE = "mcp-sse"  # the endpoint that an MCP server of 2024 names in its stream
    MCP_HTTP = "mcp-http"  # `Mcp-Session-Id`, of MCP 2025


@dataclass(frozen=True)
class Affinity:
    """How a function's requests find their session, and how long that lasts."""

    modes: tuple[Mode, ...] = (Mode.HEADER,)
    header: str = DEFAULT_HEADER
    sse_path: str = "/sse"
    ttl: timedelta | None = None  # of a session, from its creation
    idle_after: timedelta | None = None  # of a session; None leaves it to its user's tier
    refuses_reuse: bool = False  # an id whose session has ended is refused, instead of beginning anew
    strict_ids: bool = False  # ids of clients as Function Compute has them: at most 64 of A-Z a-z 0-9 _ -

    def has(self, mode: Mode) -> bool:
        return mode in self.modes


@dataclass(frozen=True)
class Sharing:
    """How much goes into one instance, and how many there may be; 0 for no limit."""

    sessions: int = 1  # with one, a session has its instance and its files for itself
    requests: int = 0  # at once, of all sessions of the instance
    instances: int = 0

    @property
    def has_seats(self) -> bool:
        """Whether a session holds a seat in an instance that others are in too, and has no files of its own."""
        return self.sessions > 1


@dataclass(frozen=True)
class Hook:
    """Called inside an instance: a GET or POST to a path of its server, or a shell command."""

    path: str = ""
    command: str = ""
    timeout: timedelta = timedelta(seconds=30)


@dataclass(frozen=True)
class Hooks:
    """`initialize` before the first request, `pre_freeze` and `pre_stop` before these happen."""

    initialize: Hook | None = None
    pre_freeze: Hook | None = None
    pre_stop: Hook | None = None


class To(StrEnum):
    """Where the result of an asynchronous call may go."""

    WEBHOOK = "webhook"
    FUNCTION = "function"
    QUEUE = "queue"


@dataclass(frozen=True)
class Destination:
    """`target` is a URL, the name of a function of the same tenant, or a subject or stream."""

    to: To
    target: str


@dataclass(frozen=True)
class Invoking:
    """How asynchronous calls of a function are made. `at_once` is of the whole function; 0 for no limit."""

    retries: int = 3
    max_age: timedelta = LONGEST_AGE
    at_once: int = 0
    on_success: Destination | None = None
    on_failure: Destination | None = None


def parse_affinity(affinity: Affinity) -> Affinity:
    """Itself, the header's name in lower case. Raises Invalid."""
    modes = affinity.modes
    if not modes or len(set(modes)) < len(modes):
        raise Invalid("name each affinity mode once", hint="one or more of " + ", ".join(Mode))
    if Mode.NONE in modes and len(modes) > 1:
        raise Invalid("`none` goes with no other affinity mode")
    parse_header_name(affinity.header)
    if affinity.header.lower() in RESERVED_HEADERS:
        raise Invalid(f"{affinity.header} has another meaning already", hint="name a header of your own")
    if not affinity.sse_path.startswith("/") or len(affinity.sse_path) > 200 or not affinity.sse_path.isprintable():
        raise Invalid(f"not a path: {affinity.sse_path[:60]!r}", hint="it starts with a slash, like /sse")
    if set(affinity.sse_path) & set(' ?#%"\\'):
        raise Invalid(f"not a plain path: {affinity.sse_path[:60]!r}", hint="without ? # % quotes and spaces")
    for name in ("ttl", "idle_after"):
        value = getattr(affinity, name)
        if value is not None and not SHORTEST_TTL <= value <= LONGEST_TTL:
            raise Invalid(f"{name} must be from a second to a year")
    return replace(affinity, header=affinity.header.lower())


RESERVED_HEADERS = frozenset(
    {
        *("authorization", "connection", "content-length", "content-type", "cookie", "idempotency-key"),
        *("mcp-session-id", "mcp-protocol-version", "transfer-encoding", "upgrade", "x-dovecote-invoke"),
        *("x-dovecote-key", "x-dovecote-user", "x-request-id"),
    }
)


def parse_sharing(sharing: Sharing) -> Sharing:
    """Itself. Raises Invalid."""
    if not 1 <= sharing.sessions <= MOST_IN_AN_INSTANCE:
        raise Invalid(f"an instance takes 1 to {MOST_IN_AN_INSTANCE} sessions, not {sharing.sessions}")
    if not 0 <= sharing.requests <= MOST_IN_AN_INSTANCE:
        raise Invalid(f"an instance takes 1 to {MOST_IN_AN_INSTANCE} requests at once, or 0 for as many as come")
    if not 0 <= sharing.instances <= MOST_INSTANCES:
        raise Invalid(f"a function has at most {MOST_INSTANCES} instances, or 0 for no limit of its own")
    return sharing


def parse_hooks(hooks: Hooks) -> Hooks:
    """Itself. Raises Invalid."""
    for name, longest in LONGEST_HOOK.items():
        hook: Hook | None = getattr(hooks, name)
        if hook is None:
            continue
        if bool(hook.path) == bool(hook.command):
            raise Invalid(f"the hook {name} is either a path or a command")
        if hook.path and not (hook.path.startswith("/") and hook.path.isprintable() and len(hook.path) <= 200):
            raise Invalid(f"not a path: {hook.path[:60]!r}", hint="it starts with a slash, like /initialize")
        if len(hook.command) > 16_384 or "\0" in hook.command:
            raise Invalid(f"the command of the hook {name} is too long or has a NUL")
        if not timedelta(0) < hook.timeout <= longest:
            raise Invalid(f"the hook {name} may take up to {longest.total_seconds():.0f} seconds")
    return hooks


def parse_invoking(invoking: Invoking) -> Invoking:
    """Itself. Raises Invalid."""
    if not 0 <= invoking.retries <= MOST_RETRIES:
        raise Invalid(f"0 to {MOST_RETRIES} retries")
    if not timedelta(0) < invoking.max_age <= LONGEST_AGE:
        raise Invalid("an asynchronous call is tried for at most 24 hours")
    if not 0 <= invoking.at_once <= MOST_IN_AN_INSTANCE * MOST_INSTANCES:
        raise Invalid("a limit of calls at once is a number, or 0 for none")
    for destination in (invoking.on_success, invoking.on_failure):
        if destination is not None and not 0 < len(destination.target) <= 2000:
            raise Invalid("a destination has a target of 1 to 2000 characters")
        if destination is not None and destination.to is To.WEBHOOK and not _WEBHOOK.fullmatch(destination.target):
            raise Invalid(
                "a webhook is a URL of http or https", hint="https://example.com/done, without user and password"
            )
    return invoking
