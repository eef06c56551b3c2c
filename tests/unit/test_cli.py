"""The command line: light, clear about what went wrong, and sure of which process it stops."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from dovecote import errors
from dovecote.api.e2b.auth import decode_key
from dovecote.cli import app as cli
from dovecote.cli.demo.story import CheckFailed, Story, check, until
from dovecote.cli.up import is_ready, running
from dovecote.config import Settings
from dovecote.model.trees import Lag, LagState
from tests.unit.context_guest import Line, Program
from tests.unit.fake_rooms import KEY, Rooms
from tests.unit.serving import served

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "reference" / "cli.md"


@pytest.fixture
def rooms(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rooms]:
    made = Rooms()
    with served(made.api()) as url:
        monkeypatch.setenv("DOVECOTE_URL", url)
        monkeypatch.setenv("DOVECOTE_API_KEY", KEY)
        yield made


def dovecote(*words: str) -> int:
    """Runs a command; its exit code."""
    with pytest.raises(SystemExit) as ended:
        cli.main(list(words))
    code = ended.value.code
    return code if isinstance(code, int) else 0


def commands() -> list[str]:
    def below(command: object, path: str) -> Iterator[str]:
        inner = getattr(command, "commands", None)
        if inner is None:
            yield path
        else:
            for name, each in inner.items():
                yield from below(each, f"{path} {name}")

    return list(below(typer.main.get_command(cli.app), "dovecote"))


def test_the_reference_page_has_every_command() -> None:
    """Each in one row of a table, and no other."""
    rows = re.findall(r"^\| `(dovecote [^`]*)` \|", DOCS.read_text("utf-8"), re.MULTILINE)
    assert sorted(rows) == sorted(commands())


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda page: str(page.relative_to(ROOT))
)
def test_each_command_of_a_group_that_a_page_names_exists(page: Path) -> None:
    there = [each.split() for each in commands()]
    groups = "|".join({words[1] for words in there if len(words) == 3})
    named = re.findall(rf"\bdovecote ({groups}) ([a-z0-9][\w-]*)", page.read_text("utf-8"))
    assert [words for words in named if ["dovecote", *words] not in there] == []


def test_help_imports_neither_the_server_nor_the_agent() -> None:
    heavy = {"fastapi", "sqlalchemy", "pydantic_ai", "httpx", "uvicorn", "dovecote.main", "dovecote.installation"}
    code = f"import sys, dovecote.cli.app; print(*({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == ""


def test_a_session_is_opened_with_mounts(rooms: Rooms, capsys: pytest.CaptureFixture[str]) -> None:
    assert dovecote("session", "create", "--mount", "work:/mnt", "--mount", "work/anna/chat7:/home/user/w:ro") == 0
    mounts = rooms.sessions.all[capsys.readouterr().out.strip()].mounts
    assert [(m.volume, m.path, m.at, m.read_only) for m in mounts] == [
        ("work", "", "/mnt", False),
        ("work", "anna/chat7", "/home/user/w", True),
    ]
    for text in ("work", "work:", "/mnt", "work:mnt", ":/mnt", "work:/mnt:rw"):
        assert dovecote("session", "create", "--mount", text) != 0


def test_a_session_is_opened_listed_and_ended(rooms: Rooms, capsys: pytest.CaptureFixture[str]) -> None:
    assert dovecote("session", "create", "--key", "u:c") == 0
    session = capsys.readouterr().out.strip()
    assert dovecote("session", "ls") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split("\t")[:3] == [session, "u:c", "ready"]
    assert dovecote("session", "park", session) == 0
    assert dovecote("session", "rm", session) == 0
    capsys.readouterr()
    assert dovecote("session", "ls") == 0
    assert session not in capsys.readouterr().out


def test_a_failure_is_one_line_with_a_code_and_a_hint(rooms: Rooms, capsys: pytest.CaptureFixture[str]) -> None:
    rooms.sessions.failure = errors.NoCapacity("all memory is taken", code="no_memory", hint="park something")
    assert dovecote("session", "get", "ses_" + "a" * 26) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["error: all memory is taken [no_memory]", "  park something"]


def test_no_server_and_no_key_are_said_plainly(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DOVECOTE_CONFIG_DIR", str(tmp_path))
    monkeypatch.delenv("DOVECOTE_API_KEY", raising=False)
    monkeypatch.setenv("DOVECOTE_URL", "http://127.0.0.1:9")
    assert dovecote("session", "ls") == 1
    assert "[no_key]" in capsys.readouterr().err
    monkeypatch.setenv("DOVECOTE_API_KEY", "k")
    assert dovecote("session", "ls") == 1
    assert "[unreachable]" in capsys.readouterr().err


def test_a_wrong_setting_is_said_plainly(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DOVECOTE_PORT", "many")
    assert dovecote("status") == 1
    assert "DOVECOTE_PORT" in capsys.readouterr().err


def test_a_stale_pid_is_not_taken_for_the_server(tmp_path: Path) -> None:
    """Only who holds the lock is the server, whatever the file says."""
    settings = Settings(run_dir=tmp_path)
    assert running(settings) is None
    lock = tmp_path / "serve.lock"
    lock.write_text(str(os.getpid()))
    assert running(settings) is None
    with lock.open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert running(settings) == os.getpid()


def test_nothing_is_ready_where_nothing_listens() -> None:
    assert not is_ready(Settings(port=9))


def test_a_check_that_fails_says_what_and_what_to_do() -> None:
    check(True, "fine")
    with pytest.raises(CheckFailed, match="gone") as raised:
        check(False, "the file is gone", "look")
    assert raised.value.hint == "look"


@pytest.mark.anyio
async def test_a_wait_has_a_bound_and_tells_what_it_saw() -> None:
    seen = iter(["ready", "ready", "frozen"])

    async def look() -> str:
        return next(seen)

    assert await until(look, lambda state: state == "frozen", within=5, what="freezing") == "frozen"

    async def stuck() -> str:
        return "ready"

    with pytest.raises(CheckFailed, match="freezing did not happen within 0 s; last seen: 'ready'"):
        await until(stuck, lambda state: state == "frozen", within=0, what="freezing")


def test_a_step_that_fails_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    story = Story()
    with pytest.raises(CheckFailed), story.step("a request thaws it"):
        check(False, "no")
    assert "✗ a request thaws it" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("lag", "line"),
    [
        (Lag(LagState.PENDING, 0.81, 0.4, 3), "files: last saved 0.8 s ago, 3 files pending"),
        (Lag(LagState.SAVED, 0.81), "files: all saved, last saved 0.8 s ago"),
        (Lag(LagState.SAVED), "files: all saved"),
        (Lag(LagState.ON_HOST, None, 0, None), "files: on its host only, not saved yet"),
        (
            Lag(LagState.FAILING, None, 9, None, 2.0, "disk_full"),
            "files: not saved yet, many files pending; saving fails (disk_full) and is tried again, work goes on",
        ),
    ],
)
def test_show_says_how_far_files_are_saved(
    rooms: Rooms, capsys: pytest.CaptureFixture[str], lag: Lag, line: str
) -> None:
    dovecote("session", "create", "--key", "mine")
    session_id = capsys.readouterr().out.strip()
    rooms.sessions.its_lag = lag
    assert dovecote("session", "show", session_id) == 0
    assert line in capsys.readouterr().out.splitlines()


def test_the_variables_for_e2bs_sdks_lead_to_this_server(rooms: Rooms, capsys: pytest.CaptureFixture[str]) -> None:
    assert dovecote("env", "e2b") == 0
    lines = dict(line.removeprefix("export ").split("=", 1) for line in capsys.readouterr().out.splitlines())
    assert lines["E2B_API_URL"] == lines["E2B_SANDBOX_URL"] == os.environ["DOVECOTE_URL"]
    assert decode_key(lines["E2B_API_KEY"]) == KEY
    assert rooms.templates.prepared == ["code"]


def opened(capsys: pytest.CaptureFixture[str]) -> str:
    assert dovecote("session", "create") == 0
    return capsys.readouterr().out.strip()


def test_code_shows_what_it_says_and_keeps_pictures(
    rooms: Rooms, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def show(program: Program, request: Line) -> None:
        name = request["id"]
        program.say(type="queued", id=name)
        program.say(type="began", id=name)
        program.say(type="stdout", id=name, text="printed\n")
        program.say(type="result", id=name, data={"image/png": "aGk=", "text/plain": "<Figure>"}, is_main=False)
        program.say(type="result", id=name, data={"text/plain": "42"}, is_main=True)
        program.say(type="done", id=name, status="ok", count=1, dropped=0)

    rooms.sandboxes.guest.script = show
    session = opened(capsys)
    assert dovecote("sandbox", "code", session, "x", "--save", str(tmp_path)) == 0
    assert capsys.readouterr().out == f"printed\n{tmp_path}/001.png\n42\n"
    assert (tmp_path / "001.png").read_bytes() == b"hi"
    assert dovecote("sandbox", "contexts", session) == 0
    assert "python" in capsys.readouterr().out


def test_code_that_fails_has_exit_code_1(rooms: Rooms, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(program: Program, request: Line) -> None:
        name = request["id"]
        program.say(type="queued", id=name)
        program.say(type="error", id=name, name="ValueError", value="no", traceback=[])
        program.say(type="done", id=name, status="error", count=1, dropped=0)

    rooms.sandboxes.guest.script = fail
    session = opened(capsys)
    assert dovecote("sandbox", "code", session, "x", "-l", "js") == 1
    assert "ValueError: no" in capsys.readouterr().err
