"""Finds what in a request names its session, and takes out of it what only we understand. Pure.

`affinity.lua` does the same for warm requests.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

from dovecote.model.serving import Affinity, Mode

COOKIE = "dovecote-session"
PROTO_HEADER, PREFIX_HEADER = "x-forwarded-proto", "x-forwarded-prefix"
MCP_HEADER = "mcp-session-id"
# Revisions of MCP from this one on know no sessions.
SESSIONLESS_SINCE = "2026-07-28"
# The session of a user for requests that name none and may begin none: it is one for all of them.
STATELESS_KEY = "stateless"

_REVISION = re.compile(r"\d{4}-\d\d-\d\d")
_MARKED = re.compile(r"([A-Za-z0-9_:@~-]{1,200})\..*", re.DOTALL)
_QUERY = re.compile(r"[?&]([^=&?]+)=([^&]*)")
_IN_QUERY = frozenset({"sessionId", "session_id", COOKIE})


@dataclass(frozen=True)
class Found:
    """`key` is that of the session, or all that its cookie holds; empty where the request names one in a way that we
    never gave out."""

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
    if affinity.has(Mode.COOKIE) and (key := _cookie(headers)):
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
    return affinity.has(Mode.MCP_SSE) and method == "GET" and path.partition("?")[0] == stream_path(affinity)


def _is_sessionless(headers: Mapping[str, str]) -> bool:
    revision = headers.get("mcp-protocol-version", "")
    return bool(_REVISION.fullmatch(revision)) and revision >= SESSIONLESS_SINCE


def taken(found: Found | None, path: str, headers: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """Path and headers as its server knows them. Of cookies nothing is taken."""
    left = dict(headers)
    if found is not None and found.key and found.mode is Mode.MCP_HTTP:
        left[MCP_HEADER] = left[MCP_HEADER].partition(".")[2]
    if found is not None and found.mode is Mode.MCP_SSE:
        path = _without_mark(path)
    return path, left


def marked(key: str, theirs: str) -> str:
    """An id that a server gave out, with our key at its head: `{key}.{theirs}`, with `~` for each dot of the key."""
    return f"{key.replace('.', '~')}.{theirs}"


def _mark(value: str) -> str:
    """The key that `marked` has put there; empty where it has not."""
    match = _MARKED.fullmatch(value)
    return match[1].replace("~", ".") if match else ""


def _in_query(path: str) -> str:
    match = _marked_parameter(path)
    return _mark(match[2]) if match else ""


def _marked_parameter(path: str) -> re.Match[str] | None:
    return next((each for each in _QUERY.finditer(path) if each[1] in _IN_QUERY and _mark(each[2])), None)


def _without_mark(path: str) -> str:
    match = _marked_parameter(path)
    if match is None:
        return path
    before, after = path[: match.start()], path[match.end() :]
    if match[1] != COOKIE:
        return f"{before}{match[0][0]}{match[1]}={match[2].partition('.')[2]}{after}"
    # It is ours as a whole; what follows takes its place.
    return before + (match[0][0] + after[1:] if match[0][0] == "?" and after else after)


def cookie_name(*, is_secure: bool, is_by_path: bool) -> str:
    """By TLS with a prefix, which browsers keep for who has the name: no neighbour on the same domain can plant it."""
    if not is_secure:
        return COOKIE
    return f"__Secure-{COOKIE}" if is_by_path else f"__Host-{COOKIE}"


def is_secure(headers: Mapping[str, str]) -> bool:
    """Whether the request came by TLS, as the gateway knows it."""
    return headers.get(PROTO_HEADER) == "https"


def _cookie(headers: Mapping[str, str]) -> str:
    """By TLS the plain name is not looked at; without it, browsers send no other."""
    kept = cookie_name(is_secure=True, is_by_path=PREFIX_HEADER in headers)
    names = (kept,) if is_secure(headers) else (kept, COOKIE)
    pairs = [pair.strip(" \t").partition("=") for pair in headers.get("cookie", "").split(";")]
    return next((value for wanted in names for name, _, value in pairs if name == wanted and value), "")


def stream_path(affinity: Affinity) -> str:
    return quote(affinity.sse_path, safe="/:@!$&'()*+,;=~-._")
