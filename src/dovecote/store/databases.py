"""Connections to SQLite and PostgreSQL: who may write when, and how long anything may take."""

from __future__ import annotations

import asyncio
import json
import os
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from dovecote.errors import DeadlineExceeded, Failed, Invalid
from dovecote.store.failures import in_our_words
from dovecote.store.rows import render_json

STATEMENT_TIMEOUT = 10.0  # seconds for a statement or a whole transaction, waiting for a connection included
MIGRATION_TIMEOUT = 600.0
SQLITE_BUSY_TIMEOUT = 5.0  # how long another process may hold the one writer's place
SQLITE_READERS = 3
POSTGRESQL_CONNECTIONS = 10
MIGRATION_LOCK = 0x646F7665  # any number that is ours alone in the database


class Outcome(NamedTuple):
    rows: list[Any]
    changed: int


Run = Callable[..., Awaitable[Outcome]]  # (statement, values, *, writes: bool)


class Database(ABC):
    """Runs statements, each on its own or several in a transaction. Connections are in autocommit: BEGIN is ours."""

    begin = "BEGIN"

    @abstractmethod
    async def open(self) -> None: ...

    @abstractmethod
    async def close(self) -> None: ...

    @abstractmethod
    def connection(self, *, writes: bool) -> Any:
        """Async context of an AsyncConnection."""

    async def run(self, statement: sa.Executable, values: Mapping[str, Any] | None = None, *, writes: bool) -> Outcome:
        """One statement, all or nothing by itself."""
        async with asyncio.timeout(STATEMENT_TIMEOUT), self.connection(writes=writes) as connection:
            return await _execute(connection, statement, values)

    @asynccontextmanager
    async def transaction(self, timeout: float = STATEMENT_TIMEOUT) -> AsyncIterator[tuple[Run, AsyncConnection]]:
        limit = asyncio.timeout(timeout)
        try:
            async with limit, self.connection(writes=True) as connection:
                await _command(connection, self.begin)
                try:
                    yield _run_on(connection), connection
                    await _command(connection, "COMMIT")
                except Exception:
                    await _undo(connection)
                    raise
                except BaseException:
                    await connection.invalidate()  # cancelled: only a closed connection surely has left it
                    raise
        except TimeoutError as error:
            if not limit.expired():
                raise  # the caller's own
            raise DeadlineExceeded(
                f"a transaction took longer than {timeout:.0f} s and was undone", code="store_timeout", retry_after=1
            ) from error

    @abstractmethod
    async def lock_for_migration(self, connection: AsyncConnection) -> None:
        """Inside a transaction: the second process waits until the first one's has ended."""


def _run_on(connection: AsyncConnection) -> Run:
    async def run(statement: sa.Executable, values: Mapping[str, Any] | None = None, *, writes: bool) -> Outcome:
        return await _execute(connection, statement, values)

    return run


async def _execute(connection: AsyncConnection, statement: sa.Executable, values: Mapping[str, Any] | None) -> Outcome:
    result = await connection.execute(statement, values or {})
    return Outcome(list(result.all()), 0) if result.returns_rows else Outcome([], result.rowcount)


async def _command(connection: AsyncConnection, command: str) -> None:
    with in_our_words("transaction"):
        await connection.exec_driver_sql(command)


async def _undo(connection: AsyncConnection) -> None:
    try:
        await connection.exec_driver_sql("ROLLBACK")
    except Exception:
        await connection.invalidate()


def _engine(url: URL, **options: Any) -> AsyncEngine:
    return create_async_engine(
        url,
        isolation_level="AUTOCOMMIT",
        skip_autocommit_rollback=True,  # each would be one more trip to the database, for nothing
        pool_reset_on_return=None,
        pool_timeout=STATEMENT_TIMEOUT,
        max_overflow=0,
        json_serializer=render_json,
        json_deserializer=json.loads,
        **options,
    )


