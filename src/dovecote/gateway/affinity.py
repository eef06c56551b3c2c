"""Tells `affinity.lua` how the requests of a function name their session. Pure."""

from __future__ import annotations

from dovecote.model.naming import stream_path
from dovecote.model.serving import Affinity, Mode

_LETTERS = {Mode.NONE: "n", Mode.HEADER: "h", Mode.COOKIE: "c", Mode.MCP_SSE: "s", Mode.MCP_HTTP: "m"}


def render_spec(affinity: Affinity, cookie_seconds: int) -> str:
    """What `affinity.lua` reads: `<letters of modes>,<header>,<life of the cookie>,<path of the stream>`."""
    letters = "".join(_LETTERS[mode] for mode in affinity.modes)
    return f"{letters},{affinity.header.lower()},{cookie_seconds},{stream_path(affinity)}"
