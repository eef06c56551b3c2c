"""Terminals over WebSocket, through the gateway, with a real shell inside."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin

from dovecote.sdk import Dovecote, Session
from tests.e2e.installation import Installation, running, until

pytestmark = pytest.mark.e2e


class Screen:
    """What a client has seen. `offset` is where it would go on."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self.number = 0
        self.offset = 0
        self.text = b""
        self.said: list[dict[str, Any]] = []

    def see(self, timeout: float = 20) -> None:
        frame = self._socket.recv(timeout=timeout)
        if isinstance(frame, bytes):
            self.text += frame
            self.offset += len(frame)
            return
        self.said.append(json.loads(frame))
        self.number = self.said[-1].get("number", self.number)
        self.offset += self.said[-1].get("bytes", 0) if self.said[-1]["type"] == "dropped" else 0

    def until(self, text: bytes) -> None:
        while text not in self.text:
            self.see()

    def to_its_end(self) -> dict[str, Any]:
        try:
            while True:
                self.see()
        except ConnectionClosed:
            return self.said[-1]

    def type(self, text: str) -> None:
        self._socket.send(text.encode())

    def tell(self, **fields: object) -> None:
        self._socket.send(json.dumps(fields))


@contextmanager
def terminal(installation: Installation, session: Session, query: str = "") -> Iterator[Screen]:
    url = f"ws://127.0.0.1:{installation.port}/v1/sessions/{session.id}/terminal{query}"
    with connect(url, additional_headers={"x-dovecote-key": installation.api_key}, open_timeout=30) as socket:
        yield Screen(socket)


def test_a_shell_is_a_real_terminal(installation: Installation, dovecote: Dovecote) -> None:
    with dovecote.sessions.create() as session, terminal(installation, session, "?rows=33&cols=101") as screen:
        screen.type("tty; stty size; echo $0 $(whoami)\r")
        screen.until(b"33 101\r\n")
        screen.until(b"bash user\r\n")
        assert b"/dev/pts/" in screen.text
        screen.tell(type="resize", rows=44, cols=90)
        screen.type("stty size\r")
        screen.until(b"44 90\r\n")
        screen.type("sleep 1000\r")
        until(lambda: session.run("pgrep -x sleep").exit_code == 0, "it sleeps")
        screen.type("\x03")
        screen.type("echo after-$?\r")
        screen.until(b"after-130")
        screen.type("exit 7\r")
        assert screen.to_its_end() == {"type": "exited", "exit_code": 7, "signal": None, "timed_out": False}


def test_a_terminal_outlives_its_client_and_the_server(dovecote: Dovecote) -> None:
    with running(quiet_after=1.5, tick=0.2) as there, there.client() as client, client.sessions.create() as session:
        with terminal(there, session) as screen:
            screen.type("name=kept; echo ready-$name\r")
            screen.until(b"ready-kept")
        with terminal(there, session, f"?number={screen.number}&offset={screen.offset}") as again:
            again.type("echo still-$name\r")
            again.until(b"still-kept")
            assert b"ready-kept" not in again.text
            there.kill()
            there.start()
            again.to_its_end()  # the connection breaks, after what was on its way
        with terminal(there, session, f"?number={screen.number}") as whole:
            whole.until(b"still-kept")  # from the beginning, as it is kept
            whole.type("exit\r")
            assert whole.to_its_end()["exit_code"] == 0


def test_a_session_stays_awake_while_a_terminal_is_open(installation: Installation, dovecote: Dovecote) -> None:
    with (
        dovecote.sessions.create(idle_after=2) as idle,
        dovecote.sessions.create(idle_after=2) as used,
        terminal(installation, used) as screen,
    ):
        screen.until(b"$ ")
        until(lambda: idle.refresh().state == "parked", "the one that nobody uses is parked")
        assert used.refresh().state == "ready"
        screen.type("echo $((40+2))\r")
        screen.until(b"42")


def test_a_slow_reader_makes_the_program_wait_and_loses_nothing(installation: Installation, dovecote: Dovecote) -> None:
    lines = 3_000_000  # some 23 MB: far more than all buffers on the way
    command = quote(f"stty -opost; seq {lines}; echo end > done")
    with dovecote.sessions.create() as session:
        with terminal(installation, session, f"?command={command}") as screen:
            screen.see()
            until(lambda: session.commands()[0].output_bytes > 1 << 20, "it printed what the buffers take")
            assert session.run("cat done").exit_code == 1
            assert screen.to_its_end()["exit_code"] == 0
        assert [said["type"] for said in screen.said] == ["started", "exited"]
        assert screen.text == b"".join(b"%d\n" % number for number in range(1, lines + 1))
        assert session.run("cat done").stdout == "end\n"


def test_a_browser_comes_with_a_ticket(installation: Installation, dovecote: Dovecote) -> None:
    with dovecote.sessions.create() as session:
        path = f"{installation.url}/v1/sessions/{session.id}/terminal"
        answer = httpx.post(f"{path}:ticket", headers={"x-dovecote-key": installation.api_key})
        url = f"{path.replace('http', 'ws', 1)}?ticket={answer.json()['ticket']}&command=true"
        with connect(url, origin=Origin(installation.url), open_timeout=30) as socket:
            assert Screen(socket).to_its_end()["exit_code"] == 0


def test_a_session_that_goes_away_says_so(installation: Installation, dovecote: Dovecote) -> None:
    session = dovecote.sessions.create()
    with terminal(installation, session) as screen:
        screen.until(b"$ ")
        session.delete()
        end = screen.to_its_end()
    assert end["type"] in ("error", "exited")