class SQLite(Database):
    """One file, write-ahead log. Writers of this process take turns on one connection, so none finds it locked.

    `synchronous=NORMAL`: a crash of Dovecote loses nothing, a crash of the machine may lose the last transactions,
    never halves of them.
    """

    begin = "BEGIN IMMEDIATE"

    def __init__(self, path: Path, *, busy_timeout: float = SQLITE_BUSY_TIMEOUT) -> None:
        self._path = path
        url = URL.create("sqlite+aiosqlite", database=str(path))
        self._writer = _engine(url, pool_size=1)
        self._readers = _engine(url, pool_size=SQLITE_READERS)
        sa.event.listen(self._writer.sync_engine, "connect", _pragmas(busy_timeout, is_reader=False))
        sa.event.listen(self._readers.sync_engine, "connect", _pragmas(busy_timeout, is_reader=True))
        self._turn = asyncio.Lock()
        self._turn_of: asyncio.Task[Any] | None = None

    async def open(self) -> None:
        with in_our_words("database"):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Digests of keys and whole conversations are in there: for its owner only, and so are its log files.
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            async with asyncio.timeout(STATEMENT_TIMEOUT), self._writer.connect() as connection:
                await connection.exec_driver_sql("PRAGMA journal_mode = WAL")

    async def close(self) -> None:
        await self._readers.dispose()
        await self._writer.dispose()

    @asynccontextmanager
    async def connection(self, *, writes: bool) -> AsyncIterator[AsyncConnection]:
        if not writes:
            async with self._readers.connect() as connection:
                yield connection
            return
        if self._turn_of is not None and self._turn_of is asyncio.current_task():
            raise Failed("a write outside of the transaction that this task has open", code="transaction_failed")
        async with self._turn, self._writer.connect() as connection:
            self._turn_of = asyncio.current_task()
            try:
                yield connection
            finally:
                self._turn_of = None

    async def lock_for_migration(self, connection: AsyncConnection) -> None:
        """BEGIN IMMEDIATE has done it."""


def _pragmas(busy_timeout: float, *, is_reader: bool) -> Callable[[Any, Any], None]:
    def set_pragmas(connection: Any, _: Any) -> None:
        cursor = connection.cursor()
        for pragma in (
            f"busy_timeout = {int(busy_timeout * 1000)}",
            "synchronous = NORMAL",
            "foreign_keys = ON",
            "temp_store = MEMORY",
            "cache_size = -16384",  # KiB
            "journal_size_limit = 67108864",
            f"query_only = {'ON' if is_reader else 'OFF'}",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    return set_pragmas


class PostgreSQL(Database):
    """A pool of connections. Every statement also has a limit on the server's side, so none outlives its caller."""

    def __init__(self, url: URL) -> None:
        query = dict(url.query)
        if "sslmode" in query:  # what everybody else calls it
            query["ssl"] = query.pop("sslmode")
        self._engine = _engine(
            url.set(drivername="postgresql+asyncpg", query=query),
            pool_size=POSTGRESQL_CONNECTIONS,
            connect_args={
                "timeout": STATEMENT_TIMEOUT,
                "server_settings": {
                    "application_name": "dovecote",
                    "timezone": "UTC",
                    "jit": "off",
                    "statement_timeout": f"{int(STATEMENT_TIMEOUT)}s",
                    "idle_in_transaction_session_timeout": f"{int(2 * STATEMENT_TIMEOUT)}s",
                },
            },
        )

    async def open(self) -> None:
        with in_our_words("database"):
            async with asyncio.timeout(STATEMENT_TIMEOUT), self._engine.connect() as connection:
                await connection.exec_driver_sql("SELECT 1")

    async def close(self) -> None:
        await self._engine.dispose()

    @asynccontextmanager
    async def connection(self, *, writes: bool) -> AsyncIterator[AsyncConnection]:
        async with self._engine.connect() as connection:
            yield connection

    async def lock_for_migration(self, connection: AsyncConnection) -> None:
        await connection.exec_driver_sql(f"SET LOCAL statement_timeout = '{int(MIGRATION_TIMEOUT)}s'")
        await connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})")


def database_at(url: str) -> Database:
    """`sqlite:///<path>` or `postgresql://user:password@host/name`. Raises Invalid."""
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError:
        parsed = URL.create("unreadable")
    if parsed.get_backend_name() == "sqlite" and parsed.database not in (None, "", ":memory:"):
        return SQLite(Path(str(parsed.database)))
    if parsed.get_backend_name() in ("postgresql", "postgres"):
        return PostgreSQL(parsed)
    # The URL itself may hold a password, so it is not repeated.
    raise Invalid(
        "not the URL of a database that Dovecote can use",
        code="bad_database_url",
        hint="postgresql://user:password@host/name, or sqlite:/// and the path of a file",
    )
