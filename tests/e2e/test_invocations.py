"""Asynchronous calls of a real function: to its session, again, later, told of, and whatever is killed meanwhile."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from dovecote.sdk import Affinity, Destination, Dovecote, DovecoteError, Invocation, Invoking, Start, is_genuine
from tests.e2e.installation import Installation, running, until

pytestmark = pytest.mark.e2e

# Says which instance it is and how often it was called. `/slow` takes 3 s, `/fail` fails, `/second` fails but once,
# and `/mcp` gives out an id as MCP servers do.
WORKER = """exec python3 -u -c '
import http.server, json, os, time, uuid
me, seen, failed = uuid.uuid4().hex, [], set()
class Answer(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0))).decode()
        id, attempt = self.headers["x-dovecote-invocation-id"], self.headers["x-dovecote-attempt"]
        seen.append(id)
        if self.path == "/slow":
            time.sleep(3)
        fails = self.path == "/fail" or (self.path == "/second" and id not in failed)
        failed.add(id)
        said = {"me": me, "body": body, "attempt": attempt, "key": self.headers["x-dovecote-session"], "seen": seen}
        said.update(path=self.path, cookie=self.headers["cookie"], mcp=self.headers["mcp-session-id"])
        text = json.dumps(said).encode()
        self.send_response(500 if fails else 200)
        self.send_header("content-length", str(len(text)))
        if self.path == "/mcp":
            self.send_header("mcp-session-id", "theirs.1")
        self.end_headers()
        self.wfile.write(text)
http.server.ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), Answer).serve_forever()
'"""


@pytest.fixture(scope="module")
def own() -> Iterator[Installation]:
    with running(quiet_after=30, tick=0.2, start_timeout=30, webhook_cidrs="127.0.0.0/8") as there:
        yield there


@pytest.fixture
def client(own: Installation) -> Iterator[Dovecote]:
    with own.client() as client:
        yield client


@contextmanager
def worker(
    client: Dovecote, name: str, invoking: Invoking | None = None, affinity: Affinity | None = None
) -> Iterator[str]:
    client.functions.create(name, start=Start(WORKER, 8000), invoking=invoking, affinity=affinity)
    try:
        yield name
    finally:
        for session in client.sessions.list(function=name):
            session.delete()


def ended(client: Dovecote, call: Invocation, *, within: float = 60.0) -> Invocation:
    def look() -> Invocation | None:
        found = client.invocations.get(call.id)
        return found if found.has_ended else None

    return until(look, f"{call.id} has ended", within=within, every=0.1)


def said(call: Invocation) -> dict[str, object]:
    return dict(json.loads(call.response_body))


Got = tuple[dict[str, str], bytes]


