"""E2B's control API: templates, built step by step."""

from __future__ import annotations

import asyncio
import io
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as some

from dovecote.api.e2b.builds import MOST_LINES, Asked, Builds
from dovecote.api.e2b.permits import LIVES, Permits
from dovecote.api.e2b.recipes import Build, as_said, dovecotefile_of, pack, source_of
from dovecote.control.templates import sent as sent_module
from dovecote.control.templates.dovecotefile import parse_dovecotefile, variables_of, words_of
from dovecote.control.templates.sent import Sent
from dovecote.errors import Forbidden, Invalid, NoCapacity, Unsupported
from dovecote.model.states import TemplateState
from tests.unit.e2b_world import E2B, e2b_on
from tests.unit.test_e2b_sandboxes import problem

pytestmark = pytest.mark.anyio

HASH = "ab" * 32


@pytest.fixture
async def e2b(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[E2B]:
    async with e2b_on(tmp_path, monkeypatch) as there:
        yield there


def archive(**files: bytes) -> bytes:
    """As clients pack it, compressed."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name.replace("__", "/"))
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def packed(tmp_path: Path, sent: bytes, *steps: dict[str, Any]) -> tuple[str, list[str]]:
    """The Dovecotefile that comes of it, and the names of the other files."""
    (tmp_path / "sent").write_bytes(sent)
    build = Build.model_validate({"fromTemplate": "base", "steps": steps})
    pack(build, "base", {HASH: tmp_path / "sent"}, tmp_path / "context.tar")
    with tarfile.open(tmp_path / "context.tar") as tar:
        file = tar.extractfile("Dovecotefile")
        assert file is not None
        return file.read().decode(), sorted(set(tar.getnames()) - {"Dovecotefile"})


# -- recipes


@pytest.mark.parametrize(
    ("fields", "source"),
    [
        ({"fromImage": "e2bdev/base"}, "base"),
        ({"fromImage": "e2bdev/base:latest"}, "base"),
        ({"fromImage": "python:3"}, "docker.io/library/python:3"),
        ({"fromImage": "oven/bun:latest"}, "docker.io/oven/bun:latest"),
        ({"fromImage": "ghcr.io/a/b:1"}, "ghcr.io/a/b:1"),
        ({"fromImage": "localhost:5000/a"}, "localhost:5000/a"),
        ({"fromTemplate": "mine:v1"}, "mine:v1"),
        ({"fromTemplate": "team/mine"}, "mine"),
    ],
)
def test_what_a_build_begins_with(fields: dict[str, str], source: str) -> None:
    assert source_of(Build.model_validate(fields)) == source


@pytest.mark.parametrize(
    "fields", [{}, {"fromImage": "a", "fromTemplate": "b"}, {"fromImage": "a", "fromImageRegistry": {"type": "aws"}}]
)
def test_what_no_build_begins_with_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises((Invalid, Unsupported)):
        source_of(Build.model_validate(fields))


def test_each_step_becomes_an_instruction_that_means_the_same() -> None:
    steps = [
        {"type": "RUN", "args": ["echo 'a\nb' # c"]},
        {"type": "RUN", "args": ["apt-get update", "root"]},
        {"type": "ENV", "args": ["A", "1", "B", "it's two"]},
        {"type": "USER", "args": ["root"]},
        {"type": "WORKDIR", "args": ["/a b"]},
        {"type": "COPY", "args": ["x y", "/app/", "user", "0755"], "force": True},
        {"type": "RUN", "args": ["true"]},
    ]
    build = Build.model_validate({"fromTemplate": "base", "steps": steps, "startCmd": "serve", "readyCmd": "check"})
    recipe = parse_dovecotefile(dovecotefile_of(build, "base", {5: ["5/x y"]}).encode())
    lines, as_root, env, user, directory, copy, last = recipe.steps
    assert lines.text.endswith(r""""echo 'a\nb' # c"]""")
    assert as_root.flag("user") == "root"
    assert variables_of(env) == {"A": "1", "B": "it's two"}
    assert (words_of(user), words_of(directory)) == (["root"], ["/a b"])
    assert words_of(copy) == ["5/x y", "/app/"]
    assert (copy.flag("chown"), copy.flag("chmod")) == ("user", "0755")
    assert [each.is_made_anew for each in recipe.steps] == [False] * 5 + [True, True]
    assert (recipe.port, "serve" in recipe.start, "check" in recipe.ready) == (0, True, True)
    assert last.text.endswith('"true"]')


STEPS: some.SearchStrategy[dict[str, Any]] = some.builds(
    dict,
    type=some.sampled_from(["RUN", "ENV", "USER", "COPY", "X"]),
    args=some.lists(some.text(), max_size=4),
)


@given(some.lists(STEPS, max_size=5))
def test_whatever_steps_come_each_is_one_instruction_or_refused(steps: list[dict[str, Any]]) -> None:
    """No text of a client's becomes an instruction of its own."""
    build = Build.model_validate({"fromTemplate": "base", "steps": steps})
    sources = {index: ["0/x"] for index in range(len(steps))}
    try:
        recipe = parse_dovecotefile(dovecotefile_of(build, "base", sources).encode())
    except Invalid:
        return
    assert [each.word for each in recipe.steps] == [step["type"] for step in steps]


