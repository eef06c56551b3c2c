"""Commands and terminals, by E2B's Python SDK."""

from __future__ import annotations

import pytest
from e2b import (
    AuthenticationException,
    CommandExitException,
    InvalidArgumentException,
    NotFoundException,
    PtySize,
    Sandbox,
    TimeoutException,
)


def test_a_command_runs_as_the_user_at_home_with_the_sandboxes_environment(sandbox: Sandbox) -> None:
    done = sandbox.commands.run("whoami; pwd; echo $HOME $OF_THE_SANDBOX $OWN; echo err >&2", envs={"OWN": "mine"})
    assert done.stdout == "user\n/home/user\n/home/user yes mine\n"
    assert (done.stderr, done.exit_code, done.error) == ("err\n", 0, None)


def test_a_program_knows_its_sandbox(sandbox: Sandbox) -> None:
    done = sandbox.commands.run("echo $E2B_SANDBOX $E2B_SANDBOX_ID")
    assert done.stdout == f"true {sandbox.sandbox_id}\n"
    assert sandbox.commands.run("echo $E2B_SANDBOX", envs={"E2B_SANDBOX": "mine"}).stdout == "mine\n"


def test_a_command_may_be_roots_and_elsewhere(sandbox: Sandbox) -> None:
    assert sandbox.commands.run("whoami; pwd", user="root").stdout == "root\n/root\n"
    assert sandbox.commands.run("pwd", cwd="/usr/lib").stdout == "/usr/lib\n"
    assert sandbox.commands.run("sudo whoami").stdout == "root\n"
    sandbox.files.make_dir("below/it")
    assert sandbox.commands.run("pwd", cwd="below/it").stdout == "/home/user/below/it\n"
    assert sandbox.commands.run("pwd", cwd="~/below").stdout == "/home/user/below\n"


def test_a_failure_tells_its_code_and_all_of_its_output(sandbox: Sandbox) -> None:
    with pytest.raises(CommandExitException) as failure:
        sandbox.commands.run("echo out; echo err >&2; exit 7")
    assert (failure.value.exit_code, failure.value.stdout, failure.value.stderr) == (7, "out\n", "err\n")
    assert failure.value.error == "exit status 7"


def test_what_cannot_be_started_says_why(sandbox: Sandbox) -> None:
    with pytest.raises(InvalidArgumentException):
        sandbox.commands.run("true", cwd="/nowhere")
    with pytest.raises(AuthenticationException):
        sandbox.commands.run("true", user="nobody-of-that-name")


def test_output_comes_piece_by_piece_with_characters_whole(sandbox: Sandbox) -> None:
    out: list[str] = []
    err: list[str] = []
    done = sandbox.commands.run(
        "for i in 1 2 3; do echo grüße-$i; echo 漢$i >&2; sleep 0.1; done", on_stdout=out.append, on_stderr=err.append
    )
    assert "".join(out) == done.stdout == "grüße-1\ngrüße-2\ngrüße-3\n"
    assert "".join(err) == done.stderr == "漢1\n漢2\n漢3\n"
    assert len(out) > 1


def test_much_output_arrives_whole(sandbox: Sandbox) -> None:
    assert len(sandbox.commands.run("head -c 20000000 /dev/zero | tr '\\0' x").stdout) == 20_000_000


def test_a_timeout_ends_the_command(sandbox: Sandbox) -> None:
    with pytest.raises(TimeoutException):
        sandbox.commands.run("exec -a outlives sleep 600", timeout=1)
    sandbox.commands.run("for i in $(seq 100); do pgrep -f outlive[s] >/dev/null || exit 0; sleep 0.1; done; exit 1")


def test_one_in_the_background_is_listed_found_by_another_client_and_killed(sandbox: Sandbox) -> None:
    handle = sandbox.commands.run("echo begins; sleep 600", background=True, envs={"A": "b"}, cwd="/tmp")
    other = Sandbox.connect(sandbox.sandbox_id)
    mine = next(each for each in other.commands.list() if each.pid == handle.pid)
    assert (mine.cmd, mine.args, mine.envs, mine.cwd) == (
        "/bin/bash",
        ["-l", "-c", "echo begins; sleep 600"],
        {"A": "b"},
        "/tmp",
    )
    again = other.commands.connect(handle.pid)
    assert again.pid == handle.pid
    assert other.commands.kill(handle.pid)
    for each in (handle, again):
        with pytest.raises(CommandExitException) as ended:
            each.wait()
        assert (ended.value.exit_code, ended.value.error) == (-1, "signal: killed")
    assert not other.commands.kill(handle.pid)
    assert handle.pid not in {each.pid for each in other.commands.list()}
    with pytest.raises(NotFoundException):
        other.commands.connect(handle.pid)


def test_a_client_that_leaves_ends_nothing(sandbox: Sandbox) -> None:
    handle = sandbox.commands.run("read line; echo got $line", background=True, stdin=True)
    handle.disconnect()
    again = sandbox.commands.connect(handle.pid)
    sandbox.commands.send_stdin(handle.pid, "it\n")
    assert again.wait().stdout == "got it\n"


def test_input_is_sent_until_it_is_closed(sandbox: Sandbox) -> None:
    handle = sandbox.commands.run("cat; echo end", background=True, stdin=True)
    sandbox.commands.send_stdin(handle.pid, "grüße\n")
    if hasattr(sandbox.commands, "stream_input"):
        sandbox.commands.stream_input(handle.pid, [b"a", "b", b"\n"])
        wanted = "grüße\nab\nend\n"
    else:
        wanted = "grüße\nend\n"
    sandbox.commands.close_stdin(handle.pid)
    assert handle.wait().stdout == wanted


def test_a_command_without_input_reads_none(sandbox: Sandbox) -> None:
    assert sandbox.commands.run("cat; echo end", timeout=10).stdout == "end\n"


def test_a_terminal_has_a_size_that_may_change(sandbox: Sandbox) -> None:
    terminal = sandbox.pty.create(PtySize(rows=20, cols=81), envs={"OWN": "mine"})
    sandbox.pty.resize(terminal.pid, PtySize(rows=33, cols=77))
    sandbox.pty.send_stdin(terminal.pid, b"stty size; echo $OWN-$TERM; exit 5\n")
    seen: list[bytes] = []
    with pytest.raises(CommandExitException) as ended:
        terminal.wait(on_pty=seen.append)
    assert ended.value.exit_code == 5
    assert b"33 77" in b"".join(seen)
    assert b"mine-xterm" in b"".join(seen)


def test_a_terminal_is_left_and_entered_again(sandbox: Sandbox) -> None:
    terminal = sandbox.pty.create(PtySize(rows=24, cols=80), user="root", cwd="/usr")
    terminal.disconnect()
    again = sandbox.pty.connect(terminal.pid)
    sandbox.pty.send_stdin(terminal.pid, b"whoami; pwd; exit\n")
    seen: list[bytes] = []
    again.wait(on_pty=seen.append)
    assert b"root\r\n/usr\r\n" in b"".join(seen)
    assert not sandbox.pty.kill(terminal.pid)


def test_a_terminal_is_killed(sandbox: Sandbox) -> None:
    terminal = sandbox.pty.create(PtySize(rows=24, cols=80))
    assert sandbox.pty.kill(terminal.pid)
    with pytest.raises(CommandExitException):
        terminal.wait()


def test_git_is_there_for_the_clients_own_calls(sandbox: Sandbox) -> None:
    sandbox.git.init("/home/user/repository")
    sandbox.files.write("/home/user/repository/a", "a")
    assert sandbox.git.status("/home/user/repository").has_untracked
