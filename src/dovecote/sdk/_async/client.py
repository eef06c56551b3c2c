"""The client: one connection pool to one server."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import httpx

from dovecote.sdk._async.functions import AsyncFunctions
from dovecote.sdk._async.invocations import AsyncInvocations
from dovecote.sdk._async.resources import (
    AsyncApps,
    AsyncChats,
    AsyncKeys,
    AsyncSessions,
    AsyncUsers,
)
from dovecote.sdk._async.templates import AsyncTemplates
from dovecote.sdk._async.transport import ANSWER_SECONDS, CONNECT_SECONDS, AsyncVia, AsyncWire
from dovecote.sdk._async.volumes import AsyncVolumes
from dovecote.sdk._settings import find_access


class AsyncDovecote:
    """Use it as a context manager, or call `aclose`.

    `api_key` and `url` default to DOVECOTE_API_KEY and DOVECOTE_URL, then to what the server's first run left in
    `~/.config/dovecote/credentials.json`.
    """

    def __init__(
        self, api_key: str | None = None, url: str | None = None, *, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        access = find_access(api_key, url)
        self.url = access.url
        self.api_key = access.api_key
        self._wire = AsyncWire(access, transport)
        self.sessions = AsyncSessions(self._wire)
        self.apps = AsyncApps(self._wire)
        self.functions = AsyncFunctions(self._wire)
        self.invocations = AsyncInvocations(self._wire)
        self.chats = AsyncChats(self._wire)
        self.keys = AsyncKeys(self._wire)
        self.users = AsyncUsers(self._wire)
        self.volumes = AsyncVolumes(self._wire)
        self.templates = AsyncTemplates(self._wire)

    def http_for(self, url: str, *, connections: int = 100) -> httpx.AsyncClient:
        """An HTTP client for addresses that this server serves, resolvable here or not. Sends no key. Close it."""
        return httpx.AsyncClient(
            base_url=url,
            transport=AsyncVia(httpx.URL(self.url), httpx.Limits(max_connections=connections)),
            timeout=httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS),
        )

    async def is_ready(self) -> bool:
        response = await self._wire.http.get("/readyz")
        return response.status_code == 200

    async def openapi(self) -> dict[str, Any]:
        return dict(await self._wire.call("GET", "/v1/openapi.json"))

    async def aclose(self) -> None:
        await self._wire.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
