"""What goes wrong below the store comes up as one clear error, and the store recovers."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from dovecote.errors import DeadlineExceeded, DovecoteError, Failed, Invalid, StorageFailed
from dovecote.store import Store, databases, open_store
from dovecote.store.databases import SQLite
from dovecote.store.sql import SQLStore
from tests.contract.stores import A, place, session, store, user
from tests.servers import PostgreSQLServer, postgresql_server

__all__ = ["place", "postgresql_server", "store"]  # fixtures

pytestmark = pytest.mark.anyio


@pytest.fixture
async def impatient(tmp_path: Path) -> AsyncIterator[Store]:
    """SQLite that waits for another process for an instant only."""
    store = SQLStore(SQLite(tmp_path / "store.sqlite", busy_timeout=0.05))
    await store.open()
    await store.migrate()
    yield store
    await store.close()


async def refused(store: Store) -> DovecoteError:
    try:
        with pytest.raises(DovecoteError) as caught:
            await store.open()
        return caught.value
    finally:
        await store.close()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://postgres:secret@127.0.0.1:1/dovecote",
        "postgresql://postgres:secret@/dovecote?host=/nowhere",
        "postgresql://postgres:secret@no-such-host.invalid/dovecote",
        "sqlite:////proc/nowhere/dovecote.sqlite",
        "sqlite:////dev/null/dovecote.sqlite",
    ],
)
async def test_a_database_that_is_not_there(url: str) -> None:
    error = await refused(open_store(url))
    assert isinstance(error, Failed)
    assert error.code == "store_unreachable"
    assert "DOVECOTE_DATABASE_URL" in error.hint
    assert "secret" not in str(error)


async def test_a_database_with_another_name(postgresql_server: PostgreSQLServer) -> None:
    error = await refused(open_store(postgresql_server.url("nothing")))
    assert (type(error), error.code) == (Failed, "store_unreachable")


@pytest.mark.parametrize("url", ["mysql://root:secret@host/db", "sqlite://", "sqlite:///:memory:", "secret", ""])
def test_a_url_that_is_of_no_use(url: str) -> None:
    with pytest.raises(Invalid) as caught:
        open_store(url)
    assert caught.value.code == "bad_database_url"
    assert "secret" not in str(caught.value)


async def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "store.sqlite").write_bytes(b"something else" * 1000)
    error = await refused(open_store(f"sqlite:///{tmp_path}/store.sqlite"))
    assert (type(error), error.code) == (StorageFailed, "corrupt")


async def test_the_file_is_for_its_owner_only(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/new/store.sqlite")
    await store.open()
    await store.migrate()
    assert {file.name: file.stat().st_mode & 0o077 for file in (tmp_path / "new").iterdir()} == {
        "store.sqlite": 0,
        "store.sqlite-wal": 0,
        "store.sqlite-shm": 0,
    }
    await store.close()


async def test_another_process_that_holds_the_file(impatient: Store, tmp_path: Path) -> None:
    """Readers do not notice; a writer is told to come back, and then it works."""
    other = sqlite3.connect(tmp_path / "store.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert await impatient.tenant(A).users.list() == []
    for write in (impatient.tenant(A).users.insert(user()), _together(impatient)):
        with pytest.raises(Failed) as caught:
            await write
        assert caught.value.code == "store_busy"
        assert caught.value.retry_after
    other.execute("ROLLBACK")
    other.close()
    await impatient.tenant(A).users.insert(user())


async def _together(store: Store) -> None:
    async with store.tenant(A).together() as t:
        await t.users.insert(user())


async def test_a_full_disk(impatient: Store) -> None:
    """SQLite is told how many pages there are; the write fails whole, the store stays readable and usable."""
    database = impatient._database  # type: ignore[attr-defined]
    async with database.writing() as connection:
        await connection.command("PRAGMA max_page_count = 1")  # it becomes what there is now
    kept = impatient.tenant(A).sessions
    big = session(env={"A": "x" * 4_000_000})
    with pytest.raises(StorageFailed) as caught:
        await kept.insert(big)
    assert caught.value.code == "disk_full"
    assert await kept.count() == 0
    async with database.writing() as connection:
        await connection.command("PRAGMA max_page_count = 1000000")
    assert await kept.insert(big) == await kept.get(big.id)


async def test_a_write_beside_an_own_transaction_is_refused_at_once(impatient: Store) -> None:
    """It would wait for itself."""
    with pytest.raises(Failed) as caught:
        async with impatient.tenant(A).together():
            await impatient.tenant(A).users.insert(user())
    assert caught.value.code == "transaction_failed"
    await impatient.tenant(A).users.insert(user())


async def test_a_transaction_that_is_cancelled_while_it_begins(impatient: Store, tmp_path: Path) -> None:
    """It may have begun all the same; what is written next must not become a part of it."""
    beginning, go_on = threading.Event(), threading.Event()

    def wait(_1: object, _2: object, statement: str, *_3: object) -> None:
        if statement.startswith("BEGIN"):
            beginning.set()
            assert go_on.wait(30)

    writer = impatient._database._writer  # type: ignore[attr-defined]
    sa.event.listen(writer, "before_cursor_execute", wait)
    task = asyncio.create_task(_together(impatient))
    assert await asyncio.to_thread(beginning.wait, 30)
    task.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    sa.event.remove(writer, "before_cursor_execute", wait)
    await impatient.tenant(A).users.insert(user())
    assert _committed(tmp_path) == 1
    await _together(impatient)
    assert _committed(tmp_path) == 2


async def test_a_connection_that_is_still_in_a_transaction_is_not_used_again(impatient: Store, tmp_path: Path) -> None:
    async with impatient._database.writing() as connection:  # type: ignore[attr-defined]
        await connection.command("BEGIN IMMEDIATE")
    await impatient.tenant(A).users.insert(user())
    assert _committed(tmp_path) == 1


async def test_nothing_is_opened_to_be_closed(impatient: Store) -> None:
    database = impatient._database  # type: ignore[attr-defined]
    database._writer.dispose()
    async with database.writing() as connection:
        await connection.invalidate()
    assert database._writer.pool.checkedin() == 0


def _committed(directory: Path) -> int:
    """Users, as another process sees them."""
    with contextlib.closing(sqlite3.connect(directory / "store.sqlite")) as other:
        count: int = other.execute("SELECT count(*) FROM users").fetchone()[0]
        return count


async def test_statements_that_were_given_up_are_in_nobodys_way(
    impatient: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three that read, which is all that may at once, and one that writes; each would take minutes."""
    database, kept = impatient._database, impatient.tenant(A).users  # type: ignore[attr-defined]
    await kept.insert(user())
    monkeypatch.setattr(databases, "STATEMENT_TIMEOUT", 0.2)
    endless = [database.run(sa.text(_ENDLESS), writes=writes) for writes in (False, False, False, True)]
    assert [type(each) for each in await asyncio.gather(*endless, return_exceptions=True)] == [TimeoutError] * 4
    with pytest.raises(DeadlineExceeded):
        async with database.transaction(0.2) as (run, _):
            await run(sa.text(_ENDLESS), writes=True)
    monkeypatch.undo()
    assert await kept.count() == 1
    await kept.insert(user())


