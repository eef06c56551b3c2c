"""Connections to SQLite and PostgreSQL: who may write when, and how long anything may take."""

from __future__ import annotations

import asyncio
import json
import os
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from dovecote.errors import DeadlineExceeded, Failed, Invalid
from dovecote.store.failures import in_our_words
from dovecote.store.outcome import Outcome
from dovecote.store.rows import render_json
from dovecote.store.threads import InThread

STATEMENT_TIMEOUT = 10.0  # seconds for a statement or a whole transaction
TURN_TIMEOUT = 45.0  # seconds until its turn comes: behind hundreds of others it is no sign that the database hangs
MIGRATION_TIMEOUT = 600.0
SQLITE_BUSY_TIMEOUT = 5.0  # how long another process may hold the one writer's place
SQLITE_READERS = 3
POSTGRESQL_CONNECTIONS = 10
MIGRATION_LOCK = 0x646F7665  # any number that is ours alone in the database

Run = Callable[..., Awaitable[Outcome]]  # (statement, values, *, writes: bool)


class Connected(Protocol):
    """What is done on a connection. Raises what SQLAlchemy does."""

    async def execute(self, statement: sa.Executable, values: Mapping[str, Any]) -> Outcome: ...

    async def command(self, text: str) -> None: ...

    async def run(self, act: Callable[[sa.Connection], None]) -> None:
        """Something that takes many statements."""

    async def invalidate(self) -> None:
        """Closes it, whatever is under way on it."""


class Database(ABC):
    """Runs statements, each on its own or several in a transaction. Connections are in autocommit: BEGIN is ours."""

    begin = "BEGIN"

    @abstractmethod
    async def open(self) -> None: ...

    @abstractmethod
    async def close(self) -> None: ...

    @abstractmethod
    async def run(self, statement: sa.Executable, values: Mapping[str, Any] | None = None, *, writes: bool) -> Outcome:
        """One statement, all or nothing by itself."""

    @abstractmethod
    def writing(self) -> AbstractAsyncContextManager[Connected]:
        """A connection for several statements."""

    @asynccontextmanager
    async def transaction(self, timeout: float = STATEMENT_TIMEOUT) -> AsyncIterator[tuple[Run, Connected]]:
        limit = asyncio.timeout(timeout)
        try:
            async with self.writing() as connection, limit:
                try:
                    await _command(connection, self.begin)  # cut off, it may have happened all the same
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
    async def lock_for_migration(self, connection: Connected) -> None:
        """Inside a transaction: the second process waits until the first one's has ended."""


def _run_on(connection: Connected) -> Run:
    async def run(statement: sa.Executable, values: Mapping[str, Any] | None = None, *, writes: bool) -> Outcome:
        return await connection.execute(statement, values or {})

    return run


async def _command(connection: Connected, command: str) -> None:
    with in_our_words("transaction"):
        await connection.command(command)


async def _undo(connection: Connected) -> None:
    try:
        await connection.command("ROLLBACK")
    except Exception:
        await connection.invalidate()


_OPTIONS: dict[str, Any] = {
    "isolation_level": "AUTOCOMMIT",
    "skip_autocommit_rollback": True,  # each would be one more trip to the database, for nothing
    "pool_reset_on_return": None,
    "pool_timeout": TURN_TIMEOUT,
    "max_overflow": 0,
    "json_serializer": render_json,
    "json_deserializer": json.loads,
}


