"""Functions whose sessions share instances, through the gateway of a real installation."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest

from dovecote.sdk import Affinity, Dovecote, Sharing, Start
from tests.e2e.installation import Installation, running, until

pytestmark = pytest.mark.e2e

# Answers who it is, and how many requests were inside at once at most.
SERVER = """exec python3 -u -c '
import http.server, os, threading, time, uuid
me, lock, inside, most = uuid.uuid4().hex, threading.Lock(), 0, 0
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        global inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.05)
        with lock:
            inside -= 1
            said = f"{me} {most}".encode()
        self.send_response(200)
        self.send_header("content-length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)
class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128
Server(("0.0.0.0", int(os.environ["PORT"])), Answer).serve_forever()
'"""


@pytest.fixture(scope="module")
def own() -> Iterator[Installation]:
    with running(quiet_after=5, tick=0.2, start_timeout=20) as there:
        yield there


@pytest.fixture
def client(own: Installation) -> Iterator[Dovecote]:
    with own.client() as client:
        yield client


@contextmanager
def function(client: Dovecote, name: str, sharing: Sharing, affinity: Affinity | None = None) -> Iterator[httpx.Client]:
    made = client.functions.create(name, start=Start(SERVER, 8000), sharing=sharing, affinity=affinity)
    try:
        with client.http_for(made.address) as web:
            yield web
    finally:
        client.functions.delete(name)


def ask(web: httpx.Client, own: Installation, key: str | None) -> httpx.Response:
    headers = {"x-dovecote-key": own.api_key} | ({"x-dovecote-session": key} if key else {})
    return web.get("/", headers=headers, timeout=60)


def who(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return answer.text.split()[0]


def test_forty_sessions_are_in_two_instances_of_twenty_and_stay_there(own: Installation, client: Dovecote) -> None:
    with function(client, "shared", Sharing(sessions=20, instances=2)) as web, ThreadPoolExecutor(20) as pool:
        keys = [f"k{number}" for number in range(40)]
        sat = dict(zip(keys, pool.map(lambda key: who(ask(web, own, key)), keys), strict=True))
        assert sorted(Counter(sat.values()).values()) == [20, 20]
        refused = ask(web, own, "one-more")
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "no_instances")
        assert int(refused.headers["retry-after"]) > 0
        own.kill()
        own.start()
        assert {key: who(ask(web, own, key)) for key in keys} == sat
        [session, *_] = [each for each in client.sessions.list(function="shared") if each.key == "k0"]
        os.kill(session.instance().pid, signal.SIGKILL)
        until(lambda: session.refresh().state == "lost", "the session is lost")
        again = {key: who(ask(web, own, key)) for key in keys}
        assert {key for key in keys if again[key] == sat[key]} == {key for key in keys if sat[key] != sat["k0"]}
        assert sorted(Counter(again.values()).values()) == [20, 20]


def test_never_more_requests_than_allowed_are_inside(own: Installation, client: Dovecote) -> None:
    with function(client, "limited", Sharing(sessions=5, requests=3)) as web, ThreadPoolExecutor(20) as pool:
        who(ask(web, own, "k0"))
        answers = list(pool.map(lambda number: ask(web, own, f"k{number % 5}"), range(60)))
        assert len({who(answer) for answer in answers}) == 1
        assert max(int(answer.text.split()[1]) for answer in answers) <= 3


def test_a_request_that_waits_to_be_let_in_begins_one_session(own: Installation, client: Dovecote) -> None:
    """Each of these finds the only instance full, most of them more than once."""
    sharing = Sharing(sessions=40, requests=1, instances=1)
    with function(client, "waiting", sharing) as web, ThreadPoolExecutor(12) as pool:
        who(ask(web, own, "first"))
        answers = list(pool.map(lambda _: ask(web, own, None), range(12)))
        given = {answer.headers["x-dovecote-session"] for answer in answers if who(answer)}
        assert len(given) == 12
        assert {session.key for session in client.sessions.list(function="waiting")} == given | {"first"}


def test_without_sessions_more_instances_answer_when_one_is_full(own: Installation, client: Dovecote) -> None:
    sharing, affinity = Sharing(requests=2, instances=2), Affinity(modes=["none"])
    start = threading.Barrier(8)
    with function(client, "plain", sharing, affinity) as web, ThreadPoolExecutor(8) as pool:

        def request(_: int) -> httpx.Response:
            start.wait(20)
            return ask(web, own, None)

        answers = list(pool.map(request, range(8)))
        assert 1 <= len({who(answer) for answer in answers}) <= 2
        assert max(int(answer.text.split()[1]) for answer in answers) <= 2
        assert client.sessions.list(function="plain") == []
