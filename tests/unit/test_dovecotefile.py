"""Dovecotefiles and the files beside them are read, or refused by name and line."""

from __future__ import annotations

import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dovecote.control.templates import context as context_module
from dovecote.control.templates.context import Context
from dovecote.control.templates.dovecotefile import Recipe, argv_of, parse_dovecotefile, variables_of, words_of
from dovecote.errors import Invalid, StorageFailed
from tests.unit.test_layers import file, folder, link, tar

WHOLE = b"""# a shop
from base

RUN apt-get update && \\
    # in between
    apt-get install -y ffmpeg
COPY "a file" b ./
ENV A=1 B="two words"
USER user:0
WORKDIR /home/user/shop
START node server.js --flag PORT 3000
READY test -f server.js
"""


def test_a_file_is_read_whole() -> None:
    recipe = parse_dovecotefile(WHOLE)
    assert (recipe.source, recipe.start, recipe.port) == ("base", "node server.js --flag", 3000)
    assert recipe.ready == "test -f server.js"
    run, copy, env, user, directory = recipe.steps
    assert (run.line, str(run)) == (4, "RUN apt-get update && apt-get install -y ffmpeg")
    assert words_of(copy) == ["a file", "b", "./"]
    assert variables_of(env) == {"A": "1", "B": "two words"}
    assert (user.text, directory.text) == ("user:0", "/home/user/shop")


def test_flags_stand_ahead_of_what_they_are_about() -> None:
    text = b"FROM a\nRUN --user=root --no-cache apt-get --yes install x\nCOPY --chown=1:2 --chmod=755 a b\nSTART serve"
    recipe = parse_dovecotefile(text)
    run, copy = recipe.steps
    assert (run.text, run.flag("user"), run.is_made_anew) == ("apt-get --yes install x", "root", True)
    assert (words_of(copy), copy.flag("chown"), copy.flag("chmod"), copy.is_made_anew) == (
        ["a", "b"],
        "1:2",
        "755",
        False,
    )
    assert (recipe.start, recipe.port) == ("serve", 0)


def test_from_alone_is_enough() -> None:
    assert parse_dovecotefile(b"FROM host/image:1") == Recipe("host/image:1", ())


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (b"", 1),
        (b"RUN true", 1),
        (b"FROM a\nFROM b", 2),
        (b"FROM a\nADD x y", 2),
        (b"FROM a\n\nRUN", 3),
        (b"FROM a b", 1),
        (b"FROM a\nENV A", 2),
        (b"FROM a\nENV A=1 2B=1", 2),
        (b"FROM a\nENV A='", 2),
        (b"FROM a\nCOPY x", 2),
        (b"FROM a\nCOPY --user=a x y", 2),
        (b"FROM a\nCOPY --chmod=rwx x y", 2),
        (b"FROM a\nCOPY --chown x y", 2),
        (b"FROM a\nRUN --no-cache=1 x", 2),
        (b"FROM a\nSTART run PORT 0", 2),
        (b"FROM a\nSTART run PORT 70000", 2),
        (b"FROM a\nSTART x PORT 1\nSTART y PORT 2", 3),
        (b"FROM a\nRUN x\0y", 2),
        (b"\xff", 1),
        (b"FROM a\n" + b"RUN x\n" * 100, 101),
        (b"FROM a\n" + b"#" * (64 << 10), 1),
    ],
)
def test_what_is_wrong_is_named_with_its_line(text: bytes, line: int) -> None:
    with pytest.raises(Invalid) as refused:
        parse_dovecotefile(text)
    assert refused.value.code == "bad_dovecotefile"
    assert f"line {line}:" in refused.value.message


def test_words_are_run_without_a_shell_and_lines_by_one() -> None:
    assert argv_of('["/a b", "c"]') == ("/a b", "c")
    assert argv_of("[ -f x ] && echo y") == ("/bin/sh", "-c", "[ -f x ] && echo y")
    assert argv_of("[1]") == ("/bin/sh", "-c", "[1]")


@pytest.fixture
def context(tmp_path: Path) -> Context:
    members = (
        folder("."),
        folder("./src"),
        file("./src/a", b"a", mode=0o755, uid=7),
        link("./src/l", "a"),
        file("./b", b"b"),
    )
    path = tmp_path / "context.tar"
    path.write_bytes(tar(*members))
    return Context(path)


@pytest.mark.parametrize(
    ("sources", "target", "names"),
    [
        (["b"], "/x", ["x"]),
        (["b"], "/x/", ["x/b"]),
        (["src"], "/x", ["x/a", "x/l"]),
        (["src/", "b"], "/x", ["x/a", "x/b", "x/l"]),
        (["."], "/x/", ["x/b", "x/src", "x/src/a", "x/src/l"]),
        (["../../src/a"], "/x/../y", ["y"]),
        (["/b"], "/", ["b"]),
    ],
)
def test_sources_go_where_a_dockerfile_would_put_them(
    context: Context, tmp_path: Path, sources: list[str], target: str, names: list[str]
) -> None:
    layer = context.layer(sources, target, uid=1000, gid=100, to=tmp_path / "layer")
    with tarfile.open(layer.path) as archive:
        members = archive.getmembers()
    assert [member.name for member in members] == names
    assert {(member.uid, member.gid, member.mtime) for member in members} == {(1000, 100, 0)}


def test_the_same_files_are_the_same_layer_and_a_changed_one_is_not(tmp_path: Path) -> None:
    found = []
    for content, more in ((b"1", {"mtime": 5}), (b"1", {"mtime": 6, "uid": 9}), (b"2", {}), (b"1", {"mode": 0o755})):
        path = tmp_path / "context.tar"
        path.write_bytes(tar(file("a", content, **more)))
        found.append(Context(path).layer(["a"], "/a", uid=0, gid=0, to=tmp_path / "layer").diff_id)
    assert found[0] == found[1]
    assert len(set(found)) == 3


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "a//b", "./../x"])
def test_a_file_that_would_lie_outside_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "context.tar"
    path.write_bytes(tar(file(name)))
    with pytest.raises(Invalid):
        Context(path)


HARD_LINK, DEVICE = tar(link("x", "y", tarfile.LNKTYPE)), tar(link("x", "", tarfile.CHRTYPE))


@pytest.mark.parametrize("content", [b"garbage" * 100, HARD_LINK, DEVICE])
def test_what_is_no_plain_tar_of_files_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "context.tar"
    path.write_bytes(content)
    with pytest.raises(Invalid) as refused:
        Context(path)
    assert refused.value.code == "bad_context"


def test_a_source_that_is_not_there_is_named(context: Context, tmp_path: Path) -> None:
    with pytest.raises(Invalid) as refused:
        context.layer(["nothing"], "/x", uid=0, gid=0, to=tmp_path / "layer")
    assert refused.value.code == "no_such_source"


@pytest.mark.anyio
async def test_what_is_sent_is_bounded_and_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def sent() -> AsyncIterator[bytes]:
        for _ in range(5):
            yield b"x" * 100

    monkeypatch.setattr(context_module, "MAX_BYTES", 499)
    with pytest.raises(Invalid) as large:
        await context_module.receive(sent(), tmp_path / "context.tar")
    assert large.value.code == "too_large"
    monkeypatch.setattr(context_module, "MAX_BYTES", 500)
    await context_module.receive(sent(), tmp_path / "context.tar")
    with pytest.raises(StorageFailed) as full:
        await context_module.receive(sent(), Path("/dev/full"))
    assert full.value.code == "disk_full"
