"""Sandboxes with a kernel of their own: what holds at every level holds at `runsc` too."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from dovecote.sdk import Conflict, Dovecote, DovecoteError, Mount, NotFound, Session, Unsupported
from tests.e2e import test_files, test_sandboxes, test_sessions, test_terminals
from tests.e2e.installation import Installation, running, until

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(shutil.which("runsc") is None, reason="install runsc (deploy/install.sh gvisor)"),
]


@pytest.fixture(scope="module")
def own() -> Iterator[Installation]:
    with running(level="runsc", quiet_after=1.5, tick=0.2, start_timeout=20, pool_size=1) as there:
        yield there


@pytest.fixture
def client(own: Installation) -> Iterator[Dovecote]:
    with own.client() as client:
        yield client


AS_ELSEWHERE = [
    test_sessions.test_the_base_template_can_do_what_an_agent_needs,
    test_sessions.test_a_quiet_session_freezes_and_a_request_thaws_it,
    test_sessions.test_an_idle_session_is_parked_and_its_next_request_is_held_until_its_server_answers,
    test_sessions.test_a_running_command_keeps_its_session_awake,
    test_sessions.test_a_killed_instance_loses_no_file,
    test_sessions.test_a_lost_session_can_be_parked_from_what_its_instance_left,
    test_sessions.test_output_streams_and_a_dropped_reader_does_not_end_the_command,
    test_sessions.test_a_server_on_127_0_0_1_only_is_named,
    test_sessions.test_a_command_that_never_ends_is_ended_with_all_it_started,
    test_sessions.test_output_without_end_harms_nobody,
    test_sandboxes.test_a_snapshot_that_outlives_its_sandbox_begins_another,
]


@pytest.mark.parametrize("claim", AS_ELSEWHERE, ids=lambda claim: claim.__name__.removeprefix("test_"))
def test_as_at_every_level(claim: Callable[[Dovecote], None], client: Dovecote) -> None:
    claim(client)


def test_a_terminal_and_a_watch_as_at_every_level(own: Installation, client: Dovecote) -> None:
    test_terminals.test_a_shell_is_a_real_terminal(own, client)
    test_terminals.test_a_terminal_outlives_its_client_and_the_server(client)
    with client.sessions.create() as session:
        test_files.test_a_directory_is_watched_with_all_that_is_made_in_it(session)


def test_files_survive_parking_and_writes_reach_the_store(client: Dovecote) -> None:
    with client.sessions.create() as session:
        assert "gVisor" in session.run("dmesg", check=True).stdout
        script = "echo kept > file; ln -s file link; mkdir -p a/b; chmod 600 file; echo t > /tmp/t; mv /tmp/t t; id -un"
        assert session.run(script, check=True).stdout == "user\n"
        session.run("echo changed >> /etc/motd; rm /etc/issue; touch /run/a /dev/shm/a", user="root", check=True)
        until(lambda: session.lag().state == "saved", "all is saved")
        assert session.park().state == "parked"
        look = "cat file link t; stat -c %a file; ls -d a/b; tail -1 /etc/motd"
        found = session.run(f"{look}; ls /etc/issue /run/a /dev/shm/a 2>/dev/null")
        assert found.stdout == "kept\nkept\nt\n600\na/b\nchanged\n"


def test_commands_survive_a_kill_of_dovecote(own: Installation, client: Dovecote) -> None:
    with client.sessions.create() as session, client.sessions.create() as frozen:
        command = session.start("for i in $(seq 100); do echo tick $i; sleep 0.1; done")
        frozen.run("echo before > file", check=True)
        frozen.freeze()
        instance = session.instance().instance_id
        own.kill()
        own.start()
        assert session.refresh().state == "ready"
        assert session.instance().instance_id == instance
        assert frozen.refresh().state == "frozen"
        assert frozen.run("cat file").stdout == "before\n"
        text = "".join(getattr(event, "data", "") for event in command.output())
        assert text == "".join(f"tick {i}\n" for i in range(1, 101))


def test_volumes_are_there_from_the_start_and_not_mounted_live(client: Dovecote) -> None:
    client.volumes.create("shared", max_bytes=64 << 20)
    try:
        with client.sessions.create(mounts=[Mount("shared", "/data/deep")]) as session:
            session.run("echo one > /data/deep/file; test $(stat -c %U /data/deep/file) = user", check=True)
            with pytest.raises(Unsupported) as refused:
                session.mounts.add(Mount("shared", "/more"))
            assert refused.value.code == "no_live_mount"
            session.park()
            assert session.run("cat /data/deep/file", check=True).stdout == "one\n"
            with client.sessions.create(mounts=[Mount("shared", "/data", read_only=True)]) as other:
                writing = other.run("cat /data/file; echo two > /data/file || echo no", user="root")
                assert writing.stdout == "one\nno\n"
    finally:
        client.volumes.delete("shared", force=True)


def test_bombs_hurt_only_their_own_sandbox(client: Dovecote) -> None:
    """There is no limit of processes inside that its kernel would answer for: it ends, and its files stay."""
    with client.sessions.create() as bomb, client.sessions.create() as other:
        bomb.run("echo kept > file", check=True)
        for script in (":(){ :|:& };:; sleep 5", "head -c 3G /dev/zero | tail"):
            with suppress(DovecoteError):
                bomb.run(f"bash -c '{script}'", timeout=20)
        assert other.run("echo fine").stdout == "fine\n"

        def kept() -> str:
            with suppress(DovecoteError):  # its guest may end in the middle of an answer
                return bomb.run("cat file").stdout
            return ""

        assert until(kept, "it is back") == "kept\n"


def test_a_full_disk_is_told_and_has_room_again(client: Dovecote) -> None:
    with client.sessions.create(spec="nano") as full:
        done = full.run("head -c 2G /dev/zero > big", timeout=120)
        assert "No space left" in done.stderr or "quota exceeded" in done.stderr
        full.run("rm big", check=True)
        # Its kernel keeps a removed file for a moment.
        assert until(lambda: full.run("echo again > fine && cat fine").stdout, "there is room") == "again\n"


def test_the_gateway_and_other_sandboxes_are_out_of_reach(client: Dovecote) -> None:
    with client.sessions.create() as one, client.sessions.create() as other:
        one.set_start("python3 -m http.server $PORT", 8000)
        one.wake()
        address = one.instance().address
        for place in (f"http://{address}:8000/", "http://169.254.169.254/", "http://169.254.1.1:80/"):
            assert other.run(f"curl -s -m 3 {place}").exit_code in (7, 28), place
        with client.http_for(one.url(8000)) as web:
            assert web.get("/").status_code == 200


COUNTER = """
import http.server, time
count, born = 0, time.time()