def test_what_was_sent_lies_apart_for_each_step(tmp_path: Path) -> None:
    step = {"type": "COPY", "args": ["app", "/srv"], "filesHash": HASH}
    text, names = packed(tmp_path, archive(app__main=b"x"), {"type": "RUN", "args": ["true"]}, step, step)
    assert names == ["1/app/main", "2/app/main"]
    assert "COPY 1/app /srv" in text
    assert "COPY 2/app /srv" in text


def test_a_pattern_names_what_was_sent(tmp_path: Path) -> None:
    step = {"type": "COPY", "args": ["*.py", "/srv/"], "filesHash": HASH}
    text, _ = packed(tmp_path, archive(**{"a.py": b"", "b.py": b"", "c.txt": b""}), step)
    assert "COPY 0/a.py 0/b.py /srv/" in text
    with pytest.raises(Invalid):
        packed(tmp_path, archive(c=b""), step)


@pytest.mark.parametrize(
    "sent",
    [b"", b"not a tar", archive(**{"../up": b"x"}), archive(**{"/etc/passwd": b"x"})],
    ids=["nothing", "no tar", "above", "absolute"],
)
def test_what_cannot_have_been_sent_is_refused(tmp_path: Path, sent: bytes) -> None:
    with pytest.raises(Invalid):
        packed(tmp_path, sent, {"type": "COPY", "args": ["x", "/"], "filesHash": HASH})


# -- files that are sent ahead


async def pieces(content: bytes) -> AsyncIterator[bytes]:
    yield content


async def test_what_was_sent_first_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sent_module, "MOST_BYTES", 25)
    monkeypatch.setattr(sent_module, "MAX_BYTES", 20)
    sent = Sent(tmp_path)
    names = [digit * 64 for digit in "abc"]
    for name in names:
        await sent.keep("ten_a", name, pieces(b"x" * 10))
    assert [sent.find("ten_a", name) is not None for name in names] == [False, True, True]
    assert sent.find("ten_b", names[2]) is None
    for name in ("../x", "a", "A" * 64):
        with pytest.raises(Invalid):
            sent.find("ten_a", name)


def test_an_address_to_send_to_is_good_for_a_while() -> None:
    now = 0.0
    permits = Permits(lambda: now)
    token = permits.give("ten_a", HASH)
    assert permits.look(token).name == HASH
    with pytest.raises(Forbidden):
        permits.look("x")
    now = LIVES + 1
    with pytest.raises(Forbidden):
        permits.look(token)


# -- builds


async def asked(e2b: E2B, **fields: Any) -> dict[str, Any]:
    answer = await e2b.http.post("/v3/templates", json=fields)
    assert answer.status_code == 202, answer.text
    body: dict[str, Any] = answer.json()
    return body


async def finished(e2b: E2B, made: dict[str, Any]) -> dict[str, Any]:
    """The last answer, with the lines of all of them."""
    lines: list[dict[str, Any]] = []
    async with asyncio.timeout(10):
        while True:
            await asyncio.sleep(0.01)
            path = f"/templates/{made['templateID']}/builds/{made['buildID']}/status"
            body: dict[str, Any] = (await e2b.http.get(path, params={"logsOffset": len(lines)})).json()
            lines += body["logEntries"]
            if body["status"] in ("ready", "error") and not body["logEntries"]:
                return body | {"logEntries": lines}


