"""A fresh store of each driver, and records to put into it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest

from dovecote.model.ids import new_id, random_text
from dovecote.model.invocations import Invocation, InvocationState
from dovecote.model.records import Session, User
from dovecote.model.states import Desired, SessionState
from dovecote.store import Store, open_store
from tests.servers import PostgreSQLServer

A, B = "ten_a", "ten_b"
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@dataclass(frozen=True)
class Place:
    """A database without tables, and the URL to reach it."""

    driver: str
    url: str


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "sqlite":
        yield Place("sqlite", f"sqlite:///{tmp_path}/store.sqlite")
        return
    server: PostgreSQLServer = request.getfixturevalue("postgresql_server")
    name = server.new_database()
    try:
        yield Place("postgresql", server.url(name))
    finally:
        server.drop_database(name)


@pytest.fixture
async def store(place: Place) -> AsyncIterator[Store]:
    store = open_store(place.url)
    await store.open()
    try:
        await store.migrate()
        yield store
    finally:
        with anyio.CancelScope(shield=True):
            await store.close()


def session(tenant_id: str = A, **changes: Any) -> Session:
    values: dict[str, Any] = {
        "id": new_id("ses"),
        "tenant_id": tenant_id,
        "user_id": "usr_1",
        "function_id": "fun_1",
        "revision_id": "rev_1",
        "key": random_text(),
        "slug": random_text(),
        "state": SessionState.NEW,
        "desired": Desired.LIVE,
        "created_at": NOW,
        "last_active_at": NOW,
        "tier": "default",
    }
    return Session(**(values | changes))


def user(tenant_id: str = A, name: str = "") -> User:
    return User(new_id("usr"), tenant_id, name or random_text(), "default", NOW)


def invocation(tenant_id: str = A, due_at: datetime | None = NOW, **changes: Any) -> Invocation:
    values: dict[str, Any] = {
        "id": new_id("inv"),
        "tenant_id": tenant_id,
        "function_id": "fun_1",
        "function": "coding",
        "user": "anna",
        "key": "chat7",
        "is_key_ours": False,
        "method": "POST",
        "path": "/work?a=b",
        "headers": {"content-type": "text/plain"},
        "body": "aGk=",
        "state": InvocationState.QUEUED,
        "created_at": NOW,
        "deadline": NOW + timedelta(hours=24),
        "due_at": due_at,
    }
    return Invocation(**(values | changes))
