"""Migrating an empty database gives exactly the tables that the code uses."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, MetaData
from sqlalchemy.ext.asyncio import create_async_engine

from dovecote.model.serving import Affinity, Hooks, Invoking, Mode, Sharing
from dovecote.store import Store, migrations, open_store
from dovecote.store.tables import metadata
from tests.contract.stores import Place, place, store
from tests.servers import PostgreSQLServer, postgresql_server

__all__ = ["place", "postgresql_server", "store"]  # fixtures

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 11, 1, tzinfo=UTC)

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


async def test_a_header_of_a_functions_own_outlives_the_upgrade_to_affinity_in_several_modes(
    store: Store, place: Place, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """An installation of before with a function of each kind; both are called as they were."""
    if place.driver == "sqlite":
        await upgrade_with_functions(f"sqlite:///{tmp_path}/before.sqlite")
        return
    server: PostgreSQLServer = request.getfixturevalue("postgresql_server")
    name = server.new_database()
    try:
        await upgrade_with_functions(server.url(name))
    finally:
        server.drop_database(name)


async def upgrade_with_functions(url: str) -> None:
    asynchronous = url.replace("sqlite:", "sqlite+aiosqlite:").replace("postgresql:", "postgresql+asyncpg:")
    engine = create_async_engine(asynchronous)
    headers = {"fun_custom": "x-shop-chat", "fun_usual": "x-dovecote-session"}
    try:
        async with engine.begin() as connection:
            await connection.run_sync(_as_it_was, headers)
    finally:
        await engine.dispose()
    upgraded = open_store(url)
    await upgraded.open()
    try:
        await upgraded.migrate()
        scope = upgraded.tenant("ten_a")
        functions = [await scope.functions.get(id) for id in headers]
        assert [function.affinity for function in functions] == [
            Affinity(modes=(Mode.HEADER,), header=header) for header in headers.values()
        ]
        assert [function.invoking for function in functions] == [Invoking(), Invoking()]
        assert not any(function.is_public for function in functions)
        assert len({function.slug for function in functions}) == 2
        assert all(len(function.slug) >= 20 for function in functions)
        revision = await scope.revisions.get("rev_custom")
        assert (revision.sharing, revision.hooks) == (Sharing(), Hooks())
        changed = await scope.functions.swap(replace(functions[0], affinity=Affinity(header="x-later")))
        assert (await scope.functions.get("fun_custom")) == changed
    finally:
        await upgraded.close()


def _as_it_was(connection: Connection, headers: dict[str, str]) -> None:
    """Tables of r0013 and functions in them, written as that version did."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    config.attributes["connection"] = connection
    command.upgrade(config, "r0013")
    tables = MetaData()
    tables.reflect(connection, only=["tenants", "functions", "revisions"])
    row = {"tenant_id": "ten_a", "created_at": NOW, "generation": 0}
    connection.execute(
        tables.tables["tenants"].insert(), {"id": "ten_a", "name": "a", "created_at": NOW, "generation": 0}
    )
    for id, header in headers.items():
        function = {"id": id, "name": id[4:], "revision_id": f"rev_{id[4:]}", "affinity_header": header}
        connection.execute(tables.tables["functions"].insert(), row | function)
        revision = {
            "id": f"rev_{id[4:]}",
            "function_id": id,
            "number": 1,
            "template": "digest",
            "template_name": "base",
        }
        what = {"spec": "small", "level": "crun", "env": {}, "mounts": [], "rules": {"leave_out": [], "keep": []}}
        network = {"internet": True, "allow_cidrs": [], "deny_cidrs": []}
        connection.execute(tables.tables["revisions"].insert(), row | revision | what | {"network": network})
