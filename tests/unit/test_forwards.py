"""TCP over a WebSocket: what its frames mean, who waits for whom, and what the client makes of it on this machine."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx
import pytest
import typer
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import ServerConnection, serve

from dovecote.api.rest.forwards import WINDOW
from dovecote.cli.port import parse_local
from dovecote.errors import Failed
from dovecote.sdk import AsyncDovecote, BadRequest, Dovecote, DovecoteError, Session
from dovecote.sdk._forwards import AsyncForward, Forward
from dovecote.sdk._settings import Access
from tests.unit.fake_rooms import KEY, OTHER_KEY, Rooms

BEARER = {"authorization": f"Bearer {KEY}"}
END = json.dumps({"type": "end"})


@pytest.fixture
def session(url: str) -> Iterator[Session]:
    with Dovecote(api_key=KEY, url=url) as client:
        yield client.sessions.create()


@contextmanager
def carried(url: str, session: Session, port: object = 8000, **options: Any) -> Iterator[ClientConnection]:
    options.setdefault("additional_headers", BEARER)
    where = url.replace("http", "ws", 1) + f"/v1/sessions/{session.id}/ports/{port}/tcp"
    with connect(where, open_timeout=5, close_timeout=5, **options) as found:
        yield found


def refused(url: str, session: Session, port: object = 8000, **options: Any) -> tuple[int, str]:
    with pytest.raises(InvalidStatus) as caught, carried(url, session, port, **options):
        pass
    response = caught.value.response
    return response.status_code, json.loads(response.body)["error"]["code"]


def until(is_so: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def broken(connection: ClientConnection) -> dict[str, Any]:
    """The error that it ends with."""
    last: str | bytes = b""
    try:
        while True:
            last = connection.recv(timeout=5)
    except ConnectionClosed:
        found: dict[str, Any] = json.loads(last)
        assert found["type"] == "error"
        return found


# -- on the wire


def test_bytes_go_both_ways_and_each_side_ends_by_itself(rooms: Rooms, url: str, session: Session) -> None:
    with carried(url, session) as connection:
        connection.send(b"\x00\xffhello")
        assert connection.recv(timeout=5) == b"\x00\xffhello"
        connection.send(b"")
        connection.send(b"last")
        connection.send(END)
        assert connection.recv(timeout=5) == b"last"
        assert json.loads(connection.recv(timeout=5)) == {"type": "end"}
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv(timeout=5)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1000
    assert rooms.sandboxes.connections[0].has_ended
    until(lambda: rooms.sandboxes.connections[0].is_closed)


def test_who_may_not_and_what_is_not_there_is_refused_before_it_opens(rooms: Rooms, url: str, session: Session) -> None:
    assert refused(url, session, 8001) == (502, "port_closed")
    assert refused(url, session, additional_headers={"authorization": f"Bearer {OTHER_KEY}"}) == (
        404,
        "no_such_session",
    )
    assert refused(url, session, additional_headers={})[0] == 401
    assert refused(url, session, additional_headers=BEARER | {"origin": "http://evil.example"})[0] == 403
    for port in (0, 65536, "80a", "%20", "-1"):
        assert refused(url, session, port) == (400, "invalid"), port
    assert rooms.sandboxes.connections == []


def test_the_client_is_told_what_was_taken_and_may_not_send_beyond(rooms: Rooms, url: str, session: Session) -> None:
    piece = bytes(64 << 10)
    with carried(url, session) as connection:
        for _ in range(WINDOW // 4 // len(piece)):
            connection.send(piece)
        found = b""
        told = None
        while told is None or len(found) < WINDOW // 4:
            message = connection.recv(timeout=5)
            if isinstance(message, bytes):
                found += message
            else:
                told = json.loads(message)
        assert told == {"type": "seen", "bytes": WINDOW // 4}
    rooms.sandboxes.is_deaf_inside = True
    with carried(url, session) as connection:
        for _ in range(WINDOW // len(piece) + 1):
            connection.send(piece)
        assert broken(connection)["error"]["code"] == "too_large"
    until(lambda: rooms.sandboxes.connections[1].is_closed)


def test_frames_that_wait_are_kept_in_one_piece(rooms: Rooms, url: str, session: Session) -> None:
    """Else a window of tiny ones would be a hundred times as much memory."""
    rooms.sandboxes.is_deaf_inside = True
    with carried(url, session) as connection:
        inside = rooms.sandboxes.connections[0]
        for number in range(1000):
            connection.send(bytes([number % 256]))
        connection.send(END)
        assert connection.ping().wait(5)
        inside.is_deaf = False
        until(lambda: inside.has_ended)
        assert inside.took == bytes(number % 256 for number in range(1000))
        assert inside.sends < 10


def test_a_client_that_takes_nothing_is_sent_a_window_at_most(rooms: Rooms, url: str, session: Session) -> None:
    piece = bytes(64 << 10)
    with carried(url, session) as connection:
        inside = rooms.sandboxes.connections[0]
        for _ in range(2 * WINDOW // len(piece)):
            inside._echoes.put_nowait(piece)
        got = 0
        while got < WINDOW:
            message = connection.recv(timeout=5)
            assert isinstance(message, bytes)
            got += len(message)
        with pytest.raises(TimeoutError):
            connection.recv(timeout=0.3)
        connection.send(json.dumps({"type": "seen", "bytes": len(piece)}))
        assert connection.recv(timeout=5) == piece


@pytest.mark.parametrize("frame", ["{", '{"type":"jump"}', '{"type":"seen","bytes":-1}', '"x"', "[" * 3000])
def test_a_frame_that_makes_no_sense_is_one_clear_error(rooms: Rooms, url: str, session: Session, frame: str) -> None:
    with carried(url, session) as connection:
        connection.send(frame)
        assert broken(connection)["error"]["code"] in ("invalid", "too_large")
    until(lambda: rooms.sandboxes.connections[0].is_closed)


def test_nothing_comes_after_the_end(rooms: Rooms, url: str, session: Session) -> None:
    rooms.sandboxes.is_deaf_inside = True
    with carried(url, session) as connection:
        connection.send(b"waits")
        connection.send(END)
        connection.send(b"more")
        assert broken(connection)["error"]["code"] == "invalid"


def test_a_client_that_leaves_breaks_it_off_inside(rooms: Rooms, url: str, session: Session) -> None:
    with carried(url, session) as connection:
        connection.send(b"x")
        assert connection.recv(timeout=5) == b"x"
    until(lambda: rooms.sandboxes.connections[0].is_closed)
    assert not rooms.sandboxes.connections[0].has_ended


# -- on this machine


def conversation(address: tuple[str, int], content: bytes) -> bytes:
    """Sends all of it beside reading, ends, and reads to the end."""
    with socket.create_connection(address, 10) as one:
        one.settimeout(20)

        def say() -> None:
            one.sendall(content)
            one.shutdown(socket.SHUT_WR)

        talking = threading.Thread(target=say)
        talking.start()
        found = b"".join(iter(lambda: one.recv(1 << 16), b""))
        talking.join(10)
        return found


def test_a_port_of_this_machine_carries_many_connections_at_once(rooms: Rooms, session: Session) -> None:
    content = random.Random(7).randbytes(3 * WINDOW + 17)
    with session.forward(8000, on_problem=print) as forward:
        assert forward.address[0] == "127.0.0.1"
        with socket.create_connection(forward.address, 10) as first:
            first.settimeout(10)
            first.sendall(b"first")
            assert hashlib.sha256(conversation(forward.address, content)).digest() == hashlib.sha256(content).digest()
            assert first.recv(100) == b"first"
            until(lambda: rooms.sandboxes.connections[1].is_closed)
            assert not rooms.sandboxes.connections[0].is_closed
    until(lambda: rooms.sandboxes.connections[0].is_closed)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(forward.address, 10)


def test_nothing_is_lost_of_what_one_side_takes_after_the_other_has_ended(rooms: Rooms, session: Session) -> None:
    content = random.Random(8).randbytes(WINDOW // 2)
    rooms.sandboxes.is_deaf_inside = True
    with session.forward(8000) as forward, socket.create_connection(forward.address, 10) as one:
        one.settimeout(10)
        until(lambda: rooms.sandboxes.connections)
        inside = rooms.sandboxes.connections[0]
        inside._echoes.put_nowait(b"")  # the server inside ends first, and takes its time
        one.sendall(content)
        one.shutdown(socket.SHUT_WR)
        assert one.recv(1) == b""
        assert not inside.is_closed
        inside.is_deaf = False
        until(lambda: inside.is_closed)
        assert inside.has_ended
        assert hashlib.sha256(inside.took).digest() == hashlib.sha256(content).digest()


def test_what_comes_last_comes_whole_however_often(session: Session) -> None:
    content = random.Random(9).randbytes(WINDOW + 17)
    with session.forward(8000) as forward:
        for _ in range(10):
            assert hashlib.sha256(conversation(forward.address, content)).digest() == hashlib.sha256(content).digest()


def test_what_cannot_be_carried_is_reset_and_told(rooms: Rooms, session: Session) -> None:
    problems: list[DovecoteError] = []
    with session.forward(8001, on_problem=problems.append) as forward:
        assert _is_reset(forward.address)
        assert [(each.code, each.hint) for each in problems] == [("port_closed", "start a server there")]
    with (
        session.forward(8000, on_problem=problems.append) as forward,
        socket.create_connection(forward.address, 10) as one,
    ):
        one.settimeout(10)
        one.sendall(b"x")
        assert one.recv(10) == b"x"
        rooms.sandboxes.connections[0].fail(Failed("the connection broke", code="connection_reset"))
        with pytest.raises(ConnectionResetError):
            one.recv(10)
    assert problems[-1].code == "connection_reset"


def _is_reset(address: tuple[str, int]) -> bool:
    with socket.create_connection(address, 10) as one:
        one.settimeout(10)
        try:
            one.recv(1)
        except ConnectionResetError:
            return True
        return False


def test_who_breaks_off_here_breaks_off_inside(rooms: Rooms, session: Session) -> None:
    with session.forward(8000) as forward:
        one = socket.create_connection(forward.address, 10)
        one.settimeout(10)
        one.sendall(b"x")
        assert one.recv(1) == b"x"
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        one.close()
        until(lambda: rooms.sandboxes.connections[0].is_closed)
        assert not rooms.sandboxes.connections[0].has_ended


def test_an_address_that_is_taken_is_one_clear_error(session: Session) -> None:
    with session.forward(8000) as forward:
        second = session.forward(8000, local_port=forward.address[1])
        with pytest.raises(BadRequest) as caught, second:
            pass
    assert caught.value.code == "address_taken"


def test_a_name_with_several_addresses_is_listened_on_at_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where any port will do: each address would get another one."""
    look_up = socket.getaddrinfo

    def both(host: Any, *more: Any, **named: Any) -> Any:
        hosts = ("127.0.0.1", "127.0.0.2") if host == "two.example" else (host,)
        return [found for each in hosts for found in look_up(each, *more, **named)]

    async def act() -> int:
        async with AsyncForward(Access("http://127.0.0.1:1", KEY), "/tcp", "two.example", 0, None) as forward:
            assert forward._listener is not None
            return len(forward._listener.sockets)

    monkeypatch.setattr(socket, "getaddrinfo", both)
    assert asyncio.run(act()) == 1


