"""Who may: first run, keys, users. On SQLite in a temporary file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from dovecote.control.tenancy import NewKey, Principal, Tenancy
from dovecote.control.tenancy.tenancy import KEY_TTL
from dovecote.errors import Conflict, Failed, Invalid, NotFound, Unauthenticated
from dovecote.store import Store, open_store

pytestmark = pytest.mark.anyio


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = open_store(f"sqlite:///{tmp_path}/store.sqlite")
    await store.open()
    await store.migrate()
    yield store
    await store.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tenancy(store: Store, clock: Clock) -> Tenancy:
    return Tenancy(store, clock=clock)


@pytest.fixture
async def first(tenancy: Tenancy) -> NewKey:
    made = await tenancy.first_run()
    assert made is not None
    return made


async def test_the_first_run_makes_a_tenant_and_a_key_that_works(store: Store, tenancy: Tenancy) -> None:
    made = await tenancy.first_run()
    assert made is not None
    assert made.secret.startswith("dvc_")
    assert len(made.secret) == 4 + 52
    [tenant] = await store.everyone().tenants.list()
    assert tenant.name == "default"
    assert await tenancy.authenticate(made.secret) == Principal(tenant.id, made.key.id)


async def test_the_first_run_happens_once(store: Store, tmp_path: Path) -> None:
    """However often it is repeated, and by several processes at once."""
    other = open_store(f"sqlite:///{tmp_path}/store.sqlite")
    await other.open()
    tries = await asyncio.gather(*(Tenancy(each).first_run() for _ in range(5) for each in (store, other)))
    await other.close()
    assert len([made for made in tries if made]) == 1
    assert await Tenancy(store).first_run() is None
    assert (await store.everyone().tenants.count(), await store.everyone().keys.count()) == (1, 1)


async def test_the_secret_is_stored_nowhere(first: NewKey, store: Store, tmp_path: Path) -> None:
    assert first.key.digest == blake3(first.secret.encode()).hexdigest()
    assert first.secret not in repr(first)
    await store.close()
    assert all(first.secret[4:].encode() not in file.read_bytes() for file in tmp_path.iterdir())


@pytest.mark.parametrize(
    ("secret", "code"),
    [("", "no_key"), ("dvc_" + "a" * 52, "bad_key"), ("dvc_short", "bad_key"), ("值\0\ud800", "bad_key")],
)
async def test_a_wrong_key_is_refused(first: NewKey, tenancy: Tenancy, secret: str, code: str) -> None:
    with pytest.raises(Unauthenticated) as caught:
        await tenancy.authenticate(secret)
    assert caught.value.code == code
    assert caught.value.hint
    assert secret == "" or secret not in str(caught.value)


async def test_a_warm_key_asks_nobody(first: NewKey, store: Store, clock: Clock, tenancy: Tenancy) -> None:
    known = await tenancy.authenticate(first.secret)
    await store.everyone().keys.delete(first.key.id)
    clock.now += KEY_TTL - 0.001
    assert await tenancy.authenticate(first.secret) == known
    clock.now += 0.001
    with pytest.raises(Unauthenticated):
        await tenancy.authenticate(first.secret)


async def test_a_key_ends_here_also_where_the_answer_of_its_revocation_was_lost(
    store: Store, tenancy: Tenancy, first: NewKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = type(store.tenant(first.key.tenant_id).keys)
    swap = kind.swap

    async def lost(self: Any, record: Any) -> Any:
        await swap(self, record)
        raise Failed("the connection broke", code="store_unreachable")

    await tenancy.authenticate(first.secret)
    monkeypatch.setattr(kind, "swap", lost)
    with pytest.raises(Failed):
        await tenancy.revoke_key(first.key.tenant_id, first.key.id)
    with pytest.raises(Unauthenticated):
        await tenancy.authenticate(first.secret)


async def test_a_revoked_key_ends_at_once_here_and_elsewhere_within_its_time(
    first: NewKey, store: Store, clock: Clock, tenancy: Tenancy
) -> None:
    elsewhere = Tenancy(store, clock=clock)
    for each in (tenancy, elsewhere):
        await each.authenticate(first.secret)
    for _ in range(2):
        assert (await tenancy.revoke_key(first.key.tenant_id, first.key.id)).revoked_at is not None
    with pytest.raises(Unauthenticated):
        await tenancy.authenticate(first.secret)
    clock.now += KEY_TTL
    with pytest.raises(Unauthenticated):
        await elsewhere.authenticate(first.secret)


async def test_keys_belong_to_their_tenant(first: NewKey, tenancy: Tenancy) -> None:
    other = await tenancy.create_tenant("other")
    second = await tenancy.create_key(first.key.tenant_id, "laptop")
    assert {key.id for key in await tenancy.list_keys(first.key.tenant_id)} == {first.key.id, second.key.id}
    with pytest.raises(NotFound):
        await tenancy.revoke_key(other.key.tenant_id, first.key.id)
    assert (await tenancy.authenticate(other.secret)).tenant_id != (await tenancy.authenticate(second.secret)).tenant_id
    with pytest.raises(NotFound):
        await tenancy.create_key("ten_nobody", "laptop")
    with pytest.raises(Conflict):
        await tenancy.create_tenant("other")


async def test_a_user_is_made_once(first: NewKey, store: Store, tenancy: Tenancy) -> None:
    """Requests at once get the same one; another tenant's of that name is another."""
    tenant = first.key.tenant_id
    got = await asyncio.gather(*(tenancy.user(tenant, "u1", "vip") for _ in range(20)))
    assert len({user.id for user in got}) == 1
    assert got[0].tier == "vip"
    assert await tenancy.user(tenant, "u1", "svip") == got[0]
    other = await tenancy.create_tenant("other")
    assert (await tenancy.user(other.key.tenant_id, "u1")).id != got[0].id
    assert await tenancy.list_users(tenant) == [got[0]]


async def test_a_tier_is_changed_by_all_who_want_to(first: NewKey, tenancy: Tenancy) -> None:
    tenant = first.key.tenant_id
    made = await tenancy.user(tenant, "u1")
    await asyncio.gather(*(tenancy.set_tier(tenant, "u1", tier) for tier in ("vip", "svip", "vip")))
    assert await tenancy.set_tier(tenant, "u1", "svip") == await tenancy.user(tenant, "u1")
    assert (await tenancy.user(tenant, "u1")).tier == "svip"
    assert (await tenancy.user(tenant, "u1")).id == made.id
    with pytest.raises(NotFound):
        await tenancy.set_tier(tenant, "u2", "vip")


@pytest.mark.parametrize("name", ["", "x" * 201, "a\nb", "a\0", "\ud800"])
async def test_names_that_cannot_be(first: NewKey, tenancy: Tenancy, name: str) -> None:
    tenant: Any = first.key.tenant_id
    for make in (tenancy.user, tenancy.create_key):
        with pytest.raises(Invalid) as caught:
            await make(tenant, name)
        assert caught.value.code == "malformed_name"


async def test_names_and_tiers_that_can_be(first: NewKey, tenancy: Tenancy) -> None:
    for name in ("x", "王 小明", "a@b.example", "y" * 200):
        assert (await tenancy.user(first.key.tenant_id, name)).name == name
    with pytest.raises(NotFound) as caught:
        await tenancy.user(first.key.tenant_id, "new", "gold")
    assert caught.value.code == "no_such_tier"
