"""Reads Envoy's counters through its admin socket."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from dovecote.errors import Failed

TIMEOUT = 2.0  # seconds
_APP = re.compile(r"cluster\.app/([a-z0-9-]+)/instances\.upstream_rq_(active|total)")


@dataclass(frozen=True)
class Load:
    """Requests of one app. `active` are in flight at its instances, and `waiting` are held until one is ready.

    `total` counts all that ever went to an instance since Envoy started: it falls back when Envoy is started anew.
    """

    active: int
    total: int
    waiting: int = 0


class Admin:
    """Envoy's admin interface. Raises Failed (gateway_unreachable)."""

    def __init__(self, socket: Path) -> None:
        self._client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=str(socket)), base_url="http://envoy", timeout=TIMEOUT
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def is_live(self) -> bool:
        try:
            return (await self._client.get("/ready")).status_code == 200
        except httpx.HTTPError:
            return False

    async def drain(self) -> None:
        """No new connections, and an end to those that are kept open between requests."""
        await self._call("POST", "/drain_listeners", {"graceful": "", "skip_exit": ""})

    async def counters(self, pattern: str) -> dict[str, int]:
        text = await self._call("GET", "/stats", {"filter": pattern})
        return parse_counters(text)

    async def _call(self, method: str, path: str, query: Mapping[str, str]) -> str:
        try:
            response = await self._client.request(method, path, params=query)
            response.raise_for_status()
        except httpx.HTTPError as error:
            raise Failed(
                "Envoy does not answer on its admin socket",
                code="gateway_unreachable",
                hint="gateway/envoy.log in the run directory says why",
            ) from error
        return response.text


def parse_counters(text: str) -> dict[str, int]:
    """Lines of `name: number`; what is not a number is left out."""
    found = {}
    for line in text.splitlines():
        name, _, value = line.rpartition(": ")
        if value.isdigit():
            found[name] = int(value)
    return found


def app_loads(counters: Mapping[str, int], waiting: Mapping[str, int], passed: Mapping[str, int]) -> dict[str, Load]:
    """Loads by app. `waiting` are held now; `passed` went on from the wake listener, not counted by app."""
    active: dict[str, int] = {}
    total: dict[str, int] = dict(passed)
    for name, value in counters.items():
        match = _APP.fullmatch(name)
        if match and match[2] == "active":
            active[match[1]] = value
        elif match:
            total[match[1]] = total.get(match[1], 0) + value
    apps = {*active, *total, *waiting}
    return {app: Load(active.get(app, 0), total.get(app, 0), waiting.get(app, 0)) for app in apps}
