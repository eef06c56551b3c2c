"""The API's routes of commands: words and lines, streams of events, and what goes on without a client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest

from dovecote import errors
from dovecote.api.rest import lines
from dovecote.api.rest.commands import EventText
from dovecote.control.sandboxes import Dropped, Exited, Finished, Output, Started
from tests.unit.api_answers import opened, problem
from tests.unit.fake_rooms import NOW, Rooms

pytestmark = pytest.mark.anyio


async def test_a_line_goes_through_the_shell_and_words_do_not(http: httpx.AsyncClient, rooms: Rooms) -> None:
    path = f"/v1/sessions/{await opened(http)}/commands"
    answer = await http.post(path, json={"command": "echo hi", "timeout_seconds": 5})
    assert answer.json() == {
        "stdout": "/bin/sh -c echo hi",
        "stderr": "",
        "exit_code": 0,
        "signal": None,
        "timed_out": False,
        "truncated": False,
    }
    await http.post(path, json={"command": ["echo", "hi"], "stdin": "é"})
    first, second = rooms.sandboxes.calls
    assert (first["argv"], first["timeout"]) == (("/bin/sh", "-c", "echo hi"), 5)
    assert (second["argv"], second["timeout"], second["stdin"]) == (("echo", "hi"), 60, "é".encode())


async def test_output_that_is_not_text_survives_as_base64(http: httpx.AsyncClient, rooms: Rooms) -> None:
    rooms.sandboxes.finish = lambda argv: Finished(b"\xff\x00", b"", 0, None, False, True)
    path = f"/v1/sessions/{await opened(http)}/commands"
    assert (await http.post(path, json={"command": "x"})).json()["stdout"] == "�\x00"
    assert (await http.post(path, json={"command": "x", "encoding": "base64"})).json()["stdout"] == "/wA="


async def test_ways_to_run_that_exclude_each_other_are_refused(http: httpx.AsyncClient) -> None:
    path = f"/v1/sessions/{await opened(http)}/commands"
    wrongs: tuple[dict[str, object], ...] = (
        {"stream": True, "detach": True},
        {"stream": True, "stdin": "x"},
        {"pty": {"rows": 2, "cols": 2}},
        {"command": []},
        {"command": ""},
        {"timeout_seconds": 0},
    )
    for wrong in wrongs:
        assert problem(await http.post(path, json={"command": "x", **wrong})) == (400, "invalid")


async def test_a_detached_command_is_found_by_its_number(http: httpx.AsyncClient, rooms: Rooms) -> None:
    path = f"/v1/sessions/{await opened(http)}/commands"
    answer = await http.post(path, json={"command": "x", "detach": True, "open_stdin": True})
    assert (answer.status_code, answer.json()) == (202, {"number": 7, "pid": 1234})
    assert (await http.post(f"{path}/7:signal", json={"signal": "SIGINT"})).status_code == 204
    assert (await http.put(f"{path}/7/stdin", content=b"\x00y")).status_code == 204
    assert (await http.delete(f"{path}/7/stdin")).status_code == 204
    assert (await http.delete(f"{path}/7")).status_code == 204
    assert rooms.sandboxes.calls[1:] == [
        {"number": 7, "signo": 2},
        {"number": 7, "data": b"\x00y"},
        {"number": 7, "closed": True},
        {"number": 7, "released": True},
    ]
    assert problem(await http.post(f"{path}/7:signal", json={"signal": "SIGNOPE"})) == (400, "invalid")
    assert problem(await http.delete(f"{path}/0")) == (400, "malformed_id")


# -- streams


async def test_a_stream_gives_events_as_lines(http: httpx.AsyncClient, rooms: Rooms) -> None:
    rooms.sandboxes.events = [
        Started(3, 99, NOW),
        Output("stdout", 0, b"a\xc3"),
        Dropped(5),
        Output("stdout", 2, b"\xa9\n"),
        Exited(1, None, False, 0),
    ]
    answer = await http.post(f"/v1/sessions/{await opened(http)}/commands", json={"command": "x", "stream": True})
    assert answer.headers["content-type"] == "application/x-ndjson"
    events = [json.loads(line) for line in answer.text.splitlines()]
    assert [each["type"] for each in events] == ["started", "output", "dropped", "output", "exited"]
    assert "".join(each["data"] for each in events if each["type"] == "output") == "aé\n"
    assert events[-1] == {"type": "exited", "exit_code": 1, "signal": None, "timed_out": False}


def test_a_cut_character_at_the_end_is_not_lost() -> None:
    text = EventText("utf-8")
    text.render(Output("stderr", 0, b"\xc3"))
    left = [json.loads(line) for line in text.render(Exited(0, None, False, 0)).splitlines()]
    assert [(each["type"], each.get("data")) for each in left] == [("output", "�"), ("exited", None)]


async def test_a_refusal_is_an_error_and_not_a_stream(http: httpx.AsyncClient, rooms: Rooms) -> None:
    session = await opened(http)
    rooms.sandboxes.events = [errors.NotFound("no such program", code="command_not_found")]
    answer = await http.post(f"/v1/sessions/{session}/commands", json={"command": "x", "stream": True})
    assert problem(answer) == (404, "command_not_found")
    assert problem(await http.get(f"/v1/sessions/{session}/commands/9/stream")) == (404, "command_not_found")


async def test_a_stream_that_breaks_says_why_in_its_last_line(http: httpx.AsyncClient, rooms: Rooms) -> None:
    rooms.sandboxes.events = [Started(3, 99, NOW), errors.Failed("it died", code="instance_died")]
    answer = await http.post(f"/v1/sessions/{await opened(http)}/commands", json={"command": "x", "stream": True})
    last = json.loads(answer.text.splitlines()[-1])
    assert (last["type"], last["error"]["code"]) == ("error", "instance_died")


async def test_a_client_that_leaves_a_stream_detaches(rooms: Rooms) -> None:
    """The events are closed, nothing is signalled."""
    rooms.sandboxes.events = [Started(3, 99, NOW), Output("stdout", 0, b"x"), Exited(0, None, False, 0)]
    events = rooms.sandboxes._play()
    told = lines._lines(await anext(events), events, EventText("utf-8").render, "req_x")
    await anext(told)
    await anext(told)
    await told.aclose()
    assert rooms.sandboxes.is_detached
    assert rooms.sandboxes.calls == []


async def test_a_silent_stream_is_kept_alive_by_blank_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "ALIVE_EVERY", 0.01)
    go_on, closed = asyncio.Event(), []

    async def events() -> AsyncIterator[str]:
        try:
            yield "first"
            await go_on.wait()
            yield "second"
            await asyncio.Event().wait()
        finally:
            closed.append(True)

    told = lines._lines("zeroth", events(), str.encode, "req_x")
    assert [await anext(told) for _ in range(4)] == [b"zeroth", b"first", b"\n", b"\n"]
    go_on.set()
    while (following := await anext(told)) == b"\n":
        pass
    assert following == b"second"
    assert await anext(told) == b"\n"
    await told.aclose()
    assert closed == [True]
