"""Sessions over a host in memory and a real store: how they end, and whose they are."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path

import pytest

from dovecote.control.fleet import Command
from dovecote.control.sessions import Routed
from dovecote.errors import Conflict, DovecoteError, Failed, Gone, NotFound
from dovecote.model.records import Session, Start
from dovecote.model.serving import Sharing
from dovecote.model.sizes import NetworkPolicy
from dovecote.model.states import SessionState
from tests.unit.control_world import AT_ONCE, START, MakeWorld, World
from tests.unit.memory_host import Clock, MemoryHost
from tests.unit.memory_instance import Left

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("lost_sessions_are_tried_at_once")]


# -- ending


@pytest.mark.parametrize("sharing", [Sharing(), Sharing(sessions=2)])
async def test_what_another_server_has_ended_is_served_no_longer(
    world: World, tmp_path: Path, sharing: Sharing
) -> None:
    """Two servers on one store: the one that has the instance asks no record while it is used."""
    await world.functions.create(world.tenant, "chat", start=START, sharing=sharing)
    session = (await world.call("chat", user="ann", key="a")).session
    assert session is not None
    await world.tick()
    there = World(world.store, MemoryHost(world.clock), world.clock, world.tenant, world.other, tmp_path / "there")
    await there.sessions.delete(world.tenant, session.id)
    world.clock.advance(9)
    await world.call("chat", user="ann", key="a")
    world.clock.advance(1)
    await world.tick()
    assert world.sessions.live.get(session.id) is None
    assert world.sessions.seated(session.id) is None
    assert world.host.of(session.id) is None
    again = (await world.call("chat", user="ann", key="a")).session
    assert again is not None
    assert again.id != session.id
    await there.leave()


async def test_deleting_again_ends_what_lives_here_of_a_session_that_another_server_has_ended(
    world: World, tmp_path: Path
) -> None:
    session = await world.sessions.create(world.tenant, key="u42")
    there = World(world.store, MemoryHost(world.clock), world.clock, world.tenant, world.other, tmp_path / "there")
    await there.sessions.delete(world.tenant, session.id)
    assert len(world.host.instances) == 1
    await world.sessions.delete(world.tenant, session.id)
    assert not world.host.instances
    assert world.sessions.live.get(session.id) is None
    await there.leave()


async def test_deleting_may_be_repeated_and_frees_instance_files_and_key(world: World) -> None:
    session = await world.sessions.create(world.tenant, key="u42")
    with pytest.raises(Conflict):
        await world.sessions.create(world.tenant, key="u42")
    await world.sessions.delete(world.tenant, session.id)
    await world.sessions.delete(world.tenant, session.id)
    assert not world.host.instances
    assert not world.host.left
    ended = await world.record(session)
    assert (ended.state, ended.instance_id) == (SessionState.ENDED, None)
    with pytest.raises(Gone):
        await world.sessions.wake(world.tenant, session.id)
    assert (await world.sessions.create(world.tenant, key="u42")).id != session.id


async def test_deleting_a_session_deletes_its_orphans(world: World) -> None:
    session = await world.sessions.create(world.tenant)
    other = await world.sessions.create(world.tenant)
    for each in (session, other):
        world.host.orphans[each.id] = [Left("disk", {"a": b"of another life"}, 1, 1)]
    await world.sessions.park(world.tenant, session.id)
    assert session.id in world.host.orphans
    await world.sessions.delete(world.tenant, session.id)
    assert list(world.host.orphans) == [other.id]


async def test_deleting_frees_what_a_dead_instance_left(world: World) -> None:
    session = await world.sessions.create(world.tenant)
    await world.host.die(session.id)
    await world.becomes(session, SessionState.LOST)
    await world.sessions.delete(world.tenant, session.id)
    assert not world.host.left


async def test_deleting_again_frees_what_the_first_time_could_not(on: MakeWorld) -> None:
    async with on(MemoryHost(Clock())) as world:
        session = await world.sessions.create(world.tenant)
        world.host.refuse("stop", Failed("busy", code="internal"), times=1)
        with pytest.raises(Failed):
            await world.sessions.delete(world.tenant, session.id)
        await world.sessions.delete(world.tenant, session.id)
        assert not world.host.instances


async def _parked(world: World) -> Session:
    session = await world.sessions.create(world.tenant, idle_after=AT_ONCE)
    return await world.sessions.park(world.tenant, session.id)


async def _lost(world: World) -> Session:
    session = await world.sessions.create(world.tenant, idle_after=AT_ONCE)
    await world.host.die(session.id)
    return await world.becomes(session, SessionState.LOST)


async def _fresh(world: World) -> Session:
    return await world.sessions.create(world.tenant, wake=False)


async def _ready(world: World) -> Session:
    return await world.sessions.create(world.tenant)


@pytest.mark.parametrize("make", [_fresh, _parked, _ready])
async def test_a_session_whose_time_is_over_ends(world: World, make: Callable[[World], Awaitable[Session]]) -> None:
    session = await make(world)
    await world.sessions.update(world.tenant, session.id, ttl=AT_ONCE)
    if make is not _ready:
        with pytest.raises(Gone) as over:
            await world.sessions.wake(world.tenant, session.id)
        assert over.value.code == "session_expired"
    await world.tick()
    await world.tick()
    assert (await world.record(session)).state is SessionState.ENDED
    assert not world.host.instances
    assert not world.host.left


async def test_a_lost_session_whose_time_is_over_ends(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    session = await _lost(world)
    await world.sessions.update(world.tenant, session.id, ttl=AT_ONCE)
    looked = asyncio.Event()
    park = world.sessions.park

    async def park_late(tenant_id: str, session_id: str, *, reason: str, unless_used_since: float | None) -> Session:
        await looked.wait()  # others are parked before it
        return await park(tenant_id, session_id, reason=reason, unless_used_since=unless_used_since)

    monkeypatch.setattr(world.sessions, "park", park_late)
    for _ in range(3):
        looked.clear()
        await world.keeping.tick()
        looked.set()
        await world.keeping.stop()
    assert (await world.record(session)).state is SessionState.ENDED
    assert not world.host.left


# -- tenants and functions

CROSSINGS: dict[str, Callable[[World, str, Session], Awaitable[object]]] = {
    "get": lambda w, t, s: w.sessions.get(t, s.id),
    "update": lambda w, t, s: w.sessions.update(t, s.id, idle_after=timedelta(hours=1)),
    "set_start": lambda w, t, s: w.sessions.set_start(t, s.id, START),
    "set_network": lambda w, t, s: w.sessions.set_network(t, s.id, NetworkPolicy(internet=False)),
    "delete": lambda w, t, s: w.sessions.delete(t, s.id),
    "wake": lambda w, t, s: w.sessions.wake(t, s.id),
    "freeze": lambda w, t, s: w.sessions.freeze(t, s.id),
    "park": lambda w, t, s: w.sessions.park(t, s.id),
    "save": lambda w, t, s: w.sessions.save(t, s.id),
    "instance": lambda w, t, s: w.sessions.instance(t, s.id),
    "read_file": lambda w, t, s: anext(aiter(w.sandboxes.read_file(t, s.id, "/home/user/note"))),
    "run": lambda w, t, s: w.sandboxes.run(t, s.id, argv=["id"]),
    "publish": lambda w, t, s: w.apps.publish(t, s.id, start=START),
    "revision": lambda w, t, s: w.functions.revision(t, s.revision_id),
    "route_function": lambda w, t, s: w.call("web", tenant=t, user="u", key=s.key),
    "create": lambda w, t, s: w.sessions.create(t, function="web"),
    "list": lambda w, t, s: w.sessions.list(t, function="web"),
}


@pytest.mark.parametrize("state", ["ready", "frozen", "parked"])
@pytest.mark.parametrize("call", CROSSINGS)
async def test_another_tenants_session_is_not_there(world: World, call: str, state: str) -> None:
    await world.functions.create(world.tenant, "web", start=START)
    session = await world.sessions.create(world.tenant, function="web", key="u42")
    await world.write(session, b"private")
    if state == "frozen":
        await world.sessions.freeze(world.tenant, session.id)
    elif state == "parked":
        await world.sessions.park(world.tenant, session.id)
    before, calls = await world.sessions.get(world.tenant, session.id), len(world.host.calls)
    with pytest.raises(NotFound):
        await CROSSINGS[call](world, world.other, session)
    assert await world.sessions.get(world.tenant, session.id) == before
    assert len(world.host.calls) == calls


async def test_lists_and_removals_stay_in_their_tenant(world: World) -> None:
    function = await world.functions.create(world.tenant, "web", start=START)
    session = await world.sessions.create(world.tenant, function="web", user="ann")
    assert await world.sessions.list(world.other) == []
    assert await world.sessions.list(world.other, user="ann") == []
    assert await world.functions.list(world.other) == []
    await world.functions.remove(world.other, function.id)
    assert [each.id for each in await world.functions.list(world.tenant)] == [function.id]
    assert [each.id for each in await world.sessions.list(world.tenant)] == [session.id]


async def test_fifty_requests_with_one_unknown_key_make_one_session(world: World) -> None:
    await world.functions.create(world.tenant, "web", start=START)
    routes = await asyncio.gather(*(world.call("web", user="ann", key="c7") for _ in range(50)))
    assert len({_id(routed) for routed in routes}) == 1
    assert {routed.address for routed in routes} == {"10.201.0.1:8000"}
    assert len(await world.sessions.list(world.tenant)) == 1
    assert len(world.host.claims) == 1
    assert len(world.host.starts()) == 1


async def test_one_key_is_another_session_for_each_user_and_function(world: World) -> None:
    for name in ("one", "two"):
        await world.functions.create(world.tenant, name, start=START)
    routes = [await world.call(name, user=user, key="c7") for name in ("one", "two") for user in ("ann", "bob")]
    assert len({_id(routed) for routed in routes}) == 4


async def test_a_keyless_call_of_a_function_without_a_start_makes_no_session(world: World) -> None:
    await world.functions.create(world.tenant, "files")
    with pytest.raises(DovecoteError) as refused:
        await world.call("files", user="ann", key=None)
    assert refused.value.code == "port_closed"
    assert await world.sessions.list(world.tenant) == []
    assert world.host.claims == []


async def test_commands_see_the_variables_of_template_and_session(world: World) -> None:
    session = await world.sessions.create(world.tenant, env={"TOKEN": "t"})
    await world.sandboxes.start(world.tenant, session.id, argv=["env"], env={"MINE": "1"})
    instance = world.host.of(session.id)
    assert instance is not None
    command: Command = instance.commands[0].command
    assert (command.user, command.cwd) == ("user", "/home/user")
    assert command.env == {"LANG": "C.UTF-8", "TOKEN": "t", "MINE": "1"}


@pytest.mark.parametrize(("given", "seen"), [("app", "/home/user/app"), ("/srv", "/srv"), (None, "/home/user")])
async def test_a_relative_directory_starts_in_the_home(world: World, given: str | None, seen: str) -> None:
    session = await world.sessions.create(world.tenant)
    await world.sandboxes.start(world.tenant, session.id, argv=["ls"], cwd=given)
    await world.sessions.set_start(world.tenant, session.id, Start("serve", 80, given or ""))
    await world.sessions.wake(world.tenant, session.id)
    instance = world.host.of(session.id)
    assert instance is not None
    assert [each.command.cwd for each in instance.commands] == [seen, seen]


def _id(routed: Routed) -> str:
    assert routed.session is not None
    return routed.session.id