@contextmanager
def receiver() -> Iterator[tuple[str, queue.Queue[Got]]]:
    """A webhook on loopback, and what it was sent."""
    got: queue.Queue[Got] = queue.Queue()

    class Receive(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            got.put(({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receive)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/done", got
    finally:
        server.shutdown()
        server.server_close()


def test_calls_of_a_session_reach_its_instance(client: Dovecote) -> None:
    with worker(client, "by-key") as name:
        keys = ["a", "b", "a", "b", "a"]
        calls = [client.invocations.create(name, f"{n}", session=key) for n, key in enumerate(keys)]
        done = [ended(client, call) for call in calls]
        assert [call.state for call in done] == ["succeeded"] * 5, [call.error for call in done]
        assert [said(call)["body"] for call in done] == [*"01234"]
        instances = {key: {said(call)["me"] for call in done if call.session == key} for key in "ab"}
        assert (len(instances["a"]), len(instances["b"])) == (1, 1)
        assert instances["a"] != instances["b"]


def test_queued_calls_survive_a_kill_and_reach_the_same_session(own: Installation, client: Dovecote) -> None:
    """The one that was under way has counted and is made again; nothing is lost, and what had ended is not repeated."""
    with worker(client, "survivor", Invoking(retries=2)) as name:
        first = ended(client, client.invocations.create(name, "first", session="chat7"))
        under_way = client.invocations.create(name, "slow", path="/slow", session="chat7")
        delayed = client.invocations.create(name, "later", session="chat7", delay=5)
        until(lambda: client.invocations.get(under_way.id).state == "running", "it runs")
        own.kill()
        own.start()
        done = [ended(client, call, within=90) for call in (under_way, delayed)]
        assert [call.state for call in done] == ["succeeded"] * 2, [call.error for call in done]
        assert {said(call)["me"] for call in (first, *done)} == {said(first)["me"]}
        assert [call.attempts for call in done] == [2, 1]
        assert list(said(done[0])["seen"]).count(first.id) == 1  # type: ignore[call-overload]


def test_a_call_that_is_to_be_made_once_is_not_made_again(own: Installation, client: Dovecote) -> None:
    with worker(client, "once", Invoking(retries=0)) as name:
        ended(client, client.invocations.create(name, "first", session="chat7"))
        call = client.invocations.create(name, "slow", path="/slow", session="chat7")
        until(lambda: client.invocations.get(call.id).state == "running", "it runs")
        own.kill()
        own.start()
        lost = ended(client, call, within=90)
        assert (lost.state, lost.error_code, lost.attempts) == ("failed", "attempt_lost", 1)
        last = ended(client, client.invocations.create(name, "last", session="chat7"))
        assert list(said(last)["seen"]).count(call.id) <= 1  # type: ignore[call-overload]


def test_a_webhook_is_told_of_success_and_another_of_failure(client: Dovecote) -> None:
    with receiver() as (good, successes), receiver() as (bad, failures):
        invoking = Invoking(retries=1, on_success=Destination("webhook", good), on_failure=Destination("webhook", bad))
        with worker(client, "told", invoking) as name:
            second = client.invocations.create(name, "s", path="/second", session="chat7")
            fails = client.invocations.create(name, "f", path="/fail", session="chat7")
            headers, body = successes.get(timeout=60)
            message = json.loads(body)
            assert is_genuine(client.invocations.webhook_secret(), headers["x-dovecote-signature"], body)
            assert (message["requestContext"]["requestId"], message["requestContext"]["condition"]) == (
                second.id,
                "Success",
            )
            assert (message["requestPayload"], message["requestContext"]["approximateInvokeCount"]) == ("s", 2)
            assert json.loads(message["responsePayload"])["attempt"] == "2"
            _, body = failures.get(timeout=60)
            message = json.loads(body)
            assert (message["requestContext"]["requestId"], message["requestContext"]["condition"]) == (
                fails.id,
                "RetriesExhausted",
            )
            assert message["responseContext"]["statusCode"] == 500
            until(lambda: client.invocations.get(second.id).delivery == "delivered", "the delivery is known")


def test_another_function_hears_of_a_failure_in_the_same_session(client: Dovecote) -> None:
    with worker(client, "audit") as audit:
        invoking = Invoking(retries=0, on_failure=Destination("function", audit))
        with worker(client, "fails", invoking) as name:
            call = ended(client, client.invocations.create(name, "f", path="/fail", session="chat7"))
            assert call.state == "failed"
            (told,) = until(lambda: list(client.invocations.each(function=audit)), "the other function is called")
            heard = ended(client, told)
            assert (heard.state, heard.session) == ("succeeded", "chat7")
            message = json.loads(str(said(heard)["body"]))
            assert message["requestContext"]["requestId"] == call.id


def test_a_call_is_cancelled_and_replayed(own: Installation, client: Dovecote) -> None:
    with worker(client, "undone") as name:
        waiting = client.invocations.create(name, "x", session="chat7", delay=3600)
        made = own.command("invocation", "cancel", waiting.id)
        assert (made.returncode, made.stdout) == (0, "cancelled\n")
        again = own.command("invocation", "replay", waiting.id).stdout.strip()
        done = ended(client, client.invocations.get(again))
        assert (done.state, done.replay_of, done.session) == ("succeeded", waiting.id, "chat7")
        listed = own.command("invocation", "ls", "--function", name).stdout.splitlines()
        assert [line.split("\t")[0] for line in listed] == ["id", again, waiting.id]
        shown = own.command("invocation", "show", again, "--body").stdout
        assert json.loads(shown)["body"] == "x"
        with pytest.raises(DovecoteError) as caught:
            client.invocations.cancel(again)
        assert caught.value.code == "has_ended"


def test_a_call_wakes_a_parked_session_with_its_files(client: Dovecote) -> None:
    with worker(client, "sleeper") as name:
        first = ended(client, client.invocations.create(name, "1", session="chat7"))
        (session,) = client.sessions.list(function=name)
        session.files.write("note", b"kept")
        session.park()
        second = ended(client, client.invocations.create(name, "2", session="chat7"))
        assert second.session_id == first.session_id == session.id
        assert said(second)["me"] != said(first)["me"]  # its server was started anew
        assert session.files.read("note") == b"kept"


def test_the_command_line_makes_a_call(own: Installation, client: Dovecote) -> None:
    with worker(client, "by-hand") as name:
        made = own.command("invocation", "create", name, "--data", "hello", "--session", "chat7", "--header", "a: b")
        done = ended(client, client.invocations.get(made.stdout.strip()))
        assert (done.state, said(done)["body"], done.headers) == ("succeeded", "hello", {"a": "b"})


@pytest.mark.parametrize(("host", "path"), [("localhost", "/fn/by-path/work"), ("by-host.fn.localhost", "/work")])
def test_a_request_to_the_functions_address_is_done_later(
    own: Installation, client: Dovecote, host: str, path: str
) -> None:
    with worker(client, "by-path" if host == "localhost" else "by-host"):
        headers = {"x-dovecote-key": own.api_key, "x-dovecote-invoke": "async", "x-dovecote-session": "chat7"}
        headers["host"] = f"{host}:{own.settings.port}"
        late = httpx.post(f"{own.url}{path}", content=b"hello", headers=headers | {"x-dovecote-invoke": "late"})
        assert (late.status_code, late.json()["error"]["code"]) == (400, "invalid")
        answer = httpx.post(f"{own.url}{path}", content=b"hello", headers=headers, timeout=30)
        assert answer.status_code == 202, answer.text
        assert answer.headers["x-dovecote-session"] == "chat7"
        done = ended(client, client.invocations.get(answer.headers["x-dovecote-invocation-id"]))
        assert (done.state, done.path, said(done)["body"], done.session) == ("succeeded", "/work", "hello", "chat7")


Named = dict[str, str]


def by_cookie(first: httpx.Response) -> tuple[str, Named]:
    return "/work", {"cookie": f"a=1; {first.headers['set-cookie'].partition(';')[0]}"}


def by_mcp_id(first: httpx.Response) -> tuple[str, Named]:
    return "/mcp", {"mcp-session-id": first.headers["mcp-session-id"]}


def by_query(first: httpx.Response) -> tuple[str, Named]:
    key = first.headers["mcp-session-id"].partition(".")[0]
    return f"/messages?a=b&session_id={key}.theirs", {}


@pytest.mark.parametrize("way", ["host", "path", "api"])
@pytest.mark.parametrize(
    ("modes", "name_it"),
    [(["cookie"], by_cookie), (["mcp-http"], by_mcp_id), (["mcp-http", "mcp-sse"], by_query)],
    ids=["cookie", "mcp-http", "mcp-sse"],
)
def test_whatever_names_a_session_names_it_for_asynchronous_calls_too(
    own: Installation,
    client: Dovecote,
    way: str,
    modes: list[str],
    name_it: Callable[[httpx.Response], tuple[str, Named]],
) -> None:
    name = f"{name_it.__name__.replace('_', '-')}-{way}"
    port = own.settings.port
    with worker(client, name, affinity=Affinity(modes=modes)):
        key = {"x-dovecote-key": own.api_key}
        by_host = {**key, "host": f"{name}.fn.localhost:{port}"}
        by_path, prefix = {**key, "host": f"localhost:{port}"}, f"/fn/{name}" if way == "path" else ""
        headers = by_path if way == "path" else by_host
        first = httpx.post(f"{own.url}{prefix}/mcp", headers=headers, timeout=60)
        assert first.status_code == 200, first.text
        path, named = name_it(first)
        if way == "api":
            call = client.invocations.create(name, b"hello", path=path, headers=named)
        else:
            later = httpx.post(f"{own.url}{prefix}{path}", headers=headers | named | {"x-dovecote-invoke": "async"})
            assert later.status_code == 202, later.text
            call = client.invocations.get(later.headers["x-dovecote-invocation-id"])
        done = ended(client, call)
        assert done.state == "succeeded", done.error
        heard = said(done)
        assert heard["me"] == first.json()["me"]
        assert len(client.sessions.list(function=name)) == 1
        # Its server knows nothing of keys of ours.
        assert (heard["cookie"], heard["mcp"]) == (None, "theirs.1" if path == "/mcp" else None)
        assert heard["path"] == path.replace(f"{done.session}.", "")
        if path == "/mcp":
            assert done.response is not None
            assert done.response["headers"]["mcp-session-id"] == named["mcp-session-id"]


def test_an_mcp_session_that_nobody_has_is_refused_before_anything_is_kept(own: Installation, client: Dovecote) -> None:
    with worker(client, "no-such", affinity=Affinity(modes=["mcp-http"])):
        headers = {"host": f"no-such.fn.localhost:{own.settings.port}", "x-dovecote-key": own.api_key}
        unknown = {"x-dovecote-invoke": "async", "mcp-session-id": "nobody.theirs"}
        answer = httpx.post(f"{own.url}/mcp", headers=headers | unknown)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "no_such_session")
        assert list(client.invocations.each(function="no-such")) == []
