"""Finding the session of a request's key among a million parked ones, as each wake does."""

from __future__ import annotations

import asyncio
import random
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from tests.servers import postgresql

from bench.figures import Row, row
from dovecote.model.ids import new_id
from dovecote.model.records import Session
from dovecote.model.states import Desired, SessionState
from dovecote.store import open_store
from dovecote.store.tables import metadata

if TYPE_CHECKING:
    from bench.measures import Bench

PARKED, LIVE = 1_000_000, 10_000
LOOKUPS = 2000
NUMBERS = {
    "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :count)",
    "postgresql": "WITH n(i) AS (SELECT generate_series(1, CAST(:count AS bigint)))",
}
SCATTERED = "(n.i * 2654435761 % 4294967296)"  # no two alike, and in no order
SAID = {
    "id": f"'ses_' || {SCATTERED}",
    "slug": f"'slug' || {SCATTERED}",
    "key": f"'chat-' || {SCATTERED}",
    "state": f"CASE WHEN n.i <= {LIVE} THEN 'ready' ELSE 'parked' END",
}


def sqlite(bench: Bench) -> list[Row]:
    return asyncio.run(_measure("sqlite", f"sqlite:///{bench.directory}/lookups.sqlite", bench))


def on_postgresql(bench: Bench) -> list[Row]:
    with postgresql() as server:
        return asyncio.run(_measure("postgresql", server.url(server.new_database()), bench))


async def _measure(driver: str, url: str, bench: Bench) -> list[Row]:
    store = open_store(url)
    await store.open()
    try:
        await store.migrate()
        model = _session()
        scope = store.tenant(model.tenant_id)
        await scope.sessions.insert(model)
        await _multiply(driver, url, model.id, PARKED + LIVE)
        numbers = random.Random(7)
        took = []
        for _ in range(bench.times(LOOKUPS)):
            key = f"chat-{numbers.randint(1, PARKED + LIVE) * 2654435761 % 4294967296}"
            began = time.perf_counter()
            found = await scope.sessions.find(
                user_id=model.user_id, function_id=model.function_id, key=key, live_marker="live"
            )
            took.append((time.perf_counter() - began) * 1000)
            assert found is not None, key
        return [row(f"lookup_parked_1m_{driver}", "ms", took, "", [])]
    finally:
        await store.close()


def _session() -> Session:
    now = datetime.now(UTC)
    return Session(
        id=new_id("ses"),
        tenant_id=new_id("ten"),
        user_id=new_id("usr"),
        function_id=new_id("fun"),
        revision_id=new_id("rev"),
        key="the-first",
        slug="the-first",
        state=SessionState.PARKED,
        desired=Desired.LIVE,
        created_at=now,
        last_active_at=now,
        tier="default",
    )


async def _multiply(driver: str, url: str, id: str, count: int) -> None:
    columns = [column.name for column in metadata.tables["sessions"].columns]
    named = ", ".join(f'"{name}"' for name in columns)
    values = ", ".join(SAID.get(name, f's."{name}"') for name in columns)
    asynchronous = url.replace("sqlite:", "sqlite+aiosqlite:").replace("postgresql:", "postgresql+asyncpg:")
    engine = create_async_engine(asynchronous)
    try:
        async with engine.begin() as connection:
            insert = f"INSERT INTO sessions ({named}) {NUMBERS[driver]}"
            copied = f"SELECT {values} FROM sessions s, n WHERE s.id = :id"
            await connection.execute(text(f"{insert} {copied}"), {"count": count, "id": id})
        async with engine.begin() as connection:
            await connection.execute(text("ANALYZE"))
    finally:
        await engine.dispose()