async def begun(e2b: E2B, made: dict[str, Any], **build: Any) -> httpx.Response:
    path = f"/v2/templates/{made['templateID']}/builds/{made['buildID']}"
    return await e2b.http.post(path, json={"fromImage": "example.org/alpine:3", **build})


async def built(e2b: E2B, name: str, **fields: Any) -> dict[str, Any]:
    made = await asked(e2b, name=name, **fields)
    assert (await begun(e2b, made)).status_code == 202
    assert (await finished(e2b, made))["status"] == "ready"
    return made


async def test_a_template_is_asked_for_begun_and_looked_at_until_it_is_ready(e2b: E2B) -> None:
    made = await asked(e2b, name="mine", cpuCount=2, memoryMB=1024)
    assert (made["templateID"], made["tags"], made["names"]) == ("mine", ["default"], ["mine"])
    assert (await begun(e2b, made, steps=[{"type": "ENV", "args": ["A", "1"]}])).status_code == 202
    status = await finished(e2b, made)
    assert status["status"] == "ready"
    assert any("[1/1] ENV A 1" in line["message"] for line in status["logEntries"])
    template = await e2b.world.templates.get(e2b.world.tenant, "mine")
    assert (template.state, template.build_id, template.spec) == (TemplateState.READY, made["buildID"], "medium")
    sandbox = await e2b.create(templateID="mine")
    assert (await e2b.info(sandbox["sandboxID"]))["cpuCount"] == 2


async def test_a_build_that_fails_names_its_step(e2b: E2B) -> None:
    e2b.world.host.kept_images.refuse = Invalid("no such image")
    made = await asked(e2b, name="mine")
    await begun(e2b, made)
    status = await finished(e2b, made)
    assert (status["status"], status["reason"]["step"]) == ("error", "base")
    assert "no such image" in status["reason"]["message"]


async def test_files_are_sent_to_an_address_without_a_key(e2b: E2B) -> None:
    made = await asked(e2b, name="mine")
    path = f"/templates/mine/files/{HASH}"
    missing = await begun(e2b, made, steps=[{"type": "COPY", "args": ["x", "/"], "filesHash": HASH}])
    assert problem(missing) == 404
    first = (await e2b.http.get(path)).json()
    assert first["present"] is False
    assert (await e2b.http.put(first["url"], content=archive(x=b"1"), headers={"x-api-key": ""})).status_code == 200
    assert (await e2b.http.get(path)).json()["present"] is True
    assert (await e2b.stranger.get(path)).json()["present"] is False
    assert problem(await e2b.http.put("/templates/uploads/guess", content=b"x")) == 403
    assert problem(await e2b.http.get("/templates/mine/files/..")) in (400, 404)


async def test_nobody_begins_or_sees_the_build_of_another(e2b: E2B) -> None:
    made = await asked(e2b, name="mine")
    path = f"/templates/mine/builds/{made['buildID']}"
    assert problem(await e2b.stranger.post(f"/v2{path}", json={"fromImage": "x"})) == 404
    assert problem(await e2b.stranger.get(f"{path}/status")) == 404
    assert problem(await e2b.stranger.get(f"{path}/logs")) == 404


async def test_what_cannot_be_built_is_refused_at_once(e2b: E2B) -> None:
    assert problem(await e2b.http.post("/v3/templates", json={"name": "a b"})) == 400
    assert problem(await e2b.http.post("/v3/templates", json={"name": "a", "cpuCount": 64})) == 400
    made = await asked(e2b, name="mine")
    for build in ({}, {"fromTemplate": "base", "steps": [{"type": "COPY", "args": ["x", "/"]}]}):
        path = f"/v2/templates/mine/builds/{made['buildID']}"
        assert problem(await e2b.http.post(path, json=build)) == 400
    assert (await begun(e2b, made)).status_code == 202
    assert problem(await begun(e2b, made)) == 400


async def test_a_restart_forgets_the_lines_but_not_how_it_ended(e2b: E2B) -> None:
    made = await built(e2b, "mine")
    e2b.app.state.builds = Builds(e2b.app.state.rooms)
    status = await e2b.http.get(f"/templates/mine/builds/{made['buildID']}/status")
    assert status.json()["status"] == "ready"


