"""Transactions, the outbox, and many who write at once, on SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from dovecote.errors import Conflict, DeadlineExceeded
from dovecote.model.states import SessionState
from dovecote.store import Store, databases, open_store
from tests.contract.stores import NOW, A, Place, outbox_row, place, session, store, user
from tests.servers import postgresql_server

__all__ = ["place", "postgresql_server", "store"]  # fixtures

pytestmark = pytest.mark.anyio


async def test_a_change_and_its_outbox_row_come_together(store: Store) -> None:
    scope = store.tenant(A)
    old = await scope.sessions.insert(session())
    async with scope.together() as t:
        new = await t.sessions.swap(replace(old, state=SessionState.STARTING))
        row = await t.outbox.insert(outbox_row())
        assert await t.sessions.get(old.id) == new  # it sees its own writes
        assert await scope.sessions.get(old.id) == old  # others do not, yet
    assert await scope.sessions.get(old.id) == new
    assert await scope.outbox.list() == [row]


@pytest.mark.parametrize("error", [RuntimeError, OSError, TimeoutError, asyncio.CancelledError])
async def test_a_change_and_its_outbox_row_are_undone_together(store: Store, error: type[BaseException]) -> None:
    """The caller gets its own error back, and the store goes on."""
    scope = store.tenant(A)
    old = await scope.sessions.insert(session())

    async def write() -> None:
        async with scope.together() as t:
            await t.sessions.swap(replace(old, state=SessionState.STARTING))
            await t.outbox.insert(outbox_row())
            raise error

    with pytest.raises(error):
        await write()
    assert await scope.sessions.get(old.id) == old
    assert await scope.outbox.count() == 0
    await scope.outbox.insert(outbox_row())


async def test_a_conflict_undoes_the_whole(store: Store) -> None:
    scope = store.tenant(A)
    old = await scope.sessions.insert(session())
    await scope.sessions.swap(old)

    async def write() -> None:
        async with scope.together() as t:
            await t.outbox.insert(outbox_row())
            await t.sessions.swap(old)

    with pytest.raises(Conflict):
        await write()
    assert await scope.outbox.count() == 0


async def test_transactions_at_once_do_not_fail(store: Store) -> None:
    scope = store.tenant(A)

    async def write() -> None:
        async with scope.together() as t:
            await t.sessions.insert(session())
            await t.outbox.insert(outbox_row())

    await asyncio.gather(*(write() for _ in range(30)))
    assert (await scope.sessions.count(), await scope.outbox.count()) == (30, 30)


async def test_a_cancelled_write_leaves_the_store_whole(store: Store) -> None:
    """Cancelled at any moment: the record is there or not, and the next write works."""
    kept = store.tenant(A).sessions
    for steps in range(12):
        task = asyncio.create_task(kept.insert(session(key=str(steps))))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        old = await kept.insert(session())
        assert (await kept.swap(old)).generation == 1


async def test_a_cancelled_transaction_is_undone(store: Store) -> None:
    scope = store.tenant(A)
    written = asyncio.Event()

    async def write() -> None:
        async with scope.together() as t:
            await t.users.insert(user())
            written.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(write())
    await written.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await scope.users.count() == 0
    await scope.users.insert(user())


async def test_a_transaction_that_takes_too_long_is_undone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    scope = store.tenant(A)
    real = databases.Database.transaction
    monkeypatch.setattr(databases.Database, "transaction", lambda self: real(self, 0.2))

    async def write() -> None:
        async with scope.together() as t:
            await t.users.insert(user())
            await asyncio.Event().wait()

    with pytest.raises(DeadlineExceeded) as caught:
        await write()
    assert caught.value.code == "store_timeout"
    assert await scope.users.count() == 0


async def test_due_rows_are_claimed_once(store: Store, place: Place) -> None:
    """By any number of replicas; until the lease has passed nobody else gets them."""
    scope = store.tenant(A)
    due = [await scope.outbox.insert(outbox_row(due_at=NOW - timedelta(seconds=n))) for n in range(40)]
    await scope.outbox.insert(outbox_row(due_at=NOW + timedelta(seconds=1)))
    await scope.outbox.insert(outbox_row(done_at=NOW))
    other = open_store(place.url)
    await other.open()
    try:
        claims = await asyncio.gather(*(each.outbox_due(NOW, limit=7) for _ in range(6) for each in (store, other)))
        got = [row for claim in claims for row in claim]
        got += await store.outbox_due(NOW)
    finally:
        await other.close()
    assert sorted(row.id for row in got) == sorted(row.id for row in due)
    assert {(row.attempts, row.generation, row.due_at) for row in got} == {(1, 1, NOW + timedelta(seconds=60))}
    again = await store.outbox_due(NOW + timedelta(seconds=60), lease=timedelta(seconds=5))
    assert len(again) == 41
    done = [await scope.outbox.swap(replace(row, done_at=NOW)) for row in again]
    assert await store.outbox_due(NOW + timedelta(days=1)) == []
    assert sorted(await scope.outbox.list(done_at=NOW, attempts={1, 2}), key=str) == sorted(done, key=str)


async def test_the_oldest_rows_are_claimed_first(store: Store) -> None:
    made = [await store.tenant(A).outbox.insert(outbox_row(due_at=NOW - timedelta(seconds=n))) for n in range(9)]
    assert {row.id for row in await store.outbox_due(NOW, limit=3)} == {row.id for row in made[-3:]}


async def test_fifty_tasks_at_once_never_find_it_locked(store: Store) -> None:
    scope = store.tenant(A)

    async def work(n: int) -> None:
        record = await scope.sessions.insert(session(key=f"k{n}"))
        for _ in range(4):
            record = await scope.sessions.swap(record)
            assert await scope.sessions.find(user_id="usr_1", function_id="fun_1", key=f"k{n}") == record
            await scope.sessions.list(limit=10)
        async with scope.together() as t:
            await t.sessions.swap(record)
            await t.outbox.insert(outbox_row())

    await asyncio.gather(*(work(n) for n in range(50)))
    assert await scope.outbox.count() == 50
    assert {each.generation for each in await scope.sessions.list()} == {5}
