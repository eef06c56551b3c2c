"""Finds what in a request names its session. Pure; `affinity.lua` finds the same for warm requests."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

from dovecote.model.serving import Affinity, Mode

COOKIE = "dovecote-session"
MCP_HEADER = "mcp-session-id"
# Revisions of MCP from this one on know no sessions.
SESSIONLESS_SINCE = "2026-07-28"
# The session of a user for requests that name none and may begin none: it is one for all of them.
STATELESS_KEY = "stateless"

_REVISION = re.compile(r"\d{4}-\d\d-\d\d")
_MARKED = re.compile(r"([A-Za-z0-9_:@~-]{1,200})\..*", re.DOTALL)
_QUERY = re.compile(r"[?&]([^=&?]+)=([^&]*)")
_IN_QUERY = frozenset({"sessionId", "session_id", COOKIE})
_LETTERS = {Mode.NONE: "n", Mode.HEADER: "h", Mode.COOKIE: "c", Mode.MCP_SSE: "s", Mode.MCP_HTTP: "m"}


@dataclass(frozen=True)
class Found:
    """`key` is that of the session; empty where the request names one in a way that we never gave out."""

    mode: Mode
    key: str

    @property
    def is_made_here(self) -> bool:
        """Only we give such keys out, so one that is not known is nobody's."""
        return self.mode not in (Mode.HEADER, Mode.NONE)


def find(affinity: Affinity, method: str, path: str, headers: Mapping[str, str]) -> Found | None:
    """None means that a session begins. `headers` have names in lower case; `path` has its query."""
    if affinity.has(Mode.NONE):
        return Found(Mode.NONE, "")
    if affinity.has(Mode.MCP_HTTP) and MCP_HEADER in headers:
        return Found(Mode.MCP_HTTP, _mark(headers[MCP_HEADER]))
    if affinity.has(Mode.MCP_SSE) and method == "POST" and (key := _in_query(path)):
        return Found(Mode.MCP_SSE, key)
    if affinity.has(Mode.HEADER) and (key := headers.get(affinity.header, "")):
        return Found(Mode.HEADER, key)
    if affinity.has(Mode.COOKIE) and (key := _cookie(headers.get("cookie", ""))):
        return Found(Mode.COOKIE, key)
    if _begins(affinity, method, path, headers):
        return None
    return Found(Mode.NONE, STATELESS_KEY)


def _begins(affinity: Affinity, method: str, path: str, headers: Mapping[str, str]) -> bool:
    """A client that could not come back to a session is given none of its own."""
    if affinity.has(Mode.HEADER) or affinity.has(Mode.COOKIE) or begins_stream(affinity, method, path):
        return True
    return affinity.has(Mode.MCP_HTTP) and method == "POST" and not _is_sessionless(headers)


def begins_stream(affinity: Affinity, method: str, path: str) -> bool:
    """Whether it asks for the event stream of an MCP server of 2024."""
    return affinity.has(Mode.MCP_SSE) and method == "GET" and path.partition("?")[0] == _path(affinity)


def _is_sessionless(headers: Mapping[str, str]) -> bool:
    revision = headers.get("mcp-protocol-version", "")
    return bool(_REVISION.fullmatch(revision)) and revision >= SESSIONLESS_SINCE


def _mark(value: str) -> str:
    """Our key at the head of an id that a server gave out: `{key}.{theirs}`, with `~` for each dot of the key."""
    match = _MARKED.fullmatch(value)
    return match[1].replace("~", ".") if match else ""


def _in_query(path: str) -> str:
    for name, value in _QUERY.findall(path):
        if name in _IN_QUERY and (key := _mark(value)):
            return key
    return ""


def _cookie(header: str) -> str:
    for pair in header.split(";"):
        name, _, value = pair.strip(" \t").partition("=")
        if name == COOKIE:
            return value
    return ""


def _path(affinity: Affinity) -> str:
    return quote(affinity.sse_path, safe="/:@!$&'()*+,;=~-._")


def render_spec(affinity: Affinity, cookie_seconds: int) -> str:
    """What `affinity.lua` reads: `<letters of modes>,<header>,<life of the cookie>,<path of the stream>`."""
    letters = "".join(_LETTERS[mode] for mode in affinity.modes)
    return f"{letters},{affinity.header.lower()},{cookie_seconds},{_path(affinity)}"
