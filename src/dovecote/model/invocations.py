"""An asynchronous call of a function: what was asked, how far it is, what came of it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from dovecote.errors import Invalid
from dovecote.model.serving import Destination

MOST_BODY = 256 << 10  # bytes of a request, and of what is kept of a response
MOST_HEADERS = 16 << 10  # characters of them all
MOST_PATH = 8192
LONGEST_DELAY = timedelta(hours=24)
LONGEST_TIMEOUT = timedelta(hours=24)
DEFAULT_TIMEOUT = timedelta(seconds=600)
MOST_HOPS = 5  # from one function to the next, by destinations

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,200}")
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,200}")
_VALUE = re.compile(r"[\x20-\x7e\x80-\xff\t]*")
_PATH = re.compile(r"/[\x21-\x7e]*")

# Of a connection, or of one hop: the attempt makes its own.
OF_A_CONNECTION = frozenset(
    {
        *("connection", "content-length", "expect", "host", "keep-alive", "proxy-connection", "te", "trailer"),
        *("transfer-encoding", "upgrade", "x-envoy-expected-rq-timeout-ms", "x-request-id"),
    }
)
# Credentials are not written down.
CREDENTIALS = frozenset({"authorization", "cookie", "proxy-authorization", "x-dovecote-key"})


class InvocationState(StrEnum):
    """How far an asynchronous call is. All but the first two are final."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    EXPIRED = "expired"  # it could not be made within its age
    CANCELLED = "cancelled"


class Delivery(StrEnum):
    """What became of telling the destination."""

    NONE = "none"  # nobody is to be told, or nothing has come of the call yet
    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


@dataclass(frozen=True)
class Invocation:
    """One asynchronous call. It is its own place in the queue: `due_at` is when it is to be looked at next, or None.

    While it runs that is the end of its lease; once it has an outcome, when its destination is to be told.
    Bodies are base64. `attempts` counts those that may have reached the function, `waits` those that found no place.
    """

    id: str
    tenant_id: str
    function_id: str
    function: str  # its name
    user: str  # the tenant's own id for that person
    key: str | None  # of the session; None where the function has none
    is_key_ours: bool  # whether only we give such keys out, so that its session must be there
    method: str
    path: str  # with the query
    headers: dict[str, str]
    body: str
    state: InvocationState
    created_at: datetime
    deadline: datetime
    due_at: datetime | None
    timeout: timedelta = DEFAULT_TIMEOUT
    retries: int = 0
    attempts: int = 0
    waits: int = 0
    session_id: str | None = None
    error_code: str = ""
    error: str = ""  # of the last attempt
    status: int | None = None
    response_headers: dict[str, str] = field(default_factory=dict)
    response_body: str = ""
    is_truncated: bool = False  # there was more of the response
    on_success: Destination | None = None
    on_failure: Destination | None = None
    delivery: Delivery = Delivery.NONE
    deliveries: int = 0  # attempts
    delivery_error: str = ""
    idempotency_key: str | None = None
    hops: int = 0  # destinations that it came through
    replay_of: str | None = None
    finished_at: datetime | None = None
    generation: int = 0

    @property
    def is_final(self) -> bool:
        return self.state not in (InvocationState.QUEUED, InvocationState.RUNNING)

    @property
    def destination(self) -> Destination | None:
        """Who is to be told what came of it. A cancelled call has nothing to tell."""
        if self.state is InvocationState.SUCCEEDED:
            return self.on_success
        return self.on_failure if self.state in (InvocationState.FAILED, InvocationState.EXPIRED) else None


def parse_method(text: str) -> str:
    """Raises Invalid."""
    if text.upper() not in METHODS:
        raise Invalid(f"not a method: {text[:20]!r}", hint="one of " + ", ".join(METHODS))
    return text.upper()


def parse_path(text: str) -> str:
    """A path, with its query if any, as it stands in a request. Raises Invalid."""
    if not _PATH.fullmatch(text) or len(text) > MOST_PATH or text.startswith("//"):
        raise Invalid(
            f"not a path: {text[:60]!r}",
            hint=f"it starts with one slash, is encoded, has at most {MOST_PATH} characters",
        )
    return text


def joined(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """By name in lower case; one that comes again is joined, cookies as browsers do."""
    headers: dict[str, str] = {}
    for name, value in pairs:
        name = name.lower()
        headers[name] = f"{headers[name]}{'; ' if name == 'cookie' else ', '}{value}" if name in headers else value
    return headers


def parse_headers(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Those that may be kept and sent on, names in lower case. Raises Invalid, also for too many.

    What belongs to a connection, credentials, and what speaks to Dovecote is left out.
    """
    kept: dict[str, str] = {}
    for name, value in pairs:
        name = name.lower()
        if not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
            raise Invalid(f"not a header: {name[:60]!r}", hint="values are printable Latin-1")
        if name in OF_A_CONNECTION or name in CREDENTIALS or name.startswith(("x-dovecote-", "x-gw-")):
            continue
        kept[name] = f"{kept[name]}, {value}" if name in kept else value
    if sum(len(name) + len(value) for name, value in kept.items()) > MOST_HEADERS:
        raise Invalid("the headers are too large", code="too_large", hint=f"at most {MOST_HEADERS >> 10} kB")
    return kept


def parse_body(content: bytes) -> bytes:
    """Itself. Raises Invalid (too_large)."""
    if len(content) > MOST_BODY:
        raise too_large()
    return content


def too_large() -> Invalid:
    return Invalid(
        f"the body of an asynchronous call is over {MOST_BODY >> 10} kB",
        code="too_large",
        hint="put the data into a volume or a bucket and send its name",
    )


def parse_delay(delay: timedelta) -> timedelta:
    """Itself. Raises Invalid."""
    if not timedelta(0) <= delay <= LONGEST_DELAY:
        raise Invalid("a call can be delayed by 0 seconds to 24 hours")
    return delay


def parse_timeout(timeout: timedelta) -> timedelta:
    """Itself. Raises Invalid."""
    if not timedelta(0) < timeout <= LONGEST_TIMEOUT:
        raise Invalid("an attempt may take more than 0 seconds, up to 24 hours")
    return timeout


def parse_idempotency_key(text: str) -> str:
    """Raises Invalid."""
    if not _IDEMPOTENCY_KEY.fullmatch(text):
        raise Invalid(f"not an idempotency key: {text[:60]!r}", hint="1 to 200 visible ASCII characters")
    return text
