"""What Envoy asks about a request, and what the answer tells its cache. Pure."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from dovecote.errors import Failed, NotFound
from dovecote.gateway.affinity import render_spec
from dovecote.gateway.clusters import ASK_HEADER, INTERNAL_HEADERS
from dovecote.model.naming import PREFIX_HEADER, Found, begins_stream, cookie_name, find, is_secure
from dovecote.model.serving import Affinity, Mode

MOST_KEY = 1024  # characters of a cache key; a longer one is asked each time
ASK_PREFIX = "/wake"  # Envoy puts it before the path of the request

_BOX = re.compile(r"(\d{1,5})-([a-z0-9]+)")
_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")

Kind = Literal["box", "function", "app"]


class Headers(Mapping[str, str]):
    """Headers of a request. Names in any case; a header that came twice is joined with a comma."""

    def __init__(self) -> None:
        self._values: dict[str, str] = {}

    def add(self, name: str, value: str) -> None:
        name = name.lower()
        there = self._values.get(name)
        self._values[name] = value if there is None else f"{there},{value}"

    def __getitem__(self, name: str) -> str:
        return self._values[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


@dataclass(frozen=True)
class Ask:
    """What a request wants. `name` is the slug of a sandbox, the name or slug of a function, or the name of an app.

    `path` has its query. `found` is what names the session of a request that was on its way to a remembered
    address: by then it is no longer in the headers. `failed` is an address that could not be reached just now, and
    `given` is the key of the session that the former answer to this very request was about.
    """

    kind: Kind
    host: str
    name: str
    port: int | None
    credential: str
    user: str
    method: str
    path: str
    headers: Mapping[str, str]
    found: Found | None = None
    failed: str | None = None
    given: str | None = None

    def session(self, affinity: Affinity) -> Found | None:
        """What names its session; None where one begins."""
        return self.found or find(affinity, self.method, self.path, self.headers)


@dataclass(frozen=True)
class Answer:
    """`address` is `ip:port`. With `learn` the gateway uses it for this caller until the route's TTL has passed.

    An app's address is never learned. The rest is for functions: `key` and `session_id` are those of the session
    that the address belongs to, `cookie` is what its cookie holds and `cookie_seconds` how long that lasts.
    `is_limited` means that the instance refuses connections beyond its limit, and counts one request in each.
    `is_stranger` means that the caller has shown no key of the function's tenant, so that what it says of its user must
    not reach the instance.
    """

    address: str
    learn: bool = True
    affinity: Affinity | None = None
    key: str | None = None
    session_id: str | None = None
    is_limited: bool = False
    cookie: str | None = None
    cookie_seconds: int = 0
    is_stranger: bool = False

    def name(self, mode: Mode) -> str:
        """How a request of that mode names the session; empty where there is none."""
        return (self.cookie if mode is Mode.COOKIE else self.key) or ""


Resolve = Callable[[Ask], Awaitable[Answer]]


def parse_ask(
    method: str, path: str, headers: Headers, domain: str, *, failed: str | None = None, given: str | None = None
) -> Ask:
    """What the request wants, from its host. Raises NotFound (no_such_address)."""
    authority = headers.get("host", "")
    host = authority.rsplit(":", 1)[0].lower()
    credential, found, user = _fields(headers.get(ASK_HEADER, ""), authority)
    kind, name, port = _parse_host(host, domain)
    visible = Headers()
    for header, value in headers.items():
        if header not in INTERNAL_HEADERS:
            visible.add(header, value)
    path = path.removeprefix(ASK_PREFIX) or "/"
    return Ask(kind, host, name, port, credential, user, method, path, visible, found, failed, given)


def _parse_host(host: str, domain: str) -> tuple[Kind, str, int | None]:
    label, _, rest = host.partition(".")
    if rest == f"box.{domain}":
        match = _BOX.fullmatch(label)
        if match and 0 < int(match[1]) < 65536:
            return "box", match[2], int(match[1])
    elif rest == f"fn.{domain}" and _NAME.fullmatch(label):
        return "function", label, None
    elif rest == f"app.{domain}" and _NAME.fullmatch(label):
        return "app", label, None
    raise NotFound(
        "nothing is at this address",
        code="no_such_address",
        hint="sandboxes are at {port}-{slug}.box, functions at {name}.fn, apps at {name}.app",
    )


def _fields(ask: str, authority: str) -> tuple[str, Found | None, str]:
    """Credential, what names the session, and user, as the Lua cache joins them into its key."""
    if ask in ("", "-", authority):
        return "", None, ""
    fields = ask.split(" ", 4)
    if len(fields) != 5 or fields[0] != authority or fields[2] not in ("-", *Mode):
        raise Failed("a question that is not about its own host", code="internal")
    _, credential, mode, key, user = fields
    found = None if mode == "-" else Found(Mode(mode), key)
    return credential, found, "" if user == "-" else user


def render_note(ask: Ask, answer: Answer) -> str:
    """What the Lua cache is told, or nothing: `<address|-> <spec|-> <session|-> <its key|-> <cookie|-> <flags|-> <cache
    key>`; the cookie is `<name>=<value>` where one is given out.

    Flags: h gives the session's key out in the header, m and s mark ids that an MCP server gives
    out with it, d and s end the session with this request, l sends each request by a connection of its own, p takes off
    what a stranger says of its user.
    """
    authority = ask.headers.get("host", "")
    if ask.kind == "box" and answer.learn:
        return f"{answer.address} - - - - - {authority}"
    affinity = answer.affinity
    if ask.kind != "function" or affinity is None:
        return ""  # an app's instances change and are many: Envoy knows them from a file
    found = ask.session(affinity)
    used = _used(ask, affinity, found, answer)
    user = "-" if affinity.has(Mode.NONE) or not ask.user else ask.user
    cache_key = f"{authority} {ask.credential} {used.mode} {used.key} {user}"
    is_plain = " " not in used.key + ask.credential
    is_known = bool(used.key) or used.mode is Mode.NONE
    flags = _flags(ask, affinity, found, answer)
    is_learned = answer.learn and is_known and is_plain and len(cache_key) <= MOST_KEY and "d" not in flags
    address = answer.address if is_learned else "-"
    spec = render_spec(affinity, answer.cookie_seconds)
    key = (is_plain and answer.key) or "-"
    cookie = _given_cookie(ask, affinity, found, answer) or "-"
    return f"{address} {spec} {answer.session_id or '-'} {key} {cookie} {flags or '-'} {cache_key}"


def _used(ask: Ask, affinity: Affinity, found: Found | None, answer: Answer) -> Found:
    """How the caller's next request will name the session."""
    if found is not None:
        return found if answer.key is None else Found(found.mode, answer.name(found.mode))
    if begins_stream(affinity, ask.method, ask.path):
        return Found(Mode.MCP_SSE, answer.name(Mode.MCP_SSE))
    mode = next((mode for mode in (Mode.HEADER, Mode.COOKIE) if affinity.has(mode)), Mode.MCP_HTTP)
    return Found(mode, answer.name(mode))