class Counter(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        global count
        count += 1
        with open("log", "a") as log:
            log.write(f"{count}\\n")
        self.send_response(200)
        self.end_headers()
        self.wfile.write(str(count).encode())

http.server.ThreadingHTTPServer(("", 8000), Counter).serve_forever()
"""


def counting(session: Session) -> int:
    """A server whose memory nobody could rebuild: the number of its command."""
    session.files.write("counter.py", COUNTER)
    number = session.start("python3 counter.py").number
    until(lambda: [port.port for port in session.ports()] == [8000], "it listens")
    return number


def count(client: Dovecote, session: Session) -> int:
    with client.http_for(session.url(8000)) as web:
        return int(web.get("/").raise_for_status().text)


def test_a_paused_sandbox_is_in_the_store_and_goes_on_with_its_memory(own: Installation, client: Dovecote) -> None:
    with client.sessions.create() as session:
        number = counting(session)
        shell = session.start("secret=kept; read line; echo $secret $line", stdin=True)
        assert [count(client, session) for _ in range(3)] == [1, 2, 3]
        before = session.instance()
        view = session.pause(hibernate=True)
        assert (view.state, view.is_paused, view.is_hibernated) == ("parked", True, True)
        with pytest.raises(NotFound):
            session.instance()
        with pytest.raises(Conflict, match="paused"):
            session.pause()
        own.stop()
        own.start()
        assert count(client, session) == 4
        view = session.refresh()
        assert (view.state, view.is_hibernated, view.reason) == ("ready", False, "its processes go on where they were")
        assert session.instance().address != before.address
        assert session.files.read_text("log") == "1\n2\n3\n4\n"
        assert {each.number for each in session.commands() if each.is_running} >= {number, shell.number}
        shell.write("again\n")
        assert shell.wait().stdout == "kept again\n"
        session.park()
        assert session.files.read_text("log") == "1\n2\n3\n4\n"
        assert [each for each in session.commands() if each.is_running] == []


def test_forks_of_what_runs_go_their_own_ways(client: Dovecote) -> None:
    with client.sessions.create() as session:
        counting(session)
        assert count(client, session) == 1
        with session.fork(memory=True) as fork, session.fork(memory=True) as other:
            assert count(client, session) == 2
            assert [count(client, fork) for _ in range(3)] == [2, 3, 4]
            assert count(client, other) == 2
            assert fork.files.read_text("log") == "1\n2\n3\n4\n"
            assert session.files.read_text("log") == "1\n2\n"
        kept = session.snapshot(memory=True, outlives_session=True)
        assert kept.has_memory
        assert count(client, session) == 3
    with client.sessions.create(snapshot=kept.id, wake=False) as begun:
        assert begun.view.is_hibernated
        assert count(client, begun) == 3
        assert begun.refresh().reason == "its processes go on where they were"


def test_an_idle_sandbox_keeps_its_processes_if_it_says_so(client: Dovecote) -> None:
    with client.sessions.create(park="memory", idle_after=2) as session:
        counting(session)
        count(client, session)
        # A running command keeps it awake; what was started as its server does not.
        for each in session.commands():
            if each.is_running:
                session.command(each.number).signal("SIGKILL")
        until(lambda: not any(each.is_running for each in session.commands()), "what counted has ended")
        session.set_start("python3 counter.py", 8000)
        session.wake()
        first = count(client, session)
        until(lambda: session.refresh().is_hibernated, "it is hibernated")
        assert count(client, session) == first + 1


def test_where_memory_cannot_be_saved_the_level_that_can_is_named(client: Dovecote) -> None:
    with client.sessions.create(level="crun") as plain:
        with pytest.raises(Unsupported) as refused:
            plain.pause(hibernate=True)
        assert refused.value.code == "cannot_hibernate"
        assert "runsc" in refused.value.hint
        assert plain.run("echo goes on").stdout == "goes on\n"
        assert plain.pause().state == "frozen"


REFUSING = """#!/bin/sh
case " $* " in *" restore "*) exit 1 ;; esac
exec {runsc} "$@"
"""


def test_memory_that_cannot_be_restored_costs_no_file(own: Installation, client: Dovecote, tmp_path: Path) -> None:
    with client.sessions.create() as session:
        counting(session)
        assert count(client, session) == 1
        assert session.pause().is_hibernated
        other = tmp_path / "runsc"
        other.write_text(REFUSING.format(runsc=shutil.which("runsc")))
        other.chmod(0o755)
        path = own.environ["PATH"]
        own.stop()
        own.environ["PATH"] = f"{tmp_path}:{path}"
        own.start()
        try:
            assert session.resume().state == "ready"
            assert session.view.reason.startswith("its processes could not be restored, it began from its files")
            assert session.files.read_text("log") == "1\n"
            assert session.commands() == []
        finally:
            own.stop()
            own.environ["PATH"] = path
            own.start()


@pytest.mark.parametrize("after", [0.02, 0.1, 0.2, 0.3, 0.45])
def test_a_kill_in_the_middle_of_hibernating_loses_no_process(
    own: Installation, client: Dovecote, after: float
) -> None:
    """It runs on, or it is in the store: either way its memory is there."""
    with client.sessions.create() as session:
        counting(session)
        assert count(client, session) == 1
        with own.client() as another:
            pausing = threading.Thread(target=suppressed, args=(another.sessions.get(session.id).pause,))
            pausing.start()
            time.sleep(after)  # a moment as good as any
            own.kill()
            pausing.join(30)
        own.start()
        assert count(client, session) == 2
        assert session.files.read_text("log") == "1\n2\n"
        session.pause()
        assert count(client, session) == 3


def suppressed(act: Callable[[], object]) -> None:
    with suppress(DovecoteError):
        act()