def _end_its_thread(forward: Forward, *, then: Exception | None = None) -> None:
    def end() -> None:
        raise SystemExit("ended")

    assert forward._loop is not None
    forward._loop.call_soon_threadsafe(end)
    forward._thread.join(10)
    assert not forward._thread.is_alive()
    if then is not None:
        raise then


def test_a_forward_that_has_ended_by_itself_says_so_unless_its_block_has_failed(session: Session) -> None:
    with pytest.raises(SystemExit), session.forward(8000) as forward:
        _end_its_thread(forward)
    with pytest.raises(LookupError), session.forward(8000) as forward:
        _end_its_thread(forward, then=LookupError("of the block"))


NONSENSE = ["{", "[]", "{}", '"x"', '{"type":"seen"}', '{"type":"seen","bytes":"x"}', '{"type":"error","status":[]}']


@pytest.mark.parametrize("frame", NONSENSE)
def test_what_the_server_says_without_sense_is_told_as_a_lost_connection(url: str, frame: str) -> None:
    """Something between may answer for it."""
    problems: list[DovecoteError] = []

    def answer(connection: ServerConnection) -> None:
        connection.send(frame)
        with suppress(ConnectionClosed):
            connection.recv(timeout=5)

    with serve(answer, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        port = server.socket.getsockname()[1]
        access = Access(f"http://127.0.0.1:{port}", KEY)
        with Forward(access, "/tcp", "127.0.0.1", 0, problems.append) as forward:
            assert _is_reset(forward.address)
            until(lambda: problems)
        server.shutdown()
        thread.join(10)
    assert [each.code for each in problems] == ["connection_lost"]


def test_the_same_with_asyncio(rooms: Rooms, url: str) -> None:
    async def act() -> bytes:
        async with AsyncDovecote(api_key=KEY, url=url) as client:
            its = await client.sessions.create()
            async with its.forward(8000) as forward:
                reader, writer = await asyncio.open_connection(*forward.address)
                writer.write(b"hello")
                writer.write_eof()
                found = await asyncio.wait_for(reader.read(), 10)
                writer.close()
                return found

    assert asyncio.run(act()) == b"hello"
    httpx.get(f"{url}/healthz").raise_for_status()


def test_nothing_goes_on_for_a_connection_that_broke(rooms: Rooms, url: str) -> None:
    async def act() -> int:
        async with AsyncDovecote(api_key=KEY, url=url) as client:
            its = await client.sessions.create()
            async with its.forward(8000) as forward:
                before = len(asyncio.all_tasks())
                reader, writer = await asyncio.open_connection(*forward.address)
                writer.write(b"hello")
                assert await asyncio.wait_for(reader.read(5), 10) == b"hello"
                rooms.sandboxes.connections[0].fail(Failed("the connection broke", code="connection_reset"))
                with pytest.raises(ConnectionResetError):
                    await asyncio.wait_for(reader.read(5), 10)
                async with asyncio.timeout(10):
                    while len(asyncio.all_tasks()) > before:  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
                return len(asyncio.all_tasks()) - before

    assert asyncio.run(act()) <= 0


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("0", ("127.0.0.1", 0)),
        ("8000", ("127.0.0.1", 8000)),
        ("0.0.0.0:8000", ("0.0.0.0", 8000)),
        ("[::1]:80", ("::1", 80)),
        ("::1:80", ("::1", 80)),
    ],
)
def test_where_to_listen(text: str, where: tuple[str, int]) -> None:
    assert parse_local(text) == where


@pytest.mark.parametrize("text", ["", "x", "127.0.0.1", "65536", "1:", "-1", "²"])
def test_what_is_no_place_to_listen(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        parse_local(text)
