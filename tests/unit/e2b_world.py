"""E2B's control API over the real rooms and a host in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from fastapi import FastAPI

from dovecote.api.e2b.app import build
from dovecote.api.e2b.auth import encode_key
from dovecote.api.rooms import Rooms
from dovecote.control.fleet import Fleet
from dovecote.control.metering import Metering
from dovecote.control.snapshots import Snapshots
from dovecote.control.volumes import Contents, Volumes
from dovecote.model.addresses import Addresses
from tests.unit.control_world import HOST_ID, World, world_on
from tests.unit.memory_host import Clock, MemoryHost


class E2B:
    """`http` is a client of the first tenant, `stranger` one of the second."""

    def __init__(self, world: World, app: FastAPI, http: httpx.AsyncClient, stranger: httpx.AsyncClient) -> None:
        self.world, self.app, self.http, self.stranger = world, app, http, stranger

    async def create(self, **fields: Any) -> dict[str, Any]:
        answer = await self.http.post("/v2/sandboxes", json={"templateID": "base", **fields})
        assert answer.status_code == 201, answer.text
        return cast(dict[str, Any], answer.json())

    async def info(self, sandbox_id: str) -> dict[str, Any]:
        answer = await self.http.get(f"/sandboxes/{sandbox_id}")
        assert answer.status_code == 200, answer.text
        return cast(dict[str, Any], answer.json())


@asynccontextmanager
async def e2b_on(directory: Path, patch: pytest.MonkeyPatch) -> AsyncIterator[E2B]:
    async with world_on(MemoryHost(Clock()), directory, patch) as world:
        volumes = Volumes(world.store, Fleet({HOST_ID: world.host}), world.tenancy, world.sessions)
        rooms = Rooms(
            tenancy=world.tenancy,
            sessions=world.sessions,
            sandboxes=world.sandboxes,
            apps=world.apps,
            functions=world.functions,
            chats=cast(Any, None),
            snapshots=Snapshots(world.store, world.sessions, world.functions),
            addresses=Addresses("localhost", 8080),
            volumes=volumes,
            contents=Contents(world.store, world.sessions, volumes),
            templates=world.templates,
            metering=Metering(world.sessions),
            deployments=world.deployments,
            invocations=cast(Any, None),
            webhook_secrets=cast(Any, None),
        )
        app = build(rooms)
        transport = httpx.ASGITransport(app)
        keys = [(await world.tenancy.create_key(tenant, "a key")).secret for tenant in (world.tenant, world.other)]
        clients = [
            httpx.AsyncClient(transport=transport, base_url="http://localhost", headers={"x-api-key": encode_key(key)})
            for key in keys
        ]
        yield E2B(world, app, *clients)
        for client in clients:
            await client.aclose()
