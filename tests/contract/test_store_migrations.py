"""Migrating an empty database gives exactly the tables that the code uses."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine

from dovecote.store import Store
from dovecote.store.tables import metadata
from tests.contract.stores import Place, place, store
from tests.servers import PostgreSQLServer, postgresql_server

__all__ = ["place", "postgresql_server", "store"]  # fixtures

pytestmark = pytest.mark.anyio

# What matters, and not in which order it came to be: columns, indexes with their conditions, rules.
DESCRIPTIONS = {
    "sqlite": [
        'SELECT t.name, c.name, c.type, c."notnull", c.dflt_value, c.pk FROM sqlite_master t'
        " JOIN pragma_table_info(t.name) c WHERE t.type = 'table' AND t.name <> 'alembic_version' ORDER BY 1, 2",
        "SELECT tbl_name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL ORDER BY 1, 2",
        'SELECT t.name, i."unique", i.origin, i.partial, (SELECT group_concat(name) FROM pragma_index_info(i.name))'
        " FROM sqlite_master t JOIN pragma_index_list(t.name) i"
        " WHERE t.type = 'table' AND t.name <> 'alembic_version' ORDER BY 1, 2, 3, 4, 5",
        'SELECT t.name, f."from", f."table", f."to" FROM sqlite_master t'
        " JOIN pragma_foreign_key_list(t.name) f WHERE t.type = 'table' ORDER BY 1, 2",
    ],
    "postgresql": [
        "SELECT table_name, column_name, data_type, is_nullable, column_default FROM information_schema.columns"
        " WHERE table_schema = 'public' AND table_name <> 'alembic_version' ORDER BY 1, 2",
        "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename <> 'alembic_version' ORDER BY 1",
        "SELECT conname, conrelid::regclass::text, pg_get_constraintdef(oid) FROM pg_constraint"
        " WHERE connamespace = 'public'::regnamespace AND conrelid <> 'alembic_version'::regclass ORDER BY 1, 2, 3",
    ],
}


@pytest.fixture
async def made_from_metadata(
    place: Place, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[list[list[Any]]]:
    """The description of a database whose tables were made without migrations."""
    if place.driver == "sqlite":
        yield await describe(f"sqlite:///{tmp_path}/other.sqlite", place.driver, create=True)
        return
    server: PostgreSQLServer = request.getfixturevalue("postgresql_server")
    name = server.new_database()
    try:
        yield await describe(server.url(name), place.driver, create=True)
    finally:
        server.drop_database(name)


async def describe(url: str, driver: str, *, create: bool = False) -> list[list[Any]]:
    asynchronous = url.replace("sqlite:", "sqlite+aiosqlite:").replace("postgresql:", "postgresql+asyncpg:")
    engine = create_async_engine(asynchronous)
    try:
        async with engine.begin() as connection:
            if create:
                await connection.run_sync(_create)
            queries = DESCRIPTIONS[driver]
            return [[tuple(row) for row in await connection.exec_driver_sql(query)] for query in queries]
    finally:
        await engine.dispose()


def _create(connection: Connection) -> None:
    metadata.create_all(connection)
    connection.exec_driver_sql("CREATE TABLE alembic_version (version_num text)")


async def test_migrations_make_what_the_code_uses(
    store: Store, place: Place, made_from_metadata: list[list[Any]]
) -> None:
    migrated = await describe(place.url, place.driver)
    assert all(migrated)
    assert migrated == made_from_metadata
