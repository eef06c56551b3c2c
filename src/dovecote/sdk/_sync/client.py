"""The client: one connection pool to one server."""

# Generated from _async/client.py by `python -m dovecote.sdk.generate`; change that and run it.

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import httpx

from dovecote.sdk._settings import find_access
from dovecote.sdk._sync.functions import Functions
from dovecote.sdk._sync.invocations import Invocations
from dovecote.sdk._sync.resources import (
    Apps,
    Chats,
    Keys,
    Sessions,
    Users,
)
from dovecote.sdk._sync.templates import Templates
from dovecote.sdk._sync.transport import ANSWER_SECONDS, CONNECT_SECONDS, Via, Wire
from dovecote.sdk._sync.volumes import Volumes


class Dovecote:
    """Use it as a context manager, or call `close`.

    `api_key` and `url` default to DOVECOTE_API_KEY and DOVECOTE_URL, then to what the server's first run left in
    `~/.config/dovecote/credentials.json`.
    """

    def __init__(
        self, api_key: str | None = None, url: str | None = None, *, transport: httpx.BaseTransport | None = None
    ) -> None:
        access = find_access(api_key, url)
        self.url = access.url
        self.api_key = access.api_key
        self._wire = Wire(access, transport)
        self.sessions = Sessions(self._wire)
        self.apps = Apps(self._wire)
        self.functions = Functions(self._wire)
        self.invocations = Invocations(self._wire)
        self.chats = Chats(self._wire)
        self.keys = Keys(self._wire)
        self.users = Users(self._wire)
        self.volumes = Volumes(self._wire)
        self.templates = Templates(self._wire)

    def http_for(self, url: str, *, connections: int = 100) -> httpx.Client:
        """An HTTP client for addresses that this server serves, resolvable here or not. Sends no key. Close it."""
        return httpx.Client(
            base_url=url,
            transport=Via(httpx.URL(self.url), httpx.Limits(max_connections=connections)),
            timeout=httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS),
        )

    def is_ready(self) -> bool:
        response = self._wire.http.get("/readyz")
        return response.status_code == 200

    def openapi(self) -> dict[str, Any]:
        return dict(self._wire.call("GET", "/v1/openapi.json"))

    def close(self) -> None:
        self._wire.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
