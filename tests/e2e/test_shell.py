"""`dovecote sandbox` at a real terminal and beside one, with real sandboxes."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dovecote.sdk import Dovecote, Session
from tests.e2e.installation import Installation, running, until

pytestmark = pytest.mark.e2e

WITHIN = 60.0  # seconds


class Terminal:
    """A person at a terminal of 80 columns, on which a command runs."""

    def __init__(self, installation: Installation, *words: str) -> None:
        self._leader, follower = pty.openpty()
        self.resize(24, 80)
        self.before = termios.tcgetattr(follower)
        self._follower = follower
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dovecote", *words],
            env=installation.environ,
            stdin=follower,
            stdout=follower,
            stderr=follower,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        self.text = b""

    def resize(self, rows: int, cols: int) -> None:
        fcntl.ioctl(self._leader, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    def type(self, text: str) -> None:
        os.write(self._leader, text.encode())

    def until(self, text: str) -> None:
        deadline = time.monotonic() + WITHIN
        while text.encode() not in self.text:
            assert time.monotonic() < deadline, f"no {text!r} in {self.text[-3000:]!r}"
            if select.select([self._leader], [], [], 1)[0]:
                self.text += os.read(self._leader, 1 << 16)
        self.text = self.text.partition(text.encode())[2]

    def ends(self) -> int:
        """Its exit code; what it still prints is read."""
        deadline = time.monotonic() + WITHIN
        while self.process.poll() is None:
            assert time.monotonic() < deadline, "it does not end"
            if select.select([self._leader], [], [], 0.1)[0]:
                self.text += os.read(self._leader, 1 << 16)
        while select.select([self._leader], [], [], 0)[0]:
            self.text += os.read(self._leader, 1 << 16)
        return self.process.returncode

    @property
    def is_as_before(self) -> bool:
        return termios.tcgetattr(self._follower) == self.before

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        os.close(self._leader)
        os.close(self._follower)


@contextmanager
def at_terminal(installation: Installation, *words: str) -> Iterator[Terminal]:
    terminal = Terminal(installation, *words)
    try:
        yield terminal
    finally:
        terminal.close()


@pytest.fixture
def session(dovecote: Dovecote) -> Iterator[Session]:
    with dovecote.sessions.create() as made:
        yield made


def test_a_shell_is_as_if_one_sat_there(installation: Installation, session: Session) -> None:
    with at_terminal(installation, "sandbox", "shell", session.id) as terminal:
        terminal.until("$ ")
        terminal.type("stty size; echo $((6*7))\r")
        terminal.until("24 80\r\n42\r\n")
        assert not terminal.is_as_before  # keys come as they are
        terminal.resize(50, 132)
        os.kill(terminal.process.pid, signal.SIGWINCH)
        until(lambda: session.run("stty -F /dev/pts/0 size").stdout == "50 132\n", "the size got there")
        terminal.type("sleep 1000\r")
        until(lambda: session.run("pgrep -x sleep").exit_code == 0, "it sleeps")
        terminal.type("\x03")
        until(lambda: session.run("pgrep -x sleep").exit_code == 1, "Ctrl-C ended it")
        terminal.type("exit 9\r")
        assert terminal.ends() == 9
        assert terminal.is_as_before


def test_a_shell_is_left_and_found_again(installation: Installation, session: Session) -> None:
    with at_terminal(installation, "sandbox", "shell", session.id) as terminal:
        terminal.until("$ ")
        terminal.type("kept=here; echo is-$kept\r")
        terminal.until("is-here")
        terminal.type("\r~.")
        assert terminal.ends() == 0
        assert terminal.is_as_before
        assert b"--attach 1" in terminal.text
    with at_terminal(installation, "sandbox", "shell", session.id, "--attach", "1") as again:
        again.until("is-here")  # what it printed is shown again
        again.type("echo still-$kept\r")
        again.until("still-here")
        again.type("exit\r")
        assert again.ends() == 0


def test_a_shell_and_a_command_outlive_the_server(tmp_path: Path) -> None:
    with running(quiet_after=30, tick=0.2) as there, there.client() as client, client.sessions.create() as session:
        words = [sys.executable, "-m", "dovecote", "sandbox", "exec", session.id]
        line = "echo begun; until test -e /tmp/go; do sleep 0.1; done; seq 100000; exit 4"
        with (
            (tmp_path / "out").open("wb") as out,
            subprocess.Popen([*words, line], env=there.environ, stdin=subprocess.DEVNULL, stdout=out) as command,
            at_terminal(there, "sandbox", "shell", session.id) as terminal,
        ):
            terminal.until("$ ")
            terminal.type("kept=here; echo took-$kept\r")
            terminal.until("took-here")
            until(lambda: (tmp_path / "out").read_bytes() == b"begun\n", "the command has begun")
            there.kill()
            there.start()
            session.run("touch /tmp/go")
            assert command.wait(WITHIN) == 4
            expected = b"begun\n" + b"".join(b"%d\n" % number for number in range(1, 100001))
            assert (tmp_path / "out").read_bytes() == expected
            until(lambda: _answers(terminal), "the shell answers again")
            terminal.type("exit 3\r")
            assert terminal.ends() == 3


def _answers(terminal: Terminal) -> bool:
    terminal.type("echo is-$kept\r")
    if select.select([terminal._leader], [], [], 1)[0]:
        terminal.text += os.read(terminal._leader, 1 << 16)
    return b"is-here" in terminal.text


def test_a_command_gets_input_and_signals_byte_for_byte(installation: Installation, session: Session) -> None:
    content = os.urandom(9 << 20)
    words = [sys.executable, "-m", "dovecote", "sandbox", "exec", session.id]
    done = subprocess.run([*words, "cat"], env=installation.environ, input=content, capture_output=True, timeout=WITHIN)
    assert (done.returncode, done.stdout == content, done.stderr) == (0, True, b"")
    late = "sleep 2; md5sum"  # it does not read while its pipe is full
    done = subprocess.run([*words, late], env=installation.environ, input=content, capture_output=True, timeout=WITHIN)
    assert (done.returncode, len(done.stdout.split()[0])) == (0, 32)
    line = "trap 'echo got; exit 6' INT; echo up; while :; do sleep 0.05; done"
    with subprocess.Popen(
        [*words, line], env=installation.environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.send_signal(signal.SIGINT)
        assert (process.stdout.read(), process.wait(WITHIN)) == (b"got\n", 6)
    assert session.commands() == []  # each was released


def test_much_output_is_whole(installation: Installation, session: Session) -> None:
    """Also what is printed before anybody could attach: the stream is there from the beginning."""
    done = installation.command("sandbox", "exec", session.id, "head -c 20000000 /dev/zero | tr '\\0' x")
    assert (done.returncode, len(done.stdout), done.stderr) == (0, 20_000_000, "")


def test_a_background_command_is_looked_at_later(installation: Installation, session: Session) -> None:
    line = "echo one; until test -e /tmp/go; do sleep 0.1; done; echo two"
    number = installation.command("sandbox", "exec", "-d", session.id, line).stdout.strip()
    until(lambda: session.commands()[0].output_bytes == 4, "it printed")
    assert installation.command("sandbox", "logs", session.id, number).stdout == "one\n"
    session.run("touch /tmp/go")
    assert installation.command("sandbox", "logs", "-f", session.id, number).stdout == "one\ntwo\n"


def test_a_directory_is_copied_both_ways(installation: Installation, session: Session, tmp_path: Path) -> None:
    source = tmp_path / "app"
    (source / "sub" / "empty").mkdir(parents=True)
    (source / "run.sh").write_text("echo hi\n")
    (source / "run.sh").chmod(0o750)
    (source / "link").symlink_to("/usr/bin/env")
    (source / "sub" / "data").write_bytes(os.urandom(5 << 20))
    assert installation.command("sandbox", "cp", str(source), f"{session.id}:copy").returncode == 0
    look = "cd copy && stat -c '%A %U %n' run.sh sub/empty && readlink link && md5sum < sub/data"
    inside = session.run(look, check=True).stdout.splitlines()
    assert inside[:3] == ["-rwxr-x--- user run.sh", "drwxr-xr-x user sub/empty", "/usr/bin/env"]
    assert installation.command("sandbox", "cp", str(source), f"{session.id}:copy").returncode == 0
    assert session.run("test -d copy/app/sub").exit_code == 0  # onto a directory is into it
    session.run("rm -rf copy/app", check=True)
    back = tmp_path / "back"
    assert installation.command("sandbox", "cp", f"{session.id}:copy", str(back)).returncode == 0
    compared = subprocess.run(["diff", "-r", "--no-dereference", source, back], capture_output=True, timeout=60)
    assert (compared.returncode, compared.stdout) == (0, b"")
    assert (back / "run.sh").stat().st_mode & 0o777 == 0o750


def test_what_cannot_be_copied_says_why(installation: Installation, session: Session, tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "file").write_text("x")
    done = installation.command("sandbox", "cp", str(tmp_path / "app"), f"{session.id}:/etc/app")
    assert (done.returncode, "[copy_failed]" in done.stderr, "Permission denied" in done.stderr) == (1, True, True)
    done = installation.command("sandbox", "cp", f"{session.id}:/root", str(tmp_path / "root"))
    assert done.returncode == 1
    assert (
        installation.command(
            "sandbox", "cp", str(tmp_path / "app"), f"{session.id}:/root/app", "--user", "root"
        ).returncode
        == 0
    )
