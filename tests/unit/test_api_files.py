"""The API's routes of files: contents piece by piece, what is at a path, and what changes there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest

from tests.unit.api_answers import opened, problem
from tests.unit.fake_rooms import Rooms

pytestmark = pytest.mark.anyio


async def test_a_large_file_goes_in_piece_by_piece(http: httpx.AsyncClient, rooms: Rooms) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(128):
            yield b"x" * (1 << 18)

    path = f"/v1/sessions/{await opened(http)}/files"
    assert (await http.put(path, params={"path": "big"}, content=pieces())).status_code == 204
    assert rooms.sandboxes.received == 32 << 20
    assert rooms.sandboxes.largest_piece <= 1 << 18


async def test_files_are_read_renamed_and_removed(http: httpx.AsyncClient, rooms: Rooms) -> None:
    path = f"/v1/sessions/{await opened(http)}/files"
    content = bytes(range(256)) * 1000
    await http.put(path, params={"path": "a"}, content=content)
    assert (await http.get(path, params={"path": "a"})).content == content
    assert (await http.post(f"{path}/rename", json={"source": "a", "target": "b"})).status_code == 204
    assert problem(await http.get(path, params={"path": "a"})) == (404, "file_not_found")
    assert (await http.delete(path, params={"path": "b"})).status_code == 204
    assert rooms.sandboxes.files == {}
    assert problem(await http.get(path)) == (400, "invalid")


async def test_an_empty_file_is_read_as_empty(http: httpx.AsyncClient, rooms: Rooms) -> None:
    rooms.sandboxes.files["empty"] = b""
    answer = await http.get(f"/v1/sessions/{await opened(http)}/files", params={"path": "empty"})
    assert (answer.status_code, answer.content) == (200, b"")


async def test_what_is_at_a_path_is_told_in_full(http: httpx.AsyncClient, rooms: Rooms) -> None:
    path = f"/v1/sessions/{await opened(http)}/files"
    told = (await http.get(f"{path}/stat", params={"path": "x", "follow": "false"})).json()
    assert told == {
        "path": "x",
        "kind": "link",
        "size": 3,
        "mode": 0o777,
        "permissions": "lrwxrwxrwx",
        "uid": 1000,
        "gid": 7,
        "owner": "bird",
        "group": "7",
        "modified_at": "1970-01-01T00:00:00Z",
        "target": "to",
        "metadata": {"a": "b"},
    }
    assert rooms.sandboxes.calls[-1] == {"user": None, "follow": False}


async def test_a_listing_of_any_length_says_whether_it_was_cut(http: httpx.AsyncClient, rooms: Rooms) -> None:
    path = f"/v1/sessions/{await opened(http)}/files/list"
    for entries, cut in ((0, False), (500, False), (1201, True)):
        rooms.sandboxes.entries = entries
        answer = (await http.get(path, params={"path": "x", "limit": 1000})).json()
        assert ([each["path"] for each in answer["items"]], answer["truncated"]) == (
            [f"{i}" for i in range(entries)],
            cut,
        )
    assert problem(await http.get(path, params={"path": "x", "limit": 100_001})) == (400, "invalid")


async def test_modes_metadata_links_and_directories(http: httpx.AsyncClient, rooms: Rooms) -> None:
    path = f"/v1/sessions/{await opened(http)}/files"
    await http.put(path, params={"path": "a"}, content=b"")
    assert rooms.sandboxes.calls[-1] == {"user": None, "mode": None, "metadata": None}
    await http.put(path, params={"path": "a", "mode": 384, "metadata": ["x:1:2", "y:"]}, content=b"")
    assert rooms.sandboxes.calls[-1] == {"user": None, "mode": 0o600, "metadata": {"x": "1:2", "y": ""}}
    await http.put(path, params={"path": "a", "metadata": ""}, content=b"")
    assert rooms.sandboxes.calls[-1]["metadata"] == {}
    answer = await http.patch(path, json={"path": "a", "mode": 384, "metadata": {}})
    assert (answer.status_code, answer.json()["kind"]) == (200, "link")
    assert rooms.sandboxes.calls[-1] == {"user": None, "mode": 384, "metadata": {}}
    assert problem(await http.patch(path, json={"path": "a", "mode": 0o10000})) == (400, "invalid")
    assert (await http.post(f"{path}/mkdir", json={"path": "new"})).json() == {"created": True}
    assert (await http.post(f"{path}/mkdir", json={"path": "a"})).json() == {"created": False}
    assert (await http.post(f"{path}/link", json={"path": "l", "target": "../a"})).status_code == 204
    assert rooms.sandboxes.files["l"] == b"../a"


async def test_changes_are_told_as_they_happen_or_kept_until_they_are_taken(http: httpx.AsyncClient) -> None:
    path = f"/v1/sessions/{await opened(http)}/files"
    answer = await http.get(f"{path}/watch", params={"path": "x", "recursive": True})
    assert answer.headers["content-type"] == "application/x-ndjson"
    renamed = {"type": "rename", "path": "a", "target": "b", "is_directory": False}
    assert [json.loads(line) for line in answer.text.splitlines()] == [
        {"type": "watching", "path": "", "target": None, "is_directory": True},
        renamed,
    ]
    watcher = (await http.post(f"{path}/watchers", json={"path": "x"})).json()["id"]
    await asyncio.sleep(0)  # requests of this client do not let others have their turn
    assert (await http.post(f"{path}/watchers/{watcher}:take")).json() == {"items": [renamed]}
    assert problem(await http.post(f"{path}/watchers/{watcher}:take")) == (404, "no_such_watcher")  # it has ended
    watcher = (await http.post(f"{path}/watchers", json={"path": "x"})).json()["id"]
    assert (await http.delete(f"{path}/watchers/{watcher}")).status_code == 204
    assert problem(await http.delete(f"{path}/watchers/{watcher}")) == (404, "no_such_watcher")