class SQLite(Database):
    """One file, write-ahead log. Writers of this process take turns on one connection, so none finds it locked.

    A statement is done in one go in a thread, not in several by way of an asynchronous driver: handing over to a thread
    and back costs as much as the statement.

    `synchronous=NORMAL`: a crash of Dovecote loses nothing, a crash of the machine may lose the last transactions,
    never halves of them.
    """

    begin = "BEGIN IMMEDIATE"

    def __init__(self, path: Path, *, busy_timeout: float = SQLITE_BUSY_TIMEOUT) -> None:
        self._path = path
        url = URL.create("sqlite", database=str(path))
        self._writer = sa.create_engine(url, pool_size=1, **_OPTIONS)
        self._readers = sa.create_engine(url, pool_size=SQLITE_READERS, **_OPTIONS)
        self._writing = ThreadPoolExecutor(1, thread_name_prefix="sqlite-writer")
        self._reading = ThreadPoolExecutor(SQLITE_READERS, thread_name_prefix="sqlite-reader")
        sa.event.listen(self._writer, "connect", _pragmas(busy_timeout, is_reader=False))
        sa.event.listen(self._readers, "connect", _pragmas(busy_timeout, is_reader=True))
        self._turn = asyncio.Lock()
        self._reads = asyncio.Semaphore(SQLITE_READERS)
        self._turn_of: asyncio.Task[Any] | None = None

    async def open(self) -> None:
        with in_our_words("database"):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Digests of keys and whole conversations are in there: for its owner only, and so are its log files.
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            async with asyncio.timeout(STATEMENT_TIMEOUT), self.writing() as connection:
                await connection.command("PRAGMA journal_mode = WAL")

    async def close(self) -> None:
        await asyncio.to_thread(self._readers.dispose)
        await asyncio.to_thread(self._writer.dispose)

    async def run(self, statement: sa.Executable, values: Mapping[str, Any] | None = None, *, writes: bool) -> Outcome:
        if not writes:
            async with _turn(self._reads), asyncio.timeout(STATEMENT_TIMEOUT):
                return await InThread(self._reading, self._readers).once(statement, values or {})
        async with self._take_turn(), asyncio.timeout(STATEMENT_TIMEOUT):
            return await InThread(self._writing, self._writer).once(statement, values or {})

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[Connected]:
        async with self._take_turn():
            connection = InThread(self._writing, self._writer)
            try:
                yield connection
            finally:
                await connection.close()

    @asynccontextmanager
    async def _take_turn(self) -> AsyncIterator[None]:
        if self._turn_of is not None and self._turn_of is asyncio.current_task():
            raise Failed("a write outside of the transaction that this task has open", code="transaction_failed")
        async with _turn(self._turn):
            self._turn_of = asyncio.current_task()
            try:
                yield
            finally:
                self._turn_of = None

    async def lock_for_migration(self, connection: Connected) -> None:
        """BEGIN IMMEDIATE has done it."""


@asynccontextmanager
async def _turn(of: asyncio.Lock | asyncio.Semaphore) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(TURN_TIMEOUT):
            await of.acquire()
    except TimeoutError as error:
        raise DeadlineExceeded(
            f"nothing came to the database's turn for {TURN_TIMEOUT:.0f} s", code="store_timeout", retry_after=1
        ) from error
    try:
        yield
    finally:
        of.release()


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
        self._engine = create_async_engine(
            url.set(drivername="postgresql+asyncpg", query=query),
            **_OPTIONS,
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

    async def run(self, statement: sa.Executable, values: Mapping[str, Any] | None = None, *, writes: bool) -> Outcome:
        async with self._engine.connect() as connection, asyncio.timeout(STATEMENT_TIMEOUT):
            return Outcome.of(await connection.execute(statement, values or {}))

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[Connected]:
        async with self._engine.connect() as connection:
            yield _Asynchronous(connection)

    async def lock_for_migration(self, connection: Connected) -> None:
        await connection.command(f"SET LOCAL statement_timeout = '{int(MIGRATION_TIMEOUT)}s'")
        await connection.command(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})")


class _Asynchronous:
    """A connection of a driver that waits for its server by itself."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def execute(self, statement: sa.Executable, values: Mapping[str, Any]) -> Outcome:
        return Outcome.of(await self._connection.execute(statement, values))

    async def command(self, text: str) -> None:
        await self._connection.exec_driver_sql(text)

    async def run(self, act: Callable[[sa.Connection], None]) -> None:
        await self._connection.run_sync(act)

    async def invalidate(self) -> None:
        await self._connection.invalidate()


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