def _is_new(found: Found | None, answer: Answer) -> bool:
    return answer.key is not None and (found is None or found.key != answer.name(found.mode))


def _given_cookie(ask: Ask, affinity: Affinity, found: Found | None, answer: Answer) -> str:
    if answer.cookie is None or not affinity.has(Mode.COOKIE):
        return ""
    # One that lasts as long as its session may be idle has to be given out again while the session is used.
    is_renewed = found is not None and found.mode is Mode.COOKIE and affinity.ttl is None
    if not is_renewed and not _is_new(found, answer):
        return ""
    name = cookie_name(is_secure=is_secure(ask.headers), is_by_path=PREFIX_HEADER in ask.headers)
    return f"{name}={answer.cookie}"


def _flags(ask: Ask, affinity: Affinity, found: Found | None, answer: Answer) -> str:
    has_key = answer.key is not None
    is_stateless = found is not None and found.mode is Mode.NONE
    claims = {
        "h": _is_new(found, answer) and affinity.has(Mode.HEADER),
        "m": has_key and affinity.has(Mode.MCP_HTTP) and not is_stateless,
        "s": has_key and found is None and begins_stream(affinity, ask.method, ask.path),
        "d": has_key and found is not None and found.mode is Mode.MCP_HTTP and ask.method == "DELETE",
        "l": answer.is_limited,
        "p": answer.is_stranger,
    }
    return "".join(letter for letter, is_so in claims.items() if is_so)


def needs_taking(ask: Ask, affinity: Affinity | None) -> bool:
    """Whether the request may still carry what only the gateway understands."""
    return affinity is not None and ask.found is None and not set(affinity.modes) <= {Mode.HEADER, Mode.NONE}
