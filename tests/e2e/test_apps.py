"""Published apps: from zero, out, back, again without downtime."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from dovecote.sdk import Dovecote, DovecoteError
from tests.e2e.installation import Installation, until

pytestmark = pytest.mark.e2e

SLOW = """
import http.server, os, socketserver, time
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        time.sleep(float(self.path.rpartition("=")[2] or 0))
        body = open("version").read().encode()
        self.send_response(200); self.send_header("content-length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def log_message(self, *a): pass
class S(socketserver.ThreadingMixIn, http.server.HTTPServer): request_queue_size = 100; daemon_threads = True
S(("0.0.0.0", int(os.environ["PORT"])), H).serve_forever()
"""


def test_an_app_goes_from_zero_out_and_back_and_is_replaced_without_downtime(dovecote: Dovecote) -> None:
    with dovecote.sessions.create() as session:
        session.files.write("server.py", SLOW.encode())
        session.files.write("version", b"one")
        session.set_start("python3 server.py", 8000)
        app = dovecote.apps.publish(session, name="pigeons", target_concurrency=2, maximum=3, idle_after=2)
        try:
            with dovecote.http_for(app.address) as web:
                assert dovecote.apps.instances("pigeons") == []
                assert web.get("/?s=0", timeout=30).text == "one"
                assert len(dovecote.apps.instances("pigeons")) == 1
                until(lambda: dovecote.apps.instances("pigeons") == [], "it goes to zero")
                assert web.get("/?s=0", timeout=30).text == "one"
                with ThreadPoolExecutor(12) as pool:
                    answers = [pool.submit(web.get, "/?s=0.3", timeout=60) for _ in range(120)]
                    until(lambda: len(dovecote.apps.instances("pigeons")) == 3, "a burst makes it scale out")
                    assert {answer.result().status_code for answer in answers} == {200}
                session.files.write("version", b"two")
                stop = threading.Event()
                seen: list[str] = []

                def visit() -> None:
                    while not stop.is_set():
                        seen.append(web.get("/?s=0", timeout=30).text)

                visitor = threading.Thread(target=visit)
                visitor.start()
                try:
                    dovecote.apps.publish(session, name="pigeons")
                    until(lambda: seen and seen[-1] == "two", "the new revision serves")
                finally:
                    stop.set()
                    visitor.join(30)
                assert set(seen) == {"one", "two"}
                session.delete()
                until(lambda: dovecote.apps.instances("pigeons") == [], "it goes back to zero")
                assert web.get("/?s=0", timeout=30).text == "two"  # the app outlives its session
        finally:
            dovecote.apps.unpublish("pigeons")
        with dovecote.http_for(app.address) as web:
            assert web.get("/").status_code == 404


def test_an_app_whose_server_fails_says_why(dovecote: Dovecote) -> None:
    with dovecote.sessions.create() as session:
        session.set_start("echo missing module; exit 1", 8000)
        app = dovecote.apps.publish(session, name="broken")
        try:
            with dovecote.http_for(app.address) as web:
                error = web.get("/", timeout=30).json()["error"]
            assert error["code"] == "start_failed"
        finally:
            dovecote.apps.unpublish(app.name)


def test_publishing_needs_a_start_and_a_name_that_fits(dovecote: Dovecote) -> None:
    with dovecote.sessions.create() as session:
        with pytest.raises(DovecoteError) as caught:
            dovecote.apps.publish(session)
        assert caught.value.code == "no_start"
        session.set_start("true", 8000)
        with pytest.raises(DovecoteError) as caught:
            dovecote.apps.publish(session, name="Not A Name")
        assert caught.value.code == "malformed_name"


def test_an_unknown_app_is_not_found(installation: Installation, dovecote: Dovecote) -> None:
    with dovecote.http_for(f"http://nobody.app.localhost:{installation.port}") as web:
        assert web.get("/").json()["error"]["code"] == "no_such_app"
