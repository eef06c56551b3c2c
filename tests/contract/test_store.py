"""What SQLite and PostgreSQL both promise as a store of records."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from dovecote.errors import Conflict, Forbidden, Invalid, NotFound
from dovecote.model.ids import new_id, random_text
from dovecote.model.records import ApiKey, App, Chat, Function, Revision, Start, Tenant, Turn
from dovecote.model.serving import Destination, To
from dovecote.model.sizes import NetworkPolicy
from dovecote.model.states import SessionState
from dovecote.store import Scope, Store, open_store
from tests.contract.stores import NOW, A, B, Place, invocation, place, session, store, user
from tests.servers import postgresql_server

__all__ = ["place", "postgresql_server", "store"]  # fixtures

pytestmark = pytest.mark.anyio


def app(tenant_id: str = A, **changes: Any) -> App:
    idle = timedelta(minutes=5)
    return replace(
        App(new_id("app"), tenant_id, "shop", "fun_1", "rev_1", "ses_1", 0, 10, 8, idle, created_at=NOW), **changes
    )


def one_of_each(tenant_id: str) -> dict[str, Any]:
    """A record of each kind of one tenant, by the name of its collection."""
    chat = Chat(new_id("cha"), tenant_id, "usr_1", "ses_1", "A chat", NOW)
    start = Start("npm start", 3000, env={"A": "b"})
    network = NetworkPolicy(internet=False, allow_cidrs=("10.1.0.0/16", "10.2.0.0/16"))
    return {
        "tenants": Tenant(tenant_id, f"name-{tenant_id}", NOW),
        "users": user(tenant_id),
        "keys": ApiKey(new_id("key"), tenant_id, random_text(), "laptop", NOW, revoked_at=NOW),
        "functions": Function(new_id("fun"), tenant_id, "coding", "rev_1", NOW, random_text()),
        "revisions": Revision(
            new_id("rev"),
            tenant_id,
            f"fun_{tenant_id}",
            1,
            "0f",
            "base",
            None,
            "small",
            "crun",
            network,
            start,
            {},
            NOW,
        ),
        "sessions": session(tenant_id, start=start, env={"名": "值"}, idle_after=timedelta(seconds=0.25)),
        "apps": app(tenant_id, name=f"shop-{tenant_id}"),
        "chats": chat,
        "turns": Turn(new_id("trn"), tenant_id, chat.id, 1, [{"role": "user", "content": "嗨\0\n"}], NOW),
        "invocations": invocation(
            tenant_id,
            response_headers={"x-a": "ü"},
            on_success=Destination(To.WEBHOOK, "https://example.com/done"),
            timeout=timedelta(seconds=0.5),
        ),
    }


async def put(scope: Scope, records: dict[str, Any]) -> None:
    for name, record in records.items():
        await getattr(scope, name).insert(record)


async def test_what_is_inserted_is_what_is_read(store: Store) -> None:
    records = one_of_each(A)
    await put(store.tenant(A), records)
    for scope in (store.tenant(A), store.everyone()):
        for name, record in records.items():
            kept = getattr(scope, name)
            assert await kept.get(record.id) == record
            assert await kept.find(id=record.id) == record
            assert await kept.list() == [record]
            assert [each async for each in kept.each()] == [record]
            assert await kept.count() == 1


async def test_another_tenants_records_are_not_there(store: Store) -> None:
    """No way of reading, changing or deleting reaches them, whatever their kind."""
    mine, theirs = one_of_each(A), one_of_each(B)
    await put(store.tenant(A), mine)
    await put(store.tenant(B), theirs)
    for name in mine:
        kept, record = getattr(store.tenant(A), name), theirs[name]
        with pytest.raises(NotFound):
            await kept.get(record.id)
        assert await kept.find(id=record.id) is None
        assert await kept.list() == [mine[name]]
        assert await kept.list(id={mine[name].id, record.id}) == [mine[name]]
        assert [each async for each in kept.each()] == [mine[name]]
        assert await kept.newest() == mine[name]
        assert await kept.newest(id=record.id) is None
        assert await kept.count() == 1
        with pytest.raises(Invalid, match="to list after"):
            await kept.list(after=record.id)
        await kept.delete(record.id)
        if name != "revisions":
            with pytest.raises(Forbidden):
                await kept.swap(record)
        with pytest.raises(Forbidden):
            await kept.insert(record)
    assert {name: await getattr(store.tenant(B), name).get(record.id) for name, record in theirs.items()} == theirs


async def test_no_swap_moves_a_record_to_another_tenant(store: Store) -> None:
    record = await store.tenant(B).sessions.insert(session(B))
    forged = replace(record, tenant_id=A, reason="stolen")
    with pytest.raises(NotFound):
        await store.tenant(A).sessions.swap(forged)
    with pytest.raises(Conflict):
        await store.everyone().sessions.swap(forged)
    assert await store.everyone().sessions.list() == [record]


async def test_a_transaction_keeps_its_scope(store: Store) -> None:
    theirs = await store.tenant(B).users.insert(user(B))
    async with store.tenant(A).together() as t:
        assert await t.users.list() == []
        assert await t.users.find(name=theirs.name) is None
        with pytest.raises(Forbidden):
            await t.users.insert(user(B))


async def test_a_turn_cannot_hang_on_another_tenants_chat(store: Store) -> None:
    chat = await store.tenant(B).chats.insert(Chat(new_id("cha"), B, "usr_1", "ses_1", "", NOW))
    with pytest.raises(Conflict) as caught:
        await store.tenant(A).turns.insert(Turn(new_id("trn"), A, chat.id, 1, [], NOW))
    assert caught.value.code == "not_joined"


async def test_swap_returns_the_record_a_generation_later(store: Store) -> None:
    kept = store.tenant(A).sessions
    old = await kept.insert(session())
    new = await kept.swap(replace(old, state=SessionState.STARTING, saved_at=NOW, env={"A": "1"}))
    assert new == replace(old, state=SessionState.STARTING, saved_at=NOW, env={"A": "1"}, generation=1)
    assert await kept.get(old.id) == new
    with pytest.raises(Conflict) as caught:
        await kept.swap(replace(old, state=SessionState.ENDED))
    assert caught.value.code == "stale"
    with pytest.raises(NotFound):
        await kept.swap(session())


async def test_every_kind_that_changes_can_be_swapped(store: Store) -> None:
    records = one_of_each(A)
    await put(store.tenant(A), records)
    for name in records.keys() - {"revisions"}:
        kept = getattr(store.tenant(A), name)
        assert (
            await kept.swap(records[name]) == replace(records[name], generation=1) == await kept.get(records[name].id)
        )


@pytest.mark.parametrize("writers", [2, 20])
async def test_of_writers_at_once_exactly_one_wins(store: Store, writers: int) -> None:
    kept = store.tenant(A).sessions
    old = await kept.insert(session())
    results = await asyncio.gather(
        *(kept.swap(replace(old, reason=str(n))) for n in range(writers)), return_exceptions=True
    )
    won = [result for result in results if not isinstance(result, BaseException)]
    assert [await kept.get(old.id)] == won
    assert sorted({getattr(result, "code", "won") for result in results}) == ["stale", "won"]


async def test_two_processes_with_the_same_database_see_each_other(store: Store, place: Place) -> None:
    other = open_store(place.url)
    await other.open()
    try:
        old = await store.tenant(A).sessions.insert(session())
        results = await asyncio.gather(
            *(one.tenant(A).sessions.swap(replace(old, reason=str(n))) for n in range(10) for one in (store, other)),
            return_exceptions=True,
        )
        won = [result for result in results if not isinstance(result, BaseException)]
        assert [await other.tenant(A).sessions.get(old.id)] == won
        assert all(isinstance(result, Conflict) for result in results if isinstance(result, BaseException))
    finally:
        await other.close()


def function(tenant_id: str) -> Function:
    return Function(new_id("fun"), tenant_id, "f", "", NOW, random_text())


TAKEN = session(key="u1:c1", slug="slug-1")
RULES: list[tuple[str, Any, Any, bool]] = [
    ("tenants", Tenant(A, "one", NOW), Tenant(B, "one", NOW), True),
    ("users", user(A, "ann"), user(A, "ann"), True),
    ("users", user(A, "ann"), user(B, "ann"), False),
    ("users", user(A, "ann"), user(A, "Ann"), False),
    ("keys", ApiKey(new_id("key"), A, "d", "", NOW), ApiKey(new_id("key"), B, "d", "", NOW), True),
    (
        "functions",
        function(A),
        function(A),
        True,
    ),
    (
        "functions",
        function(A),
        function(B),
        False,
    ),
    ("sessions", TAKEN, session(key="u1:c1"), True),
    ("sessions", TAKEN, session(B, slug="slug-1"), True),
    ("sessions", TAKEN, session(B, key="u1:c1"), False),
    ("sessions", TAKEN, session(key="u1:c1", user_id="usr_2"), False),
    ("sessions", TAKEN, session(key="u1:c1", function_id="fun_2"), False),
    ("sessions", TAKEN, session(key="u1:c1", live_marker="ses_ended"), False),
    ("sessions", TAKEN, replace(session(), id=TAKEN.id), True),
    ("apps", app(A), app(B), True),
    ("apps", app(A, removed_at=NOW), app(B), False),
    ("apps", app(A, removed_at=NOW), app(A, removed_at=NOW), False),
]


@pytest.mark.parametrize(("name", "first", "second", "is_refused"), RULES)
async def test_unique_rules(store: Store, name: str, first: Any, second: Any, is_refused: bool) -> None:
    kept = getattr(store.everyone(), name)
    await kept.insert(first)
    if not is_refused:
        await kept.insert(second)
        return
    with pytest.raises(Conflict) as caught:
        await kept.insert(second)
    assert caught.value.code == "exists"
    assert await kept.list() == [first]


async def test_turns_of_a_chat_have_different_numbers(store: Store) -> None:
    scope = store.tenant(A)
    chat = await scope.chats.insert(Chat(new_id("cha"), A, "usr_1", "ses_1", "", NOW))
    results = await asyncio.gather(
        *(scope.turns.insert(Turn(new_id("trn"), A, chat.id, 1, [], NOW)) for _ in range(8)), return_exceptions=True
    )
    assert sum(isinstance(result, Turn) for result in results) == 1
    assert sum(isinstance(result, Conflict) for result in results) == 7


async def test_a_swap_obeys_unique_rules(store: Store) -> None:
    """The key of an ended session is free; while another has it, the ended one cannot come back."""
    kept = store.tenant(A).sessions
    first = await kept.insert(session(key="k"))
    first = await kept.swap(replace(first, live_marker=first.id, state=SessionState.ENDED))
    await kept.insert(session(key="k"))
    with pytest.raises(Conflict) as caught:
        await kept.swap(replace(first, live_marker="live"))
    assert caught.value.code == "exists"


async def test_pages_are_stable_while_records_come_change_and_go(store: Store) -> None:
    kept = store.tenant(A).sessions
    # Several of the same instant, so that the id has to tell them apart.
    before = [await kept.insert(session(created_at=NOW + timedelta(seconds=n // 3))) for n in range(20)]
    seen: list[str] = []
    after = None
    while page := await kept.list(after=after, limit=4):
        seen += [each.id for each in page]
        after = page[-1].id
        await kept.insert(session(created_at=NOW - timedelta(days=1)))
        await kept.swap(replace(page[0], state=SessionState.PARKED))
        await kept.delete(page[1].id)
    assert seen == [each.id for each in sorted(before, key=lambda each: (each.created_at, each.id))]


async def test_the_newest_is_the_one_that_a_list_comes_to_last(store: Store) -> None:
    kept = store.tenant(A).sessions
    assert await kept.newest() is None
    for n in range(12):
        state = SessionState.PARKED if n < 6 else SessionState.NEW
        await kept.insert(session(created_at=NOW + timedelta(seconds=n // 3), state=state))
    assert await kept.newest() == (await kept.list())[-1]
    assert await kept.newest(state=SessionState.PARKED) == (await kept.list(state=SessionState.PARKED))[-1]
    assert await kept.newest(state=SessionState.LOST) is None


async def test_pages_may_go_backwards(store: Store) -> None:
    kept = store.tenant(A).sessions
    for n in range(7):
        await kept.insert(session(created_at=NOW + timedelta(seconds=n // 3)))
    seen: list[str] = []
    while page := await kept.list(limit=2, newest_first=True, after=seen[-1] if seen else None):
        seen += [each.id for each in page]
    assert seen == [each.id for each in await kept.list()][::-1]


async def test_a_filtered_page_follows_a_record_that_no_longer_matches(store: Store) -> None:
    kept = store.tenant(A).sessions
    made = [await kept.insert(session(created_at=NOW + timedelta(seconds=n))) for n in range(3)]
    await kept.swap(replace(made[0], state=SessionState.PARKED))
    assert [s.id for s in await kept.list(after=made[0].id, state=SessionState.NEW)] == [s.id for s in made[1:]]


async def test_a_deleted_record_is_no_cursor_but_each_goes_on(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = store.everyone().sessions
    made = [await kept.insert(session(created_at=NOW + timedelta(seconds=n))) for n in range(5)]
    monkeypatch.setattr("dovecote.store.sql.MOST", 2)
    seen = []
    async for each in kept.each():
        seen.append(each)
        await kept.delete(each.id)
    assert seen == made
    with pytest.raises(Invalid) as caught:
        await kept.list(after=made[0].id)
    assert caught.value.code == "bad_cursor"


async def test_lookups_by_value_by_none_and_by_any_of(store: Store) -> None:
    kept = store.tenant(A).sessions
    new = await kept.insert(session(expires_at=NOW))
    parked = await kept.insert(session(state=SessionState.PARKED, created_at=NOW + timedelta(seconds=1)))
    assert await kept.list(state=SessionState.PARKED) == [parked]
    assert await kept.list(state={SessionState.PARKED, SessionState.NEW}) == [new, parked]
    assert await kept.list(state=frozenset()) == []
    assert await kept.list(expires_at=None) == [parked]
    assert await kept.list(expires_at=NOW) == [new]
    assert await kept.find(state=SessionState.LOST) is None
    assert await kept.count(state=SessionState.NEW, key=new.key) == 1
    for wrong in ("env", "nothing"):
        with pytest.raises(Invalid) as caught:
            await kept.find(**{wrong: 1})
        assert caught.value.code == "no_such_field"


@pytest.mark.parametrize("limit", [0, -1, 1001])
async def test_a_page_is_bounded(store: Store, limit: int) -> None:
    with pytest.raises(Invalid):
        await store.tenant(A).sessions.list(limit=limit)


async def test_delete_may_be_repeated(store: Store) -> None:
    kept = store.tenant(A).users
    record = await kept.insert(user())
    for _ in range(2):
        await kept.delete(record.id)
        assert await kept.count() == 0


@pytest.mark.parametrize(
    "record",
    [
        session(reason="half \ud800"),
        session(reason="nul \0"),
        session(created_at=NOW.replace(tzinfo=None)),
        session(epoch=1 << 63),
        invocation(headers={"n": float("nan")}),
        invocation(headers={"n": object()}),
    ],
)
async def test_what_cannot_be_stored_is_refused(store: Store, record: Any) -> None:
    scope = store.tenant(A)
    kept: Any = scope.invocations if record.id.startswith("inv") else scope.sessions
    with pytest.raises(Invalid) as caught:
        await kept.insert(record)
    assert caught.value.code == "not_storable"