def test_what_is_kept_of_builds_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    builds = Builds(None)  # type: ignore[arg-type]  # nothing is built
    first = builds.ask("ten_a", "n", (), "")
    for _ in range(60):
        first.state = "building"
        builds.ask("ten_a", "n", (), "")
    assert builds.get("ten_a", first.build_id) is first
    for each in list(builds._asked.values()):
        each.state = "building"
    with pytest.raises(NoCapacity):
        builds.ask("ten_a", "n", (), "")
    builds.ask("ten_b", "n", (), "")
    talkative = Asked("ten_a", "n", (), "")
    for _ in range(MOST_LINES + 100):
        talkative.say("x")
    assert len(talkative.lines) == MOST_LINES + 1
    assert "dropped" in talkative.lines[-1].message


# -- names and tags


async def test_templates_are_listed_found_and_removed(e2b: E2B) -> None:
    await built(e2b, "mine:v1")
    listed = {each["templateID"]: each for each in (await e2b.http.get("/templates")).json()}
    assert set(listed) == {"base", "mine"}
    assert (await e2b.http.get("/templates/aliases/mine")).json() == {"templateID": "mine", "public": False}
    assert (await e2b.http.get("/templates/aliases/base")).status_code == 200
    assert problem(await e2b.http.get("/templates/aliases/other")) == 404
    assert len((await e2b.http.get("/templates/mine")).json()["builds"]) == 1
    assert problem(await e2b.stranger.get("/templates/mine")) == 404
    assert problem(await e2b.stranger.delete("/templates/mine")) == 404
    assert (await e2b.http.patch("/templates/mine", json={"public": False})).status_code == 200
    assert problem(await e2b.http.patch("/templates/mine", json={"public": True})) == 501
    assert (await e2b.http.delete("/templates/mine")).status_code == 204
    assert problem(await e2b.http.delete("/templates/mine")) == 404


async def test_tags_are_other_names_of_one_build(e2b: E2B) -> None:
    made = await built(e2b, "mine:v1", tags=["stable"])
    answer = await e2b.http.post("/templates/tags", json={"target": "mine:v1", "tags": ["default", "latest"]})
    assert (answer.status_code, answer.json()["buildID"]) == (201, made["buildID"])

    async def tags() -> dict[str, str]:
        return {each["tag"]: each["buildID"] for each in (await e2b.http.get("/templates/mine/tags")).json()}

    assert await tags() == dict.fromkeys(["default", "latest", "stable", "v1"], made["buildID"])
    for name in ("mine", "mine:latest", "team/mine:v1"):
        await e2b.create(templateID=name)
    newer = await built(e2b, "mine:v1")
    assert (await tags())["v1"] == newer["buildID"]
    assert (await tags())["stable"] == made["buildID"]
    removed = await e2b.http.request("DELETE", "/templates/tags", json={"name": "mine", "tags": ["v1"]})
    assert removed.status_code == 204
    assert set(await tags()) == {"default", "latest", "stable"}
    assert problem(await e2b.http.post("/v2/sandboxes", json={"templateID": "mine:v1"})) == 404
    assert problem(await e2b.http.post("/templates/tags", json={"target": "mine:v1", "tags": ["x"]})) == 404


async def test_a_snapshot_is_removed_as_a_template_is(e2b: E2B) -> None:
    made = (await e2b.create())["sandboxID"]
    snapshot = (await e2b.http.post(f"/sandboxes/{made}/snapshots", json={})).json()["snapshotID"]
    assert problem(await e2b.stranger.delete(f"/templates/{snapshot}")) == 404
    assert (await e2b.http.delete(f"/templates/{snapshot}")).status_code == 204
    assert problem(await e2b.http.delete(f"/templates/{snapshot}")) == 404


def test_a_failure_is_told_in_the_clients_words(tmp_path: Path) -> None:
    step = {"type": "RUN", "args": ["echo 'boo'; exit 3"]}
    build = Build.model_validate({"fromTemplate": "base", "steps": [step]})
    line = dovecotefile_of(build, "base", {}).splitlines()[1].removeprefix("RUN ")
    assert as_said(f"{line[:200]} failed (exit 3)", build) == "echo 'boo'; exit 3 failed (exit 3)"
