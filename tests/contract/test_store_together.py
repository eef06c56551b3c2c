"""Transactions, the queue of invocations, and many who write at once, on SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from datetime import timedelta

import pytest

from dovecote.errors import Conflict, DeadlineExceeded
from dovecote.model.invocations import InvocationState
from dovecote.model.states import SessionState
from dovecote.store import Store, databases, open_store
from tests.contract.stores import NOW, A, B, Place, invocation, place, session, store, user
from tests.servers import postgresql_server

__all__ = ["place", "postgresql_server", "store"]  # fixtures

pytestmark = pytest.mark.anyio


async def test_a_change_and_its_invocation_come_together(store: Store) -> None:
    scope = store.tenant(A)
    old = await scope.sessions.insert(session())
    async with scope.together() as t:
        new = await t.sessions.swap(replace(old, state=SessionState.STARTING))
        row = await t.invocations.insert(invocation())
        assert await t.sessions.get(old.id) == new  # it sees its own writes
        assert await scope.sessions.get(old.id) == old  # others do not, yet
    assert await scope.sessions.get(old.id) == new
    assert await scope.invocations.list() == [row]


@pytest.mark.parametrize("error", [RuntimeError, OSError, TimeoutError, asyncio.CancelledError])
async def test_a_change_and_its_invocation_are_undone_together(store: Store, error: type[BaseException]) -> None:
    """The caller gets its own error back, and the store goes on."""
    scope = store.tenant(A)
    old = await scope.sessions.insert(session())

    async def write() -> None:
        async with scope.together() as t:
            await t.sessions.swap(replace(old, state=SessionState.STARTING))
            await t.invocations.insert(invocation())
            raise error

    with pytest.raises(error):
        await write()
    assert await scope.sessions.get(old.id) == old
    assert await scope.invocations.count() == 0
    await scope.invocations.insert(invocation())


async def test_a_conflict_undoes_the_whole(store: Store) -> None:
    scope = store.tenant(A)
    old = await scope.sessions.insert(session())
    await scope.sessions.swap(old)

    async def write() -> None:
        async with scope.together() as t:
            await t.invocations.insert(invocation())
            await t.sessions.swap(old)

    with pytest.raises(Conflict):
        await write()
    assert await scope.invocations.count() == 0


async def test_transactions_at_once_do_not_fail(store: Store) -> None:
    scope = store.tenant(A)

    async def write() -> None:
        async with scope.together() as t:
            await t.sessions.insert(session())
            await t.invocations.insert(invocation())

    await asyncio.gather(*(write() for _ in range(30)))
    assert (await scope.sessions.count(), await scope.invocations.count()) == (30, 30)


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


async def test_what_is_due_is_claimed_once(store: Store, place: Place) -> None:
    """By any number of replicas; until the lease has passed nobody else gets it."""
    scope = store.tenant(A)
    due = [await scope.invocations.insert(invocation(due_at=NOW - timedelta(seconds=n))) for n in range(20)]
    await scope.invocations.insert(invocation(due_at=NOW + timedelta(seconds=1)))
    await scope.invocations.insert(invocation(due_at=None))
    other = open_store(place.url)
    await other.open()

    async def claim(by: Store) -> list[str]:
        got = []
        for each in await by.invocations_due(NOW, is_final=False):
            with contextlib.suppress(Conflict):
                leased = replace(each, due_at=NOW + timedelta(seconds=60), attempts=each.attempts + 1)
                got.append((await by.tenant(A).invocations.swap(leased)).id)
        return got

    try:
        claims = await asyncio.gather(*(claim(each) for _ in range(3) for each in (store, other)))
    finally:
        await other.close()
    assert sorted(id for got in claims for id in got) == sorted(each.id for each in due)
    assert await store.invocations_due(NOW, is_final=False) == []
    assert len(await store.invocations_due(NOW + timedelta(seconds=60), is_final=False)) == 21


async def test_no_tenant_waits_behind_anothers_queue(store: Store) -> None:
    """Of each the oldest, then of each the next."""
    for n in range(6):
        await store.tenant(A).invocations.insert(invocation(A, NOW - timedelta(minutes=10, seconds=n)))
    theirs = [await store.tenant(B).invocations.insert(invocation(B, NOW - timedelta(seconds=n))) for n in range(2)]
    first = await store.invocations_due(NOW, is_final=False, limit=4)
    assert [each.tenant_id for each in first] == [A, B, A, B]
    assert [each.id for each in first if each.tenant_id == B] == [theirs[1].id, theirs[0].id]
    assert [each.due_at for each in first if each.tenant_id == A] == [
        NOW - timedelta(minutes=10, seconds=n) for n in (5, 4)
    ]


async def test_what_is_due_is_asked_for_by_what_is_to_be_done(store: Store) -> None:
    scope = store.tenant(A)
    call = await scope.invocations.insert(invocation())
    done = await scope.invocations.insert(
        invocation(function_id="fun_2", state=InvocationState.SUCCEEDED, finished_at=NOW)
    )
    assert await store.invocations_due(NOW, is_final=False) == [call]
    assert await store.invocations_due(NOW, is_final=True) == [done]
    assert await store.invocations_due(NOW, is_final=True, but_functions=["fun_2"]) == []
    assert await store.invocations_due(NOW, is_final=False, but_tenants=[A]) == []
    assert await store.invocations_due(NOW, is_final=False, but_tenants=[B], but_functions=["fun_2"]) == [call]


async def test_an_idempotency_key_is_one_users_of_one_function_of_one_tenant(store: Store) -> None:
    owners = [(A, "fun_1", "anna"), (A, "fun_2", "anna"), (A, "fun_1", "bob"), (B, "fun_1", "anna")]
    for tenant_id, function_id, name in owners:
        await store.tenant(tenant_id).invocations.insert(
            invocation(tenant_id, function_id=function_id, user=name, idempotency_key="order-1")
        )
    await store.tenant(A).invocations.insert(invocation())
    await store.tenant(A).invocations.insert(invocation())  # none is like no other
    with pytest.raises(Conflict) as caught:
        await store.tenant(A).invocations.insert(invocation(user="anna", idempotency_key="order-1"))
    assert caught.value.code == "exists"


async def test_only_what_has_nothing_more_to_do_is_forgotten(store: Store) -> None:
    scope, old = store.tenant(A), NOW - timedelta(days=8)
    for _ in range(3):
        await scope.invocations.insert(invocation(due_at=None, finished_at=old))
    kept = [
        await scope.invocations.insert(each)
        for each in (
            invocation(due_at=NOW, finished_at=old),  # its destination is still to be told
            invocation(due_at=None, finished_at=NOW),
            invocation(created_at=old),
        )
    ]
    assert await store.forget_invocations(NOW - timedelta(days=7), limit=2) == 2
    assert await store.forget_invocations(NOW - timedelta(days=7), limit=2) == 1
    assert {each.id for each in await scope.invocations.list()} == {each.id for each in kept}


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
            await t.invocations.insert(invocation())

    await asyncio.gather(*(work(n) for n in range(50)))
    assert await scope.invocations.count() == 50
    assert {each.generation for each in await scope.sessions.list()} == {5}
