"""Connections from a host to a port of one instance: what keeps a session awake, and how one ends."""

from __future__ import annotations

import asyncio
import socket
from contextlib import AsyncExitStack

import pytest

from dovecote.control import sandboxes
from dovecote.errors import DovecoteError, Failed, NoCapacity, NotFound
from dovecote.host.instances import Connection
from dovecote.model.records import Session
from dovecote.model.states import SessionState
from tests.unit.control_world import START, World
from tests.unit.memory_instance import MemoryInstance

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("lost_sessions_are_tried_at_once")]

S = SessionState


def its(world: World, session: Session) -> MemoryInstance:
    found = world.host.of(session.id)
    assert found is not None
    return found


async def test_a_port_is_reached_while_something_listens_and_its_session_stays_awake(world: World) -> None:
    session = await world.sessions.create(world.tenant)
    instance = its(world, session)
    with pytest.raises(Failed) as closed:
        async with world.sandboxes.dial(world.tenant, session.id, 9000):
            pass
    assert closed.value.code == "port_closed"
    instance.open_ports.add(9000)
    async with world.sandboxes.dial(world.tenant, session.id, 9000) as connection:
        await connection.send(b"hello")
        assert instance.dialed[0].recv(10) == b"hello"
        world.clock.advance(100)
        await world.tick()
        assert (await world.sessions.get(world.tenant, session.id)).state is S.READY
    assert instance.dialed[0].recv(10) == b""
    world.clock.advance(100)
    await world.tick()
    assert (await world.sessions.get(world.tenant, session.id)).state is S.FROZEN


async def test_a_port_on_the_loopback_is_dialed_there(world: World) -> None:
    session = await world.sessions.create(world.tenant)
    its(world, session).local_ports.add(9000)
    async with world.sandboxes.dial(world.tenant, session.id, 9000) as connection:
        its(world, session).dialed[0].sendall(b"local")
        assert await connection.receive() == b"local"


async def test_a_parked_session_wakes_and_its_recorded_server_is_started(world: World) -> None:
    session = await world.sessions.create(world.tenant)
    await world.sessions.set_start(world.tenant, session.id, START)
    await world.sessions.park(world.tenant, session.id)
    async with world.sandboxes.dial(world.tenant, session.id, START.port):
        assert len(world.host.starts()) == 1
        assert len(its(world, session).dialed) == 1


async def test_one_session_has_so_many_connections_and_others_theirs(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandboxes, "MOST_CONNECTIONS", 2)
    one, other = [await world.sessions.create(world.tenant) for _ in range(2)]
    for session in (one, other):
        its(world, session).open_ports.add(9000)
    for _ in range(2):  # a refusal takes nobody's place
        async with AsyncExitStack() as stack:
            for _ in range(2):
                await stack.enter_async_context(world.sandboxes.dial(world.tenant, one.id, 9000))
            with pytest.raises(NoCapacity) as caught:
                await stack.enter_async_context(world.sandboxes.dial(world.tenant, one.id, 9000))
            assert caught.value.code == "too_many"
            await stack.enter_async_context(world.sandboxes.dial(world.tenant, other.id, 9000))


async def test_nobody_dials_into_the_session_of_another_tenant(world: World) -> None:
    session = await world.sessions.create(world.tenant)
    its(world, session).open_ports.add(9000)
    with pytest.raises(NotFound):
        async with world.sandboxes.dial(world.other, session.id, 9000):
            pass
    assert its(world, session).dialed == []


# -- one connection


@pytest.fixture
async def ends() -> tuple[Connection, socket.socket, list[Connection]]:
    """Ours, the server's, and those that were left."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        here = socket.create_connection(listener.getsockname())
        there = listener.accept()[0]
    here.setblocking(False)
    there.settimeout(10)
    left: list[Connection] = []
    return Connection(here, left.append), there, left


Ends = tuple[Connection, socket.socket, list[Connection]]


async def test_each_side_ends_by_itself(ends: Ends) -> None:
    connection, server, left = ends
    await connection.send(b"question")
    connection.end()
    assert (server.recv(100), server.recv(100)) == (b"question", b"")
    server.sendall(b"answer")
    server.close()
    assert (await connection.receive(), await connection.receive()) == (b"answer", b"")
    connection.close()
    assert left == [connection]


async def test_who_leaves_without_an_end_is_seen_to_break_off(ends: Ends) -> None:
    connection, server, _ = ends
    connection.close()
    with pytest.raises(ConnectionResetError):
        server.recv(1)


async def test_the_end_of_the_instance_wakes_who_waits(ends: Ends) -> None:
    connection, server, _ = ends
    receiving = asyncio.ensure_future(connection.receive())
    sending = asyncio.ensure_future(connection.send(bytes(64 << 20)))
    await asyncio.sleep(0)
    connection.cut()
    for waiting in (receiving, sending):
        with pytest.raises(DovecoteError) as broken:
            await asyncio.wait_for(waiting, 10)
        assert broken.value.code == "connection_reset"
    connection.close()
    server.close()
