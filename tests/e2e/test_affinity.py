"""Header affinity: which session a request to a function belongs to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from dovecote.sdk import Dovecote, Start
from tests.e2e.installation import Installation

pytestmark = pytest.mark.e2e

SERVER = "python3 -u -m http.server $PORT --bind 0.0.0.0"
IDENTITY = """exec python3 -u -c '
import http.server, os, uuid
me = uuid.uuid4().hex.encode()
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("content-length", str(len(me)))
        self.end_headers()
        self.wfile.write(me)
http.server.ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), Answer).serve_forever()
'"""


def test_header_affinity_leads_to_the_session_of_the_key(installation: Installation, dovecote: Dovecote) -> None:
    address = f"http://sandbox.fn.localhost:{installation.port}"
    with (
        dovecote.sessions.create(key="u42:c7", user="u42") as session,
        dovecote.sessions.create(key="u42:c8", user="u42") as other,
        dovecote.http_for(address) as web,
    ):
        for each in (session, other):
            each.files.write("who", each.key.encode())
            each.set_start(SERVER, 8000)
        for each in (session, other, session, other):
            answer = web.get("/who", headers=caller(installation, user="u42", session=each.key))
            assert answer.text == each.key
            assert answer.headers.get("x-dovecote-session", each.key) == each.key


def caller(installation: Installation, *, user: str | None = None, **affinity: str) -> dict[str, str]:
    """Headers of a request to a function; `session` stands for the header that functions have unless they say other."""
    names = {"session": "x-dovecote-session"}
    headers = {names.get(name, name.replace("_", "-")): value for name, value in affinity.items()}
    return headers | {"x-dovecote-key": installation.api_key} | ({"x-dovecote-user": user} if user else {})


@contextmanager
def function(dovecote: Dovecote, name: str, **more: object) -> Iterator[httpx.Client]:
    """A function of whose instances each answers with an id that it made at its start; a client for its address."""
    made = dovecote.functions.create(name, start=Start(IDENTITY, 8000), **more)  # type: ignore[arg-type]
    try:
        with dovecote.http_for(made.address) as web:
            yield web
    finally:
        for session in dovecote.sessions.list(function=name):
            session.delete()


def test_header_affinity_makes_a_session_of_an_unknown_key_and_keeps_it(
    installation: Installation, dovecote: Dovecote
) -> None:
    with function(dovecote, "by-key") as web:
        assert dovecote.sessions.list(function="by-key") == []
        answers = [web.get("/", headers=caller(installation, session="never:seen")) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 200]
        assert len({answer.text for answer in answers}) == 1
        (session,) = dovecote.sessions.list(function="by-key")
        assert session.key == "never:seen"
        other = web.get("/", headers=caller(installation, session="never:seen-2"))
        assert other.status_code == 200
        assert other.text != answers[0].text
        assert web.get("/", headers=caller(installation, session="never:seen")).text == answers[0].text
        assert {each.key for each in dovecote.sessions.list(function="by-key")} == {"never:seen", "never:seen-2"}


def test_header_affinity_gives_an_id_to_who_sends_none_and_keeps_it(
    installation: Installation, dovecote: Dovecote
) -> None:
    with function(dovecote, "by-none") as web:
        first = web.get("/", headers=caller(installation))
        assert first.status_code == 200
        given = first.headers["x-dovecote-session"]
        assert [each.key for each in dovecote.sessions.list(function="by-none")] == [given]
        for _ in range(3):
            assert web.get("/", headers=caller(installation, session=given)).text == first.text
        stranger = web.get("/", headers=caller(installation))
        assert stranger.headers["x-dovecote-session"] != given
        assert stranger.text != first.text
        assert len(dovecote.sessions.list(function="by-none")) == 2


def test_header_affinity_takes_the_header_that_the_function_names(
    installation: Installation, dovecote: Dovecote
) -> None:
    with function(dovecote, "by-header", affinity_header="x-my-chat") as web:
        first = web.get("/", headers=caller(installation))
        assert first.status_code == 200
        assert "x-dovecote-session" not in first.headers
        given = first.headers["x-my-chat"]
        assert web.get("/", headers=caller(installation, x_my_chat=given)).text == first.text
        mine = web.get("/", headers=caller(installation, x_my_chat="mine"))
        assert mine.text != first.text
        assert web.get("/", headers=caller(installation, x_my_chat="mine")).text == mine.text
        # The usual header says nothing to this function.
        assert web.get("/", headers=caller(installation, session=given, x_my_chat="mine")).text == mine.text
        assert {each.key for each in dovecote.sessions.list(function="by-header")} == {given, "mine"}


def test_one_key_of_two_users_is_two_instances(installation: Installation, dovecote: Dovecote) -> None:
    with function(dovecote, "by-user") as web:
        ids: dict[str, str] = {}
        for user in ("ada", "bob", "ada", "bob"):
            answer = web.get("/", headers=caller(installation, user=user, session="same"))
            assert answer.status_code == 200
            assert ids.setdefault(user, answer.text) == answer.text
        assert ids["ada"] != ids["bob"]
        assert [each.key for each in dovecote.sessions.list(function="by-user")] == ["same", "same"]
