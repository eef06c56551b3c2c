"""`dovecote sandbox`: what is passed on both ways, byte for byte, and what comes back as an exit code."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dovecote.cli.keyboard import Escape
from dovecote.control.sandboxes import CommandStatus, Dropped, Exited, Output, Started
from dovecote.sdk import Dovecote
from tests.unit.fake_rooms import NOW, Rooms
from tests.unit.test_cli import dovecote, rooms

__all__ = ["rooms"]


@pytest.fixture
def session(rooms: Rooms) -> str:
    with Dovecote() as client:
        return client.sessions.create().id


@contextmanager
def our_input(content: bytes) -> Iterator[None]:
    """Standard input as a pipe with that in it."""
    reading, writing = os.pipe()
    kept = os.dup(0)
    os.write(writing, content)
    os.close(writing)
    os.dup2(reading, 0)
    os.close(reading)
    try:
        yield
    finally:
        os.dup2(kept, 0)
        os.close(kept)


def test_a_sandbox_is_made_found_and_removed(rooms: Rooms, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        dovecote("sandbox", "create", "--metadata", "chat=7", "--spec", "small", "-e", "A=b=c", "--timeout", "60") == 0
    )
    made = capsys.readouterr().out.strip()
    wishes = rooms.sessions.created[-1]
    assert (wishes["metadata"], wishes["spec"], wishes["env"]) == ({"chat": "7"}, "small", {"A": "b=c"})
    assert wishes["timeout"].total_seconds() == 60
    assert dovecote("sandbox", "ls", "--metadata", "chat=7") == 0
    assert capsys.readouterr().out.splitlines()[1].startswith(made)
    assert dovecote("sandbox", "rm", made) == 0
    assert dovecote("sandbox", "create", "--metadata", "nothing") == 2
    assert dovecote("sandbox", "create", "--metadata", "=x") == 2


def test_exec_shows_output_and_has_the_commands_exit_code(
    rooms: Rooms, session: str, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    rooms.sandboxes.events = [
        Started(1, 2, NOW),
        Output("stdout", 0, b"\xff\x00\n"),
        Output("stderr", 3, b"err\n"),
        Exited(7, None, False, 0),
    ]
    assert dovecote("sandbox", "exec", session, "--", "make", "-j2") == 7
    assert capfdbinary.readouterr() == (b"\xff\x00\n", b"err\n")
    assert rooms.sandboxes.calls[0]["argv"] == ("make", "-j2")
    assert {"number": 1, "released": True} in rooms.sandboxes.calls
    rooms.sandboxes.events = [Started(1, 2, NOW), Exited(None, 9, False, 0)]
    rooms.sandboxes.calls.clear()
    assert dovecote("sandbox", "exec", session, "exit 7") == 137
    assert [call["argv"] for call in rooms.sandboxes.calls if "argv" in call] == [("/bin/sh", "-c", "exit 7")]


def test_exec_passes_our_input_to_its_end(rooms: Rooms, session: str) -> None:
    rooms.sandboxes.events = [Started(1, 2, NOW)]
    rooms.sandboxes.goes_on = True
    rooms.sandboxes.over_when = {"number": 1, "closed": True}
    with our_input(b"\x00hello"):
        assert dovecote("sandbox", "exec", session, "cat") == 0
    started, *later = rooms.sandboxes.calls
    assert started["stdin"] is True
    assert {"number": 1, "data": b"\x00hello"} in later


def test_exec_without_input_gives_none(rooms: Rooms, session: str) -> None:
    rooms.sandboxes.events = [Started(1, 2, NOW), Exited(0, None, False, 0)]
    assert dovecote("sandbox", "exec", "--no-stdin", session, "true") == 0
    assert rooms.sandboxes.calls[0]["stdin"] is False


def test_exec_lets_a_command_go_on_and_says_its_number(
    rooms: Rooms, session: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dovecote("sandbox", "exec", "-d", session, "sleep 100") == 0
    assert capsys.readouterr().out == "7\n"


def test_logs_stop_at_what_is_there_and_say_what_is_not(
    rooms: Rooms, session: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rooms.sandboxes.statuses = [
        CommandStatus(4, "start", 9, True, None, None, False, NOW, 12),
        CommandStatus(5, "", 10, True, None, None, False, NOW, 0),
    ]
    rooms.sandboxes.events = [Dropped(8), Output("stdout", 8, b"tail")]
    rooms.sandboxes.goes_on = True
    assert dovecote("sandbox", "logs", session) == 0
    shown = capsys.readouterr()
    assert (shown.out, "8 bytes" in shown.err) == ("tail", True)
    assert rooms.sandboxes.calls[-1] == {"number": 4, "offset": 0}
    assert dovecote("sandbox", "logs", session, "5") == 0
    assert dovecote("sandbox", "logs", session, "6") == 1
    assert "[no_such_command]" in capsys.readouterr().err


def test_a_shell_without_a_terminal_reads_our_input(rooms: Rooms, session: str) -> None:
    rooms.sandboxes.events = [Started(1, 2, NOW)]
    rooms.sandboxes.goes_on = True
    rooms.sandboxes.over_when = {"number": 1, "closed": True}
    with our_input(b"ls\n"):
        assert dovecote("sandbox", "shell", session) == 0
    assert {"number": 1, "data": b"ls\n"} in rooms.sandboxes.calls
    assert rooms.sandboxes.calls[0]["pty"] is None


def test_files_are_copied_in_and_out(
    rooms: Rooms, session: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = os.urandom(1 << 20)
    (tmp_path / "a").write_bytes(content)
    assert dovecote("sandbox", "cp", str(tmp_path / "a"), f"{session}:dir/") == 0
    assert dovecote("sandbox", "cp", str(tmp_path / "a"), f"{session}:dir") == 0  # it is a directory by now
    assert list(rooms.sandboxes.files) == ["dir/a"]
    assert dovecote("sandbox", "cp", str(tmp_path / "a"), f"{session}:other") == 0
    assert dovecote("sandbox", "cp", f"{session}:dir/a", str(tmp_path / "b")) == 0
    assert ((tmp_path / "b").read_bytes(), (tmp_path / "b").stat().st_mode & 0o777) == (content, 0o640)
    (tmp_path / "into").mkdir()
    assert dovecote("sandbox", "cp", f"{session}:other", str(tmp_path / "into")) == 0
    assert (tmp_path / "into" / "other").read_bytes() == content
    assert dovecote("sandbox", "cp", f"{session}:missing", str(tmp_path / "c")) == 1
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a", "b", "into"]
    assert dovecote("sandbox", "cp", "here", "there") == 1
    capsys.readouterr()
    assert dovecote("sandbox", "cp", str(tmp_path / "nothing"), f"{session}:x") == 1
    assert "No such file" in capsys.readouterr().err


def test_a_port_has_an_address_before_anything_listens(
    rooms: Rooms, session: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dovecote("sandbox", "port", session, "3000") == 0
    slug = rooms.sessions.all[session].slug
    assert capsys.readouterr().out == f"http://3000-{slug}.box.localhost:8080\n"


@pytest.mark.parametrize(
    ("typed", "passed", "was_used"),
    [
        ([b"ls\r"], b"ls\r", False),
        ([b"~."], b"", True),
        ([b"ls\r~", b".more"], b"ls\r", True),
        ([b"a~."], b"a~.", False),
        ([b"\r~~."], b"\r~.", False),
        ([b"\r~x"], b"\r~x", False),
        ([b"\r", b"~", b"\r", b"~."], b"\r~\r", True),
    ],
)
def test_leaving_is_enter_tilde_dot(typed: list[bytes], passed: bytes, was_used: bool) -> None:
    escape = Escape()
    assert b"".join(escape.pass_on(piece) for piece in typed) == passed
    assert escape.was_used is was_used
