"""A session, from the outside: commands, files, ports, rest and waking."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from dovecote.host.processes import process_started
from dovecote.sdk import Dovecote, DovecoteError
from tests.e2e.installation import Installation, until

pytestmark = pytest.mark.e2e

SERVER = "python3 -u -m http.server $PORT --bind 0.0.0.0"


def state(session: object) -> str:
    return session.refresh().state  # type: ignore[attr-defined, no-any-return]


def test_commands_run_as_the_user_and_say_how_they_ended(dovecote: Dovecote) -> None:
    with dovecote.sessions.create() as session:
        done = session.run("whoami; pwd; echo oops >&2; exit 3")
        assert (done.stdout, done.stderr, done.exit_code) == ("user\n/home/user\n", "oops\n", 3)
        assert session.run("sudo -n whoami").stdout == "root\n"


def test_the_base_template_can_do_what_an_agent_needs(dovecote: Dovecote) -> None:
    with dovecote.sessions.create() as session:
        for command in ("git --version", "curl --version", "node --version", "npm --version", "python3 -m venv --help"):
            assert session.run(command).exit_code == 0, command


def test_parking_keeps_files_modes_links_and_deletions(dovecote: Dovecote) -> None:
    with dovecote.sessions.create() as session:
        session.run(
            "mkdir -p app/deep && echo one > app/a && cp app/a app/deep/b && ln -s a app/link && ln app/a app/hard"
            " && chmod 750 app/a && sudo sh -c 'echo changed >> /etc/motd; rm /etc/issue; touch /opt/by-root'"
            " && truncate -s 10M app/sparse",
            check=True,
        )
        look = (
            "stat -c '%n %A %U %G' app/* /opt/by-root; stat -c '%n %s %h' app/a app/hard app/sparse;"
            " readlink app/link; cat app/hard app/deep/b;"
            " tail -1 /etc/motd; ls /etc/issue 2>&1; md5sum app/sparse"
        )
        before = session.run(look).stdout
        for _ in range(2):  # the second time a delta is folded into a delta
            assert session.park().state == "parked"
            assert session.run(look).stdout == before
        session.run("rm -rf app/deep && mv app renamed", check=True)
        session.park()
        assert session.run("ls renamed/a; ls app 2>&1; ls renamed/deep 2>&1").stdout.count("No such file") == 2


def test_what_does_not_survive_parking_is_run_and_shm(dovecote: Dovecote) -> None:
    with dovecote.sessions.create() as session:
        session.run("sudo touch /run/a /dev/shm/a; touch /tmp/kept", check=True)
        session.park()
        assert session.run("ls /run/a /dev/shm/a /tmp/kept 2>/dev/null").stdout == "/tmp/kept\n"


def test_a_quiet_session_freezes_and_a_request_thaws_it(dovecote: Dovecote) -> None:
    with dovecote.sessions.create() as session:
        session.set_start(SERVER, 8000)
        session.wake()
        with dovecote.http_for(session.url(8000)) as web:
            assert web.get("/").status_code == 200
            until(lambda: state(session) == "frozen", "it freezes when quiet")
            assert web.get("/").status_code == 200
            assert state(session) == "ready"


def test_an_idle_session_is_parked_and_its_next_request_is_held_until_its_server_answers(dovecote: Dovecote) -> None:
    with dovecote.sessions.create() as session:
        session.files.write("index.html", b"<p>still here</p>")
        session.set_start(SERVER, 8000)
        with dovecote.http_for(session.url(8000)) as web:
            assert "still here" in web.get("/").text
            session.update(idle_after=2)
            until(lambda: state(session) == "parked", "it parks when idle")
            assert session.view.reason.startswith("idle for")
            assert "still here" in web.get("/").text


def test_a_running_command_keeps_its_session_awake(dovecote: Dovecote) -> None:
    with dovecote.sessions.create(quiet_after=0.5) as session:
        command = session.start("sleep 4; echo done > finished")
        command.wait()
        assert session.files.read_text("finished") == "done\n"


def test_a_killed_instance_loses_no_file(dovecote: Dovecote) -> None:
    with dovecote.sessions.create() as session:
        session.files.write("notes", b"written before the kill")
        session.set_start(SERVER, 8000)
        with dovecote.http_for(session.url(8000)) as web:
            assert web.get("/notes").status_code == 200
            pid = session.instance().pid
            os.kill(pid, signal.SIGKILL)
            until(lambda: process_started(pid) is None, "all of it is dead")
            assert web.get("/notes").text == "written before the kill"
        assert "still on the host" in session.refresh().reason


def test_a_lost_session_can_be_parked_from_what_its_instance_left(dovecote: Dovecote) -> None:
    with dovecote.sessions.create() as session:
        session.files.write("notes", b"left behind")
        os.kill(session.instance().pid, signal.SIGKILL)
        until(lambda: state(session) == "lost", "its death is noted")
        assert session.park().state == "parked"
        assert session.files.read_text("notes") == "left behind"


def test_a_session_key_is_another_session_for_another_user(installation: Installation, dovecote: Dovecote) -> None:
    with (
        dovecote.sessions.create(key="same", user="ada") as mine,
        dovecote.sessions.create(key="same", user="bob") as theirs,
    ):
        assert mine.id != theirs.id
        mine.files.write("secret", b"ada's")
        assert theirs.run("ls").stdout == ""


def test_a_thousand_requests_for_a_parked_session_start_one_server(dovecote: Dovecote) -> None:
    with dovecote.sessions.create() as session:
        session.set_start(SERVER, 8000)
        session.park()
        with dovecote.http_for(session.url(8000)) as web, ThreadPoolExecutor(50) as pool:
            answers = list(pool.map(lambda _: web.get("/", timeout=60), range(1000)))
        refused = [answer.text for answer in answers if answer.status_code != 200]
        assert refused == []
        assert len(answers) == 1000
        started = [command for command in session.commands() if command.tag == "start"]
        assert len(started) == 1


def test_output_streams_and_a_dropped_reader_does_not_end_the_command(dovecote: Dovecote) -> None:
    with dovecote.sessions.create() as session:
        command = session.start("for i in 1 2 3 4 5; do echo line $i; sleep 0.2; done; echo end > done")
        for event in command.output():
            if getattr(event, "data", "").startswith("line 1"):
                break
        command.wait()
        assert session.files.read_text("done") == "end\n"


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"method": "GET", "path": "/v1/sessions/nonsense"}, 400, "malformed_id"),
        ({"method": "GET", "path": "/v1/sessions/ses_" + "a" * 26}, 404, "no_such_session"),
        ({"method": "GET", "path": "/v1/nothing"}, 404, None),
        (
            {"method": "POST", "path": "/v1/functions", "json": {"name": "f", "template": "none"}},
            404,
            "no_such_template",
        ),
        ({"method": "POST", "path": "/v1/sessions", "json": {"key": "a b"}}, 400, "malformed_id"),
        ({"method": "POST", "path": "/v1/sessions", "json": {"tier": "gold"}}, 404, "no_such_tier"),
        ({"method": "POST", "path": "/v1/sessions", "content": b"{"}, 400, None),
    ],
)
def test_bad_input_gets_one_clear_error(
    installation: Installation, change: dict[str, object], status: int, code: str | None
) -> None:
    method, path = str(change.pop("method")), str(change.pop("path"))
    headers = {"authorization": f"Bearer {installation.api_key}"}
    answer = httpx.request(method, installation.url + path, headers=headers, **change)  # type: ignore[arg-type]
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["message"]
    assert error["request_id"]
    assert code is None or error["code"] == code


def test_a_wrong_key_is_refused_everywhere(installation: Installation, dovecote: Dovecote) -> None:
    with pytest.raises(DovecoteError) as caught, installation.client(api_key="dvc_wrong") as stranger:
        stranger.sessions.list()
    assert caught.value.status == 401
    answer = httpx.get(
        installation.url,
        headers={"host": f"sandbox.fn.localhost:{installation.port}", "x-dovecote-key": "dvc_wrong"},
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "bad_key")


def test_a_port_that_never_opens_says_so(dovecote: Dovecote) -> None:
    with dovecote.sessions.create() as session:
        with dovecote.http_for(session.url(9999)) as web:
            assert web.get("/").json()["error"]["code"] == "port_closed"
        session.set_start("echo I cannot; exit 1", 9999)
        with dovecote.http_for(session.url(9999)) as web:
            error = web.get("/").json()["error"]
            assert error["code"] == "start_failed"
            assert "I cannot" in error["hint"]
        session.set_start("sleep 1000", 9999)
        with dovecote.http_for(session.url(9999)) as web:
            answer = web.get("/", timeout=60)
            assert (answer.status_code, answer.json()["error"]["code"]) == (504, "start_timeout")


def test_a_server_on_127_0_0_1_only_is_named(dovecote: Dovecote) -> None:
    with dovecote.sessions.create() as session:
        session.start("python3 -m http.server 8001 --bind 127.0.0.1")
        until(lambda: [port.port for port in session.ports()] == [8001], "it listens")
        with dovecote.http_for(session.url(8001)) as web:
            assert web.get("/").json()["error"]["code"] == "port_is_local"


def test_a_command_that_never_ends_is_ended_with_all_it_started(dovecote: Dovecote) -> None:
    with dovecote.sessions.create() as session:
        done = session.run("sleep 1000 & sleep 1000", timeout=1)
        assert done.timed_out
        assert session.run("pgrep sleep").stdout == ""


def test_output_without_end_harms_nobody(dovecote: Dovecote) -> None:
    with dovecote.sessions.create() as session:
        done = session.run("yes", timeout=3, max_output=1000)
        assert done.timed_out
        assert done.truncated
        assert done.stdout == "y\n" * 500
        assert session.run("pgrep yes").stdout == ""
        assert session.run("echo fine").stdout == "fine\n"


def test_a_full_disk_hurts_only_its_own_sandbox(dovecote: Dovecote) -> None:
    with dovecote.sessions.create() as full, dovecote.sessions.create() as other:
        done = full.run("head -c 5G /dev/zero > big; df -h /; ls -l big", timeout=120)
        assert "No space left" in done.stderr or "quota exceeded" in done.stderr
        with pytest.raises(DovecoteError) as caught:
            full.files.write("more", b"x" * (1 << 20))
        assert caught.value.code == "disk_full"
        assert other.run("echo hello > fine && cat fine").stdout == "hello\n"
        assert full.run("rm big && echo again > fine && cat fine").stdout == "again\n"


def test_a_fork_bomb_and_a_memory_bomb_hurt_only_themselves(dovecote: Dovecote) -> None:
    with dovecote.sessions.create() as session, dovecote.sessions.create() as other:
        session.run("for i in $(seq 3000); do sleep 5 & done 2>/dev/null; true", timeout=30)
        assert other.run("echo fine").stdout == "fine\n"
        session.run("tail /dev/zero", timeout=30)
        assert other.run("echo fine").stdout == "fine\n"
        until(lambda: session.run("echo alive").stdout == "alive\n", "it goes on or starts again")


def test_sandboxes_do_not_reach_one_another_nor_the_host(installation: Installation, dovecote: Dovecote) -> None:
    link = f"dvc{installation.settings.installation}"
    with (
        dovecote.sessions.create() as session,
        dovecote.sessions.create() as victim,
        dovecote.http_for(victim.url(8000)) as web,
        listening("host") as port,
    ):
        victim.files.write("index.html", b"victim")
        victim.set_start(SERVER, 8000)
        assert web.get("/").text == "victim"
        addresses = host_addresses()
        own = [address for name, address in addresses if name == link]
        others = [address for name, address in addresses if not name.startswith("dvc")]
        assert own
        assert others
        there = {f"{address}:{port}": "host" for address in own + others}
        there[f"{victim.instance().address}:8000"] = "victim"
        for target, text in there.items():  # from the host each of them answers
            assert httpx.get(f"http://{target}/", timeout=5).text == text, target
        for target in [*there, f"127.0.0.1:{port}", f"169.254.1.1:{port}", "169.254.169.254", "169.254.1.1:22"]:
            done = session.run(f"curl -sS -m 3 http://{target}/")
            assert (done.exit_code, done.stdout) in [(7, ""), (28, "")], (target, done)
        assert session.run("curl -sS -m 3 http://127.0.0.1:8000/").exit_code == 7
        assert victim.run("curl -sS -m 3 http://127.0.0.1:8000/").stdout == "victim"


def host_addresses() -> list[tuple[str, str]]:
    """Each IPv4 address of this machine but loopback's, with its link's name."""
    shown = subprocess.run(["ip", "-j", "-4", "addr"], capture_output=True, check=True, timeout=10).stdout
    return [
        (link["ifname"], address["local"])
        for link in json.loads(shown)
        for address in link["addr_info"]
        if link["operstate"] != "DOWN" and link["ifname"] != "lo"
    ]


@contextmanager
def listening(text: str) -> Iterator[int]:
    """A server of this machine on all its addresses, that answers with `text`; gives its port."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("0.0.0.0", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join(10)


def test_an_ended_session_is_gone_and_its_key_is_free(dovecote: Dovecote) -> None:
    session = dovecote.sessions.create(key="once")
    session.delete()
    with pytest.raises(DovecoteError) as caught:
        session.run("true")
    assert caught.value.code == "session_expired"
    with dovecote.sessions.create(key="once") as again:
        assert again.id != session.id


def test_a_session_ends_when_its_time_is_over(dovecote: Dovecote) -> None:
    session = dovecote.sessions.create(ttl=1)
    until(lambda: state(session) == "ended", "its time to live passes")


def test_conversation_and_files_come_back_together(dovecote: Dovecote) -> None:
    with dovecote.sessions.create(user="ada") as session:
        chat = dovecote.chats.create(session, user="ada", title="a site")
        dovecote.chats.add_turn(chat.id, [{"role": "user", "content": "make me a site"}])
        session.files.write("site.html", b"<p>")
        session.park()
        (turn,) = dovecote.chats.turns(chat.id)
        assert turn.messages[0]["content"] == "make me a site"
        assert dovecote.sessions.get(chat.session_id).files.read("site.html") == b"<p>"
