"""E2B's control API: volumes, and who may see their files."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from dovecote.control.volumes import AT, place
from tests.unit.e2b_world import E2B, e2b_on
from tests.unit.test_e2b_sandboxes import problem

pytestmark = pytest.mark.anyio


@pytest.fixture
async def e2b(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[E2B]:
    async with e2b_on(tmp_path, monkeypatch) as there:
        yield there


@given(some.text(max_size=60).filter(lambda text: "\0" not in text))
def test_no_path_leads_out_of_the_volume(path: str) -> None:
    assert (place(path) + "/").startswith(AT + "/")
    assert "/../" not in place(path) + "/"


async def test_volumes_are_made_listed_and_removed(e2b: E2B) -> None:
    made = (await e2b.http.post("/volumes", json={"name": "My_Data.1"})).json()
    assert (await e2b.http.get("/volumes")).json() == [{"volumeID": made["volumeID"], "name": "My_Data.1"}]
    assert (await e2b.http.get(f"/volumes/{made['volumeID']}")).json() == made
    assert problem(await e2b.http.post("/volumes", json={"name": "My_Data.1"})) == 409
    assert problem(await e2b.http.post("/volumes", json={"name": "a/b"})) == 400
    for nothing in ("vol_none", "none"):
        assert problem(await e2b.http.get(f"/volumes/{nothing}")) == 404
        assert problem(await e2b.http.delete(f"/volumes/{nothing}")) == 404
    assert (await e2b.http.get("/v2/sandboxes")).json() == []
    assert (await e2b.http.delete(f"/volumes/{made['volumeID']}")).status_code == 204
    assert problem(await e2b.http.delete(f"/volumes/{made['volumeID']}")) == 404
    assert await e2b.world.sessions.list(e2b.world.tenant) == []


async def test_a_volume_in_use_stays(e2b: E2B) -> None:
    made = (await e2b.http.post("/volumes", json={"name": "data"})).json()
    sandbox = await e2b.create(volumeMounts=[{"name": "data", "path": "/mnt/data"}])
    assert (await e2b.info(sandbox["sandboxID"]))["volumeMounts"] == [{"name": "data", "path": "/mnt/data"}]
    assert problem(await e2b.http.delete(f"/volumes/{made['volumeID']}")) == 409
    await e2b.http.delete(f"/sandboxes/{sandbox['sandboxID']}")
    assert (await e2b.http.delete(f"/volumes/{made['volumeID']}")).status_code == 204


async def test_volumes_of_another_are_not_there(e2b: E2B) -> None:
    made = (await e2b.http.post("/volumes", json={"name": "data"})).json()
    assert (await e2b.stranger.get("/volumes")).json() == []
    assert problem(await e2b.stranger.get(f"/volumes/{made['volumeID']}")) == 404
    assert problem(await e2b.stranger.delete(f"/volumes/{made['volumeID']}")) == 404
    answer = await e2b.stranger.post(
        "/v2/sandboxes", json={"templateID": "base", "volumeMounts": [{"name": "data", "path": "/mnt/data"}]}
    )
    assert problem(answer) == 404


async def test_files_need_the_token_of_their_volume(e2b: E2B) -> None:
    one, two = [(await e2b.http.post("/volumes", json={"name": name})).json() for name in ("one", "two")]
    sandbox = await e2b.create()
    session = await e2b.world.sessions.by_slug(sandbox["sandboxID"])
    path = f"/volumecontent/{one['volumeID']}"
    for token in ("", "x", two["token"], one["token"] + "x", f"{session.slug}_{session.token}"):
        for method, kind in (("GET", "file"), ("PUT", "file"), ("DELETE", "path"), ("GET", "dir"), ("POST", "dir")):
            answer = await e2b.http.request(
                method, f"{path}/{kind}", params={"path": "/x"}, headers={"authorization": f"Bearer {token}"}
            )
            assert problem(answer) == 403, (token, method, kind)
