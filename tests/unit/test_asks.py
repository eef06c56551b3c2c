"""What it takes to answer the gateway again about a session that is awake: nothing that anybody else is asked."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dovecote.control.sessions import find_caller
from dovecote.errors import Gone, NotFound, Unauthenticated
from dovecote.gateway.directory import Directory
from dovecote.gateway.question import Answer, Ask, Headers
from dovecote.model.naming import Found
from dovecote.model.records import Session
from dovecote.model.serving import Affinity, Mode, Sharing
from dovecote.store import Store
from tests.unit.control_world import START, World, world_on
from tests.unit.memory_host import Clock, MemoryHost

pytestmark = pytest.mark.anyio

OWN, SEATS = Sharing(), Sharing(sessions=5)
BOTH = pytest.mark.parametrize("sharing", [OWN, SEATS], ids=["own", "seats"])


@pytest.fixture
async def host() -> MemoryHost:
    return MemoryHost(Clock())


@pytest.fixture
async def world(host: MemoryHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    async with world_on(host, tmp_path, monkeypatch) as world:
        yield world


class Asking:
    """The gateway, asking about one function of the first tenant."""

    def __init__(self, world: World, secret: str) -> None:
        self._directory = Directory(world.tenancy, world.routing, world.functions, world.apps)
        self._secret = secret

    async def ask(self, key: str = "one", *, user: str = "ann", failed: str | None = None) -> Answer:
        ask = Ask(
            "function", "", "chat", None, self._secret, user, "GET", "/", Headers(), Found(Mode.HEADER, key), failed
        )
        return await self._directory.resolve(ask)


async def asking(world: World, sharing: Sharing, affinity: Affinity = Affinity()) -> Asking:
    await world.functions.create(world.tenant, "chat", start=START, sharing=sharing, affinity=affinity)
    return Asking(world, (await world.tenancy.create_key(world.tenant, "of the test")).secret)


@contextmanager
def unread(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing may be read from the store or written to it inside."""

    async def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the store was asked")

    with monkeypatch.context() as patch:
        patch.setattr(store._database, "run", refuse)  # type: ignore[attr-defined]
        yield


async def session_of(world: World, answer: Answer) -> Session:
    assert answer.session_id is not None
    return await world.sessions.get(world.tenant, answer.session_id)


@BOTH
async def test_asking_again_reads_no_record_and_looks_at_no_port(
    world: World, host: MemoryHost, sharing: Sharing, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = await asking(world, sharing)
    first = await gateway.ask()
    before = len(host.calls)
    with unread(world.store, monkeypatch):
        assert [await gateway.ask() for _ in range(3)] == [first] * 3
    assert len(host.calls) == before


@BOTH
async def test_another_users_key_is_another_session_however_warm_the_first_is(world: World, sharing: Sharing) -> None:
    gateway = await asking(world, sharing)
    ids = {user: (await gateway.ask(user=user)).session_id for user in ("ann", "bob")}
    assert ids["ann"] != ids["bob"]
    for user in ("ann", "bob", "ann"):
        assert (await gateway.ask(user=user)).session_id == ids[user]


@BOTH
async def test_an_address_that_refused_is_looked_at_and_its_server_started_again(
    world: World, host: MemoryHost, sharing: Sharing
) -> None:
    gateway = await asking(world, sharing)
    first = await gateway.ask()
    (instance,) = host.instances.values()
    await host.end_server(instance)
    assert (await gateway.ask()).address == first.address  # nobody knows yet: the request itself finds out
    again = await gateway.ask(failed=first.address)
    assert again.address == first.address
    assert instance.open_ports == {START.port}
    assert sum(command.is_running for command in instance.commands) == 1


@BOTH
async def test_a_session_that_died_unnoticed_is_served_elsewhere_once_its_address_refused(
    world: World, host: MemoryHost, sharing: Sharing
) -> None:
    gateway = await asking(world, sharing)
    first = await gateway.ask()
    (instance,) = host.instances.values()
    await host.die(instance.claim.owner, is_told=False)
    again = await gateway.ask(failed=first.address)
    assert again.session_id == first.session_id
    assert again.address != first.address


@BOTH
async def test_a_session_that_has_ended_is_not_found_by_its_key(world: World, sharing: Sharing) -> None:
    gateway = await asking(world, sharing)
    first = await gateway.ask()
    await world.sessions.delete(world.tenant, (await session_of(world, first)).id)
    assert (await gateway.ask()).session_id != first.session_id


@BOTH
async def test_an_ended_session_that_may_not_be_used_again_is_refused(world: World, sharing: Sharing) -> None:
    gateway = await asking(world, sharing, Affinity(refuses_reuse=True))
    first = await gateway.ask()
    await world.sessions.delete(world.tenant, (await session_of(world, first)).id)
    with pytest.raises(Gone):
        await gateway.ask()


@BOTH
async def test_a_parked_session_is_found_by_its_key_and_wakes(world: World, sharing: Sharing) -> None:
    gateway = await asking(world, sharing)
    first = await gateway.ask()
    await world.sessions.park(world.tenant, (await session_of(world, first)).id)
    assert (await gateway.ask()).session_id == first.session_id


@BOTH
async def test_after_a_restart_it_is_the_same_session(world: World, sharing: Sharing) -> None:
    gateway = await asking(world, sharing)
    first = await gateway.ask()
    await world.restart()
    again = await Asking(world, gateway._secret).ask()
    assert (again.session_id, again.address) == (first.session_id, first.address)


async def test_a_change_of_a_function_holds_for_the_next_call(world: World) -> None:
    gateway = await asking(world, OWN)
    assert (await gateway.ask()).affinity == Affinity()
    function = await world.functions.get(world.tenant, "chat")
    changed = Affinity(header="x-chat-id")
    await world.functions.update(function, affinity=changed)
    assert (await gateway.ask()).affinity == changed


async def test_a_function_that_was_removed_is_called_no_more(world: World) -> None:
    gateway = await asking(world, OWN)
    await gateway.ask()
    await world.functions.remove(world.tenant, (await world.functions.get(world.tenant, "chat")).id)
    with pytest.raises(NotFound):
        await gateway.ask()


async def test_a_function_that_is_no_longer_public_is_closed_at_once(world: World) -> None:
    function = await world.functions.create(world.tenant, "open", start=START, is_public=True)
    assert not (await find_caller(world.tenancy, world.functions, function.slug, "")).is_known
    await world.functions.update(function, is_public=False)
    with pytest.raises(Unauthenticated):
        await find_caller(world.tenancy, world.functions, function.slug, "")


async def test_a_rollback_holds_for_the_next_call(world: World) -> None:
    await asking(world, OWN)
    first = await world.functions.called(world.tenant, "chat")
    await world.functions.update(first, spec="nano")
    second = await world.functions.called(world.tenant, "chat")
    assert second.revision_id != first.revision_id
    await world.functions.rollback(second, 1)
    assert (await world.functions.called(world.tenant, "chat")).revision_id == first.revision_id
