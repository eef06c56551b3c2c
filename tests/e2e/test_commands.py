"""Commands inside a sandbox from the outside: users, ends, and output that is more than anybody reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from dovecote.sdk import Dovecote, Dropped, Exited, NotFound, Output, Session
from tests.e2e.installation import Installation, until

pytestmark = pytest.mark.e2e

MIB = 1 << 20


@pytest.fixture
def session(dovecote: Dovecote) -> Iterator[Session]:
    with dovecote.sessions.create() as session:
        yield session


def test_a_user_becomes_root_without_a_password_and_a_timeout_ends_also_what_root_runs(session: Session) -> None:
    assert session.run("id -un; sudo -n id -un").stdout == "user\nroot\n"
    done = session.run("sudo -n sleep 4801 & sudo -n sh -c 'sleep 4801 & sleep 4801'", timeout=1)
    assert (done.timed_out, done.signal) == (True, 9)
    until(lambda: session.run("pgrep -fc '^sleep 4801'").stdout == "0\n", "all that it started is gone")


def test_a_working_directory_that_is_not_there_is_said_by_its_own_code(session: Session) -> None:
    with pytest.raises(NotFound) as error:
        session.run("true", cwd="/home/user/nowhere")
    assert error.value.code == "no_such_directory"


def test_input_ends_and_signals_reach_what_the_shell_started(session: Session) -> None:
    counting = session.start("wc -c", stdin=True)
    counting.write("é" * 1000)
    counting.close_stdin()
    assert counting.wait().stdout == "2000\n"
    waiting = session.start("sleep 4802 | cat")
    until(lambda: session.run("pgrep -fc '^sleep 4802'").stdout == "1\n", "it runs")
    waiting.signal("SIGTERM")
    assert waiting.wait().signal == 15
    until(lambda: session.run("pgrep -fc '^sleep 4802'").stdout == "0\n", "it is gone")


def test_output_that_nobody_read_in_time_is_marked_where_it_is_missing(session: Session) -> None:
    command = session.start("seq 1 400000")
    until(lambda: not session.commands()[0].is_running, "it ends though nobody reads")
    first, *rest = command.output()
    assert isinstance(first, Dropped)
    kept = "".join(event.data for event in rest if isinstance(event, Output))
    whole = "".join(f"{i}\n" for i in range(1, 400_001))
    assert whole.endswith(kept)
    assert first.bytes + len(kept) == len(whole)
    assert MIB - 64 * 1024 <= len(kept) <= MIB
    assert command.wait().truncated


def test_a_reader_that_stops_holds_up_its_command_and_nobody_else(session: Session, installation: Installation) -> None:
    with closing(session.stream("yes | head -c 2G")) as events:
        for event in events:
            if isinstance(event, Output):
                break
        before = resident(installation)
        assert session.run("echo fine").stdout == "fine\n"
        assert session.commands()[0].output_bytes < 64 * MIB
        assert resident(installation) - before < 64 * MIB
    session.command(1).signal("SIGKILL")
    *_, end = session.command(1).output()
    assert isinstance(end, Exited)


def test_large_files_pass_through_the_server_and_do_not_stay_in_it(
    session: Session, installation: Installation
) -> None:
    piece = bytes(range(256)) * 4096
    session.files.write("warm", piece)
    before = resident(installation)
    session.files.write("big", (piece for _ in range(200)))
    assert session.files.stat("big").size == 200 * MIB
    assert sum(map(len, session.files.download("big"))) == 200 * MIB
    assert highest(installation) - before < 64 * MIB


def resident(installation: Installation) -> int:
    """Of the server, in bytes; the highest is counted from here on."""
    assert installation.process is not None
    place = f"/proc/{installation.process.pid}"
    with open(f"{place}/clear_refs", "w") as file:
        file.write("5")
    return _field(f"{place}/status", "VmRSS")


def highest(installation: Installation) -> int:
    assert installation.process is not None
    return _field(f"/proc/{installation.process.pid}/status", "VmHWM")


def _field(path: str, name: str) -> int:
    with open(path) as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) * 1024