async def test_statements_whose_callers_leave_are_in_nobodys_way(impatient: Store) -> None:
    database, kept = impatient._database, impatient.tenant(A).users  # type: ignore[attr-defined]
    begun = threading.Barrier(5)

    def wait(_1: object, _2: object, statement: str, *_3: object) -> None:
        if statement == _ENDLESS:
            begun.wait(30)

    for engine in (database._readers, database._writer):
        sa.event.listen(engine, "before_cursor_execute", wait)
    endless = [
        asyncio.ensure_future(database.run(sa.text(_ENDLESS), writes=writes)) for writes in (False, False, False, True)
    ]
    await asyncio.to_thread(begun.wait, 30)
    for each in endless:
        each.cancel()
    left = await asyncio.gather(*endless, return_exceptions=True)
    assert [type(each) for each in left] == [asyncio.CancelledError] * 4
    await kept.insert(user())
    assert await kept.count() == 1


_ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 1000000000) SELECT count(*) FROM n"


async def test_connections_that_the_server_ended(postgresql_server: PostgreSQLServer) -> None:
    """As after its restart: at most one call per cut fails, then new connections are used."""
    name = postgresql_server.new_database()
    store = open_store(postgresql_server.url(name))
    try:
        await store.open()
        await store.migrate()
        kept = store.tenant(A).users
        await asyncio.gather(*(kept.insert(user()) for _ in range(20)))
        postgresql_server.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
        with pytest.raises(Failed) as caught:
            await kept.insert(user())
        assert caught.value.code == "store_unreachable"
        assert await asyncio.gather(*(kept.count() for _ in range(20))) == [20] * 20
    finally:
        await store.close()
        postgresql_server.drop_database(name)


async def test_a_statement_that_hangs_is_given_up(
    postgresql_server: PostgreSQLServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here since another transaction holds the row."""
    monkeypatch.setattr(databases, "STATEMENT_TIMEOUT", 0.3)
    name = postgresql_server.new_database()
    patient, store = (open_store(postgresql_server.url(name)) for _ in range(2))
    try:
        await patient.open()
        await patient.migrate()
        old = await patient.tenant(A).users.insert(user())
        async with patient.tenant(A).together() as t:
            await t.users.swap(old)
            with pytest.raises((DeadlineExceeded, Failed)) as caught:
                await store.tenant(A).users.swap(old)
            assert caught.value.code == "store_timeout"
        assert (await store.tenant(A).users.get(old.id)).generation == 1
    finally:
        await patient.close()
        await store.close()
        postgresql_server.drop_database(name)


async def test_waiting_behind_others_is_no_sign_that_the_database_hangs(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All who write at once wait longer than any statement may take."""
    async with store.tenant(A).together() as t:
        monkeypatch.setattr(databases, "STATEMENT_TIMEOUT", 0.3)
        writers = [asyncio.ensure_future(store.tenant(A).users.insert(user())) for _ in range(50)]
        _, waiting = await asyncio.wait(writers, timeout=1.0)
        assert all(not each.done() or each.exception() is None for each in writers)
        monkeypatch.undo()
        await t.users.insert(user())
    await asyncio.gather(*waiting)
    assert await store.tenant(A).users.count() == 51
