"""Where the server is and which key to show it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from dovecote.sdk._errors import Unauthenticated

DEFAULT_URL = "http://localhost:8080"


@dataclass(frozen=True)
class Access:
    url: str
    api_key: str


def find_access(api_key: str | None, url: str | None) -> Access:
    """Arguments, else DOVECOTE_API_KEY and DOVECOTE_URL, else what the server's first run left in its config directory.

    Raises Unauthenticated (no_key).
    """
    path = Path(os.environ.get("DOVECOTE_CONFIG_DIR", "~/.config/dovecote")).expanduser() / "credentials.json"
    try:
        stored = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        stored = {}
    found_key = api_key or os.environ.get("DOVECOTE_API_KEY") or stored.get("api_key")
    found_url = url or os.environ.get("DOVECOTE_URL") or stored.get("url") or DEFAULT_URL
    if not found_key:
        raise Unauthenticated(
            "no API key", code="no_key", hint=f"set DOVECOTE_API_KEY; the server's first run leaves one in {path}"
        )
    return Access(str(found_url).rstrip("/"), str(found_key))


def socket_address(url: str, path: str, query: Mapping[str, Any] | None = None) -> str:
    """Of a WebSocket of that server; `localhost` needs no resolver."""
    server = httpx.URL(url)
    is_here = server.host == "localhost" or server.host.endswith(".localhost")
    return str(
        server.copy_with(
            scheme="wss" if server.scheme == "https" else "ws",
            host="127.0.0.1" if is_here else server.host,
            path=server.path.rstrip("/") + path,
            params=dict(query or {}),
        )
    )
