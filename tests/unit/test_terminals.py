"""A terminal's WebSocket: who may open it, what its frames mean, and who waits for whom."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from dovecote.api.tickets import LIVES, MOST_USED, Tickets, check_origin
from dovecote.control.sandboxes import LOGIN_SHELL, Dropped, Exited, Output, Started
from dovecote.errors import DovecoteError, Failed, Forbidden, Invalid, NoCapacity, Unauthenticated
from dovecote.model.ids import new_id
from tests.unit.fake_rooms import KEY, NOW, OTHER_KEY, Rooms

Frame = str | bytes
PATH = "/v1/sessions/x/terminal"
BEARER = {"authorization": f"Bearer {KEY}"}


@pytest.fixture
def session_id(url: str) -> str:
    return str(httpx.post(f"{url}/v1/sessions", json={}, headers=BEARER).json()["id"])


@contextmanager
def terminal(url: str, session_id: str, query: str = "", **options: Any) -> Iterator[ClientConnection]:
    options.setdefault("additional_headers", BEARER)
    where = url.replace("http", "ws", 1) + f"/v1/sessions/{session_id}/terminal{query}"
    with connect(where, open_timeout=5, close_timeout=5, **options) as socket:
        yield socket


def until_closed(socket: ClientConnection) -> tuple[list[Frame], int]:
    """All frames, and the code that it was closed with."""
    frames: list[Frame] = []
    try:
        while True:
            frames.append(socket.recv(timeout=5))
    except ConnectionClosed as end:
        return frames, end.rcvd.code if end.rcvd else 0


def refused(url: str, session_id: str, query: str = "", **options: Any) -> tuple[int, str]:
    """Status and code of a refusal."""
    with pytest.raises(InvalidStatus) as caught, terminal(url, session_id, query, **options):
        pass
    response = caught.value.response
    return response.status_code, json.loads(response.body)["error"]["code"]


def eventually(rooms: Rooms, call: dict[str, object]) -> None:
    deadline = time.monotonic() + 5
    while call not in rooms.sandboxes.calls:
        assert time.monotonic() < deadline, rooms.sandboxes.calls
        time.sleep(0.01)


# -- what frames mean


def test_output_is_bytes_and_all_else_is_json(rooms: Rooms, url: str, session_id: str) -> None:
    rooms.sandboxes.events = [
        Started(7, 40, NOW),
        Output("stdout", 0, b"\xff\x00$ "),
        Dropped(9),
        Output("stdout", 13, b"bye"),
        Exited(3, None, False, 16),
    ]
    with terminal(url, session_id, "?rows=30&cols=100&cwd=/tmp&user=root") as socket:
        frames, code = until_closed(socket)
    assert code == 1000
    assert [json.loads(frame) if isinstance(frame, str) else frame for frame in frames] == [
        {"type": "started", "number": 7, "pid": 40},
        b"\xff\x00$ ",
        {"type": "dropped", "bytes": 9},
        b"bye",
        {"type": "exited", "exit_code": 3, "signal": None, "timed_out": False},
    ]
    started = rooms.sandboxes.calls[0]
    assert (started["argv"], started["pty"], started["cwd"]) == (LOGIN_SHELL, (30, 100), "/tmp")
    assert (started["user"], started["tag"]) == ("root", "terminal")


def test_input_sizes_and_signals_reach_the_program(rooms: Rooms, url: str, session_id: str) -> None:
    rooms.sandboxes.events = [Started(7, 40, NOW)]
    rooms.sandboxes.goes_on = True
    with terminal(url, session_id, "?command=top") as socket:
        socket.send(b"ls\r")
        eventually(rooms, {"number": 7, "data": b"ls\r"})
        socket.send(json.dumps({"type": "resize", "rows": 50, "cols": 120}))
        eventually(rooms, {"number": 7, "size": (50, 120)})
        socket.send(json.dumps({"type": "signal", "signal": "SIGINT"}))
        eventually(rooms, {"number": 7, "signo": 2})
    assert rooms.sandboxes.calls[0]["argv"] == ("/bin/sh", "-c", "top")


def test_it_is_found_again_by_number_and_offset(rooms: Rooms, url: str, session_id: str) -> None:
    rooms.sandboxes.events = [Output("stdout", 5, b"more"), Exited(0, None, False, 9)]
    with terminal(url, session_id, "?number=4&offset=5&rows=10&cols=20") as socket:
        frames, code = until_closed(socket)
    assert (json.loads(frames[0]), frames[1], code) == ({"type": "attached", "number": 4}, b"more", 1000)
    assert rooms.sandboxes.calls[:2] == [{"number": 4, "size": (10, 20)}, {"number": 4, "offset": 5}]


def test_a_client_that_leaves_detaches_only(rooms: Rooms, url: str, session_id: str) -> None:
    rooms.sandboxes.events = [Started(7, 40, NOW)]
    rooms.sandboxes.goes_on = True
    with terminal(url, session_id) as socket:
        socket.recv(timeout=5)
    deadline = time.monotonic() + 5
    while not rooms.sandboxes.is_detached:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not any("signo" in call for call in rooms.sandboxes.calls)


def test_input_that_nobody_reads_is_said_to_be_lost(rooms: Rooms, url: str, session_id: str) -> None:
    rooms.sandboxes.events = [Started(7, 40, NOW)]
    rooms.sandboxes.goes_on = rooms.sandboxes.is_deaf = True
    with terminal(url, session_id) as socket:
        socket.recv(timeout=5)
        socket.send(b"12345")
        assert json.loads(socket.recv(timeout=5)) == {"type": "input_dropped", "bytes": 5}


# -- errors


@pytest.mark.parametrize("frame", ["{", '{"type":"jump"}', '{"type":"resize","rows":0,"cols":1}', '"x"', "[" * 5000])
def test_a_frame_that_makes_no_sense_is_one_clear_error(rooms: Rooms, url: str, session_id: str, frame: str) -> None:
    rooms.sandboxes.events = [Started(7, 40, NOW)]
    rooms.sandboxes.goes_on = True
    with terminal(url, session_id) as socket:
        socket.recv(timeout=5)
        socket.send(frame)
        frames, code = until_closed(socket)
    said = json.loads(frames[-1])
    assert (said["type"], code) == ("error", 1008)
    assert said["error"]["code"] in ("invalid", "too_large")
    assert said["error"]["request_id"].startswith("req_")


def test_what_fails_later_is_a_frame_with_the_error(rooms: Rooms, url: str, session_id: str) -> None:
    rooms.sandboxes.events = [Started(7, 40, NOW), Failed("it is gone", code="instance_died")]
    with terminal(url, session_id) as socket:
        frames, code = until_closed(socket)
    said = json.loads(frames[-1])
    assert (said["type"], said["status"], said["error"]["code"], code) == ("error", 502, "instance_died", 1011)


def test_a_command_without_a_terminal_is_refused(rooms: Rooms, url: str, session_id: str) -> None:
    rooms.sandboxes.has_no_terminal = True
    with terminal(url, session_id, "?number=4") as socket:
        frames, _ = until_closed(socket)
    assert json.loads(frames[0])["error"]["code"] == "no_terminal"


def test_a_message_beyond_the_bound_closes_only_that_terminal(rooms: Rooms, url: str, session_id: str) -> None:
    rooms.sandboxes.events = [Started(7, 40, NOW)]
    rooms.sandboxes.goes_on = True
    with terminal(url, session_id) as socket:
        socket.recv(timeout=5)
        socket.send(bytes(20 << 20))
        assert until_closed(socket)[1] == 1009
    assert httpx.get(f"{url}/healthz").status_code == 200


def test_who_is_refused_gets_the_error_before_it_opens(rooms: Rooms, url: str, session_id: str) -> None:
    assert refused(url, session_id, additional_headers={}) == (401, "unauthenticated")
    assert refused(url, session_id, additional_headers={"x-dovecote-key": "wrong"})[0] == 401
    assert refused(url, session_id, additional_headers={"x-dovecote-key": OTHER_KEY}) == (404, "no_such_session")
    assert refused(url, "ses_1") == (400, "malformed_id")
    assert refused(url, new_id("ses")) == (404, "no_such_session")
    for query in ("?rows=0", "?number=0", "?colour=red", "?offset=-1"):
        assert refused(url, session_id, query) == (400, "invalid")
    assert refused(url, session_id, "?number=1", additional_headers={**BEARER, "origin": "http://evil.example"}) == (
        403,
        "foreign_origin",
    )
    assert rooms.sandboxes.calls == []


def test_there_are_no_other_websockets(url: str) -> None:
    for path in ("/v1/nothing", "/nothing"):
        with (
            pytest.raises(InvalidStatus) as caught,
            connect(url.replace("http", "ws", 1) + path, additional_headers=BEARER),
        ):
            pass
        assert caught.value.response.status_code == 404


# -- tickets


def test_a_ticket_opens_one_terminal_once(rooms: Rooms, url: str, session_id: str) -> None:
    rooms.sandboxes.events = [Started(7, 40, NOW), Exited(0, None, False, 0)]
    answer = httpx.post(f"{url}/v1/sessions/{session_id}/terminal:ticket", headers=BEARER)
    assert answer.status_code == 201
    query = f"?ticket={answer.json()['ticket']}"
    assert refused(url, new_id("ses"), query, additional_headers={}) == (401, "bad_ticket")
    page = {"origin": url}
    with terminal(url, session_id, query, additional_headers=page) as socket:
        assert until_closed(socket)[1] == 1000
    assert refused(url, session_id, query, additional_headers=page) == (401, "bad_ticket")


def test_a_ticket_is_made_for_a_session_of_ones_own(url: str, session_id: str) -> None:
    path = f"{url}/v1/sessions/{session_id}/terminal:ticket"
    assert httpx.post(path).status_code == 401
    assert httpx.post(path, headers={"x-dovecote-key": OTHER_KEY}).status_code == 404


def test_a_page_of_another_site_needs_a_ticket_that_names_it(rooms: Rooms, url: str, session_id: str) -> None:
    rooms.sandboxes.events = [Started(7, 40, NOW), Exited(0, None, False, 0)]

    def ticket(**body: str) -> str:
        path = f"{url}/v1/sessions/{session_id}/terminal:ticket"
        return "?ticket=" + str(httpx.post(path, headers=BEARER, json=body).json()["ticket"])

    theirs = {"origin": "https://product.example"}
    assert refused(url, session_id, ticket(), additional_headers=theirs) == (403, "foreign_origin")
    with terminal(url, session_id, ticket(origin="https://product.example"), additional_headers=theirs) as socket:
        assert until_closed(socket)[1] == 1000
    other = ticket(origin="https://other.example")
    assert refused(url, session_id, other, additional_headers=theirs) == (403, "foreign_origin")


def test_tickets_expire_and_cannot_be_made_up() -> None:
    now = [1000.0]
    tickets, tenant = Tickets(lambda: now[0]), new_id("ten")
    good = tickets.issue(tenant, PATH).text
    for text in ("", ".", "a.b", good[:-1], good + "0", "é.é", good.replace(".", "A."), "A" * 2000):
        with pytest.raises(Unauthenticated):
            tickets.redeem(text, PATH)
    with pytest.raises(Unauthenticated):
        Tickets().redeem(good, PATH)
    late = tickets.issue(tenant, PATH).text
    assert tickets.redeem(good, PATH).tenant_id == tenant
    now[0] += LIVES + 1
    with pytest.raises(Unauthenticated, match="time"):
        tickets.redeem(late, PATH)


def test_one_tenant_that_uses_up_its_tickets_is_no_other_ones_trouble() -> None:
    now = [1000.0]
    tickets, tenant = Tickets(lambda: now[0]), new_id("ten")
    for _ in range(MOST_USED):
        tickets.redeem(tickets.issue(tenant, PATH).text, PATH)
    with pytest.raises(NoCapacity):
        tickets.redeem(tickets.issue(tenant, PATH).text, PATH)
    tickets.redeem(tickets.issue(new_id("ten"), PATH).text, PATH)
    now[0] += LIVES + 1
    tickets.redeem(tickets.issue(tenant, PATH).text, PATH)


@pytest.mark.parametrize("origin", ["example.org", "https://a b", "javascript:x", "https://a/b", "https://a\nb"])
def test_an_origin_is_one(origin: str) -> None:
    with pytest.raises(Invalid):
        Tickets().issue(new_id("ten"), PATH, origin)


def test_origins_are_compared_whole() -> None:
    check_origin("", "box.example")
    check_origin("http://Localhost:8080", "localhost:8080")
    for origin in ("http://localhost", "http://localhost:80801", "http://a.localhost:8080", "null", "http://[", "x"):
        with pytest.raises(DovecoteError) as caught:
            check_origin(origin, "localhost:8080")
        assert isinstance(caught.value, Forbidden), origin


# -- what is sent and not yet shown


def test_a_window_holds_output_back_until_it_was_seen(rooms: Rooms, url: str, session_id: str) -> None:
    piece = b"x" * (1 << 14)
    rooms.sandboxes.events = [
        Started(7, 40, NOW),
        *(Output("stdout", at * len(piece), piece) for at in range(4)),
        Exited(0, None, False, 4 * len(piece)),
    ]
    with terminal(url, session_id, f"?window={2 * len(piece)}") as socket:
        assert [len(socket.recv(timeout=5)) for _ in range(3)][1:] == [len(piece)] * 2
        with pytest.raises(TimeoutError):
            socket.recv(timeout=0.3)
        socket.send(json.dumps({"type": "seen", "bytes": len(piece)}))
        assert len(socket.recv(timeout=5)) == len(piece)
        socket.send(json.dumps({"type": "seen", "bytes": 3 * len(piece)}))
        frames, code = until_closed(socket)
    assert (len(frames[0]), json.loads(frames[1])["type"], code) == (len(piece), "exited", 1000)
