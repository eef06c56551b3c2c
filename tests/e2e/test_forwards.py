"""Ports of a sandbox on this machine: real servers inside, raw TCP through the gateway and the API."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from dovecote.sdk import Dovecote, DovecoteError, Session
from tests.e2e.installation import Installation, until

pytestmark = pytest.mark.e2e

MEGABYTE = random.Random(11).randbytes(1 << 20)
# Sends back what it gets. When that has ended it says how much it was, and ends; `RESET` makes it break off.
ECHO = """
import socket, struct, sys, threading
def serve(one):
    total = 0
    with one:
        while data := one.recv(65536):
            if data == b"RESET":
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return
            total += len(data)
            one.sendall(data)
        one.sendall(b"|%d" % total)
listener = socket.create_server((sys.argv[1], int(sys.argv[2])))
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""
# Sends without end and writes down how much it could send.
POUR = """
import socket, sys
listener = socket.create_server(("0.0.0.0", int(sys.argv[1])))
one, total = listener.accept()[0], 0
while True:
    total += one.send(bytes(65536))
    open("/tmp/poured.new", "w").write(str(total))
    __import__("os").replace("/tmp/poured.new", "/tmp/poured")
"""


@contextmanager
def serving(session: Session, address: str, port: int) -> Iterator[None]:
    session.files.write("/tmp/echo.py", ECHO)
    server = session.start(["python3", "/tmp/echo.py", address, str(port)])
    until(lambda: any(each.port == port for each in session.ports()), "the server listens")
    try:
        yield
    finally:
        server.signal("SIGKILL")


def conversation(address: tuple[str, int], content: bytes) -> bytes:
    with socket.create_connection(address, 10) as one:
        one.settimeout(30)

        def say() -> None:
            one.sendall(content)
            one.shutdown(socket.SHUT_WR)

        talking = threading.Thread(target=say)
        talking.start()
        found = b"".join(iter(lambda: one.recv(1 << 16), b""))
        talking.join(10)
        return found


def opened(address: tuple[str, int]) -> socket.socket:
    one = socket.create_connection(address, 10)
    one.settimeout(30)
    return one


def test_a_server_inside_is_reached_as_if_it_were_here(dovecote: Dovecote) -> None:
    with (
        dovecote.sessions.create() as session,
        serving(session, "0.0.0.0", 7000),
        session.forward(7000) as forward,
        opened(forward.address) as first,
        opened(forward.address) as second,
    ):
        first.sendall(b"first")
        second.sendall(b"second")
        assert (second.recv(100), first.recv(100)) == (b"second", b"first")
        whole = conversation(forward.address, MEGABYTE)
        assert hashlib.sha256(whole).digest() == hashlib.sha256(MEGABYTE + b"|1048576").digest()
        first.shutdown(socket.SHUT_WR)  # half closed: the answer comes after that
        assert first.recv(100) == b"|5"
        assert first.recv(100) == b""
        second.sendall(b"RESET")
        with pytest.raises(ConnectionResetError):
            second.recv(100)


def test_a_server_on_the_sandboxs_own_loopback_is_reached(dovecote: Dovecote) -> None:
    with dovecote.sessions.create() as session, serving(session, "127.0.0.1", 7001):
        assert [each.loopback_only for each in session.ports() if each.port == 7001] == [True]
        with session.forward(7001) as forward:
            assert conversation(forward.address, b"hello") == b"hello|5"


def test_with_a_kernel_of_its_own_only_what_listens_outside_is_reached(dovecote: Dovecote) -> None:
    problems: list[DovecoteError] = []
    with dovecote.sessions.create(level="runsc") as session:
        with serving(session, "0.0.0.0", 7008), session.forward(7008) as forward:
            assert conversation(forward.address, b"hello") == b"hello|5"
        with (
            serving(session, "127.0.0.1", 7009),
            session.forward(7009, on_problem=problems.append) as forward,
            opened(forward.address) as one,
            pytest.raises(ConnectionResetError),
        ):
            one.recv(1)
    assert [each.code for each in problems] == ["port_is_local"]


def test_a_closed_port_is_told(dovecote: Dovecote) -> None:
    problems: list[DovecoteError] = []
    with (
        dovecote.sessions.create() as session,
        session.forward(7002, on_problem=problems.append) as forward,
        opened(forward.address) as one,
        pytest.raises(ConnectionResetError),
    ):
        one.recv(1)
    assert [each.code for each in problems] == ["port_closed"]
    assert "start a server" in problems[0].hint


