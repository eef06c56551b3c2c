"""What a sandbox may reach, changed while it runs: tried on a machine outside, for open connections and new ones."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from dovecote.sdk import BadRequest, Dovecote, Network, Session, Unsupported
from tests.e2e.installation import Installation, until

pytestmark = pytest.mark.e2e

HOST, PEER, PORT = "203.0.113.1", "203.0.113.2", 8080  # of a range that is kept for documentation
ECHO = f"""
import socket, threading
def serve(one):
    with one:
        while data := one.recv(100):
            one.sendall(data)
listener = socket.create_server(("{PEER}", {PORT}))
print("ready", flush=True)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""
TRY = f"python3 -c 'import socket; socket.create_connection((\"{PEER}\", {PORT}), 5).close()' 2>/dev/null"
TALK = f"""python3 -u -c '
import socket, time
one = socket.create_connection(("{PEER}", {PORT}), 5)
try:
    while True:
        one.sendall(b"x")
        assert one.recv(1)
        print("heard")
        time.sleep(0.1)
except OSError as error:
    print("cut")
'"""


@dataclass(frozen=True)
class Outside:
    """A machine that this one has a route to."""

    namespace: str
    link: str

    def ip(self, *words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True, timeout=20)


@pytest.fixture
def outside() -> Iterator[Outside]:
    there = Outside(f"dvt-outside-{os.getpid()}", f"dvt{os.getpid()}")
    inner = there.link + "p"
    there.ip("netns", "add", there.namespace)
    try:
        there.ip("link", "add", there.link, "type", "veth", "peer", "name", inner, "netns", there.namespace)
        there.ip("address", "add", f"{HOST}/30", "dev", there.link)
        there.ip("link", "set", there.link, "up")
        there.ip("-n", there.namespace, "address", "add", f"{PEER}/30", "dev", inner)
        there.ip("-n", there.namespace, "link", "set", inner, "up")
        command = ["ip", "netns", "exec", there.namespace, sys.executable, "-c", ECHO]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                assert server.stdout.readline() == "ready\n"
                yield there
            finally:
                server.kill()
    finally:
        there.ip("netns", "delete", there.namespace)


def reaches(session: Session) -> bool:
    return session.run(TRY).exit_code == 0


def test_a_change_holds_at_once_and_after_sleep(dovecote: Dovecote, outside: Outside) -> None:
    with dovecote.sessions.create() as session:
        talk = session.start(TALK)
        until(lambda: talk_of(session, talk.number) > 0, "it talks to the machine outside")
        session.set_network(Network(deny_cidrs=[f"{PEER}/32"]))
        assert talk.wait().stdout.endswith("heard\ncut\n")
        assert not reaches(session)
        session.park()
        assert not reaches(session)
        session.set_network(Network(internet=False, allow_cidrs=[f"{PEER}/32"]))
        assert reaches(session)
        session.park()
        session.set_network(Network(internet=False))
        assert not reaches(session)


def talk_of(session: Session, number: int) -> int:
    return next(each.output_bytes for each in session.commands() if each.number == number)


def test_what_cannot_be_kept_is_refused_and_changes_nothing(dovecote: Dovecote) -> None:
    with dovecote.sessions.create(wake=False) as session:
        with pytest.raises(Unsupported) as refused:
            session.set_network(Network(allow_cidrs=["example.org"]))
        assert refused.value.code == "no_domain_rules"
        with pytest.raises(BadRequest) as wrong:
            session.set_network(Network(deny_cidrs=["10.0.0.1/8"]))
        assert wrong.value.code == "invalid_cidr"
        assert session.refresh().network is None
        assert session.run("true").is_ok
    with pytest.raises(BadRequest):
        dovecote.sessions.create(wake=False, network=Network(allow_cidrs=["nonsense "]))
    with pytest.raises(BadRequest):
        dovecote.functions.create("unreachable", network=Network(allow_cidrs=["10.0.0.1/8"]))


def test_the_command_line_says_and_changes_it(installation: Installation, dovecote: Dovecote) -> None:
    with dovecote.sessions.create() as session:
        environ = installation.environ | {"DOVECOTE_URL": installation.url, "DOVECOTE_API_KEY": installation.api_key}

        def network(*options: str) -> str:
            command = [sys.executable, "-m", "dovecote", "sandbox", "network", session.id, *options]
            done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode == 0, done.stderr
            return done.stdout

        assert network() == "as its function says\n"
        said = "not the internet, allowed 10.1.0.0/16, denied 203.0.113.0/24\n"
        assert network("--no-internet", "--allow", "10.1.0.0/16", "--deny", "203.0.113.0/24") == said
        assert network() == said
        assert session.refresh().network == Network(False, ["10.1.0.0/16"], ["203.0.113.0/24"])