def test_it_wakes_a_session_and_keeps_it_awake_while_it_is_open(dovecote: Dovecote) -> None:
    with dovecote.sessions.create(idle_after=2) as session:
        session.files.write("echo.py", ECHO)
        session.set_start("exec python3 echo.py 0.0.0.0 7003", 7003)
        session.wake()
        with session.forward(7003) as forward:
            with opened(forward.address) as one:
                one.sendall(b"x")
                assert one.recv(1) == b"x"
                with dovecote.sessions.create(idle_after=2) as other:
                    until(lambda: other.refresh().state == "parked", "the one that nobody uses is parked")
                assert session.refresh().state == "ready"
            until(lambda: session.refresh().state == "parked", "it is parked when nothing is open")
            assert conversation(forward.address, b"again") == b"again|5"
            session.freeze()
            assert session.refresh().state == "frozen"
            assert conversation(forward.address, b"thawed") == b"thawed|6"


def test_the_end_of_its_session_ends_a_connection(dovecote: Dovecote) -> None:
    session = dovecote.sessions.create()
    with serving_until_gone(session), session.forward(7004) as forward, opened(forward.address) as one:
        one.sendall(b"x")
        assert one.recv(1) == b"x"
        session.delete()
        with suppress(ConnectionResetError):
            assert one.recv(1) == b""


@contextmanager
def serving_until_gone(session: Session) -> Iterator[None]:
    session.files.write("/tmp/echo.py", ECHO)
    session.start(["python3", "/tmp/echo.py", "0.0.0.0", "7004"])
    until(lambda: any(each.port == 7004 for each in session.ports()), "the server listens")
    yield


def test_a_reader_that_waits_makes_the_server_wait(dovecote: Dovecote) -> None:
    def poured() -> int:
        return int(session.files.read("/tmp/poured") or b"0")

    with dovecote.sessions.create() as session:
        session.files.write("/tmp/pour.py", POUR)
        session.start(["python3", "/tmp/pour.py", "7005"])
        until(lambda: any(each.port == 7005 for each in session.ports()), "the server listens")
        with session.forward(7005) as forward, opened(forward.address) as one:
            assert one.recv(1)
            stopped = stays(poured)
            assert stopped < 32 << 20  # what all buffers on the way hold, the kernel's too
            got = 0
            while got <= stopped + (8 << 20):
                got += len(one.recv(1 << 20))


def stays(number: Callable[[], int]) -> int:
    """Waits until it is the same eight times in a row."""
    seen: list[int] = []

    def is_still() -> bool:
        seen.append(number())
        return len(seen) >= 8 and len(set(seen[-8:])) == 1

    until(is_still, "it does not change any more", every=0.25)
    return seen[-1]


def test_another_tenants_session_is_not_there(installation: Installation, dovecote: Dovecote) -> None:
    made = installation.command("tenant", "create", "forwards")
    assert made.returncode == 0, made.stderr
    other_key = made.stdout.split()[-1]
    with dovecote.sessions.create() as session, serving(session, "0.0.0.0", 7006):
        url = f"ws://127.0.0.1:{installation.port}/v1/sessions/{session.id}/ports/7006/tcp"
        with pytest.raises(InvalidStatus) as refused:
            connect(url, additional_headers={"x-dovecote-key": other_key}, open_timeout=30)
        assert refused.value.response.status_code == 404
        assert json.loads(refused.value.response.body)["error"]["code"] == "no_such_session"
        with connect(url, additional_headers={"x-dovecote-key": installation.api_key}, open_timeout=30) as own:
            own.send(b"mine")
            assert own.recv(timeout=20) == b"mine"


def test_the_command_line_forwards_until_it_is_interrupted(installation: Installation, dovecote: Dovecote) -> None:
    with dovecote.sessions.create() as session, serving(session, "0.0.0.0", 7007):
        command = [sys.executable, "-m", "dovecote", "sandbox", "port", session.id, "7007", "--local", "0"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, env=installation.environ, **pipes) as running:  # type: ignore[call-overload]
            try:
                assert running.stdout is not None
                assert running.stdout.readline().strip() == session.url(7007)
                host, _, port = running.stdout.readline().strip().rpartition(":")
                assert conversation((host, int(port)), b"hello") == b"hello|5"
                running.send_signal(signal.SIGINT)
                assert running.wait(20) == 0
            finally:
                running.kill()
