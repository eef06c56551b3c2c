"""Requests that come back to their session's instance, beside the same Envoy with the instances as fixed endpoints."""

from __future__ import annotations

import gc
import re
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.e2e.installation import free_port

from bench import responding
from bench.figures import Row, row
from bench.rivals import static_envoy
from dovecote.sdk import Dovecote, Session, Sharing

if TYPE_CHECKING:
    from bench.measures import Bench

RIVAL = "the same Envoy, filters and instances, fixed"
MANY, SHARED_BY = 1000, 100  # sessions, of an instance
LIMIT = 64  # requests at once in an instance: more than the load has, so that none is refused
SECONDS = 4  # of a load
ROUTES_LIVE = 20  # two of the gateway's `route_ttl`: so asking again for each of many sessions is in it, in its measure


@dataclass(frozen=True)
class Called:
    """A function, by the host name and the session keys that requests have."""

    host: str
    api_key: str
    keys: list[str]
    endpoints: list[str]

    def headers(self, key: str) -> dict[str, str]:
        return {"host": self.host, "x-dovecote-key": self.api_key, "x-dovecote-session": key}


def throughput(bench: Bench) -> list[Row]:
    """Requests a second to ten sessions, each of an instance of its own."""
    with own_instances(bench) as called:
        return [_loaded(bench, "affinity_throughput", called)]


def throughput_1000(bench: Bench) -> list[Row]:
    """The same to a thousand sessions in ten instances."""
    sharing = Sharing(sessions=SHARED_BY, instances=MANY // SHARED_BY)
    with shared_instances(bench, "many", sharing, MANY) as called:
        return [_loaded(bench, "affinity_throughput_1000", called, seconds=ROUTES_LIVE)]


def throughput_limited(bench: Bench) -> list[Row]:
    """The same to ten sessions of a function with a limit of requests, which takes a connection for each request."""
    with shared_instances(bench, "limited", Sharing(requests=LIMIT), 10) as called:
        return [_loaded(bench, "affinity_throughput_limited", called)]


def added_latency(bench: Bench) -> list[Row]:
    """What one request takes longer than the one to the rival just before it, over connections that stay open."""
    added, rivals = [], []
    own = bench.installation().port
    with (
        own_instances(bench) as called,
        _fixed(bench, called) as port,
        _Caller(called, own) as ours,
        _Caller(called, port) as fixed,
    ):
        for caller in (fixed, ours) * 100:
            caller.request()
        gc.disable()
        for _ in range(bench.times(5000)):
            rivals.append(fixed.request())
            added.append(ours.request() - rivals[-1])
        gc.enable()
    return [row("affinity_added_latency", "ms", added, f"a request to {RIVAL}", rivals)]


@contextmanager
def own_instances(bench: Bench) -> Iterator[Called]:
    installation = bench.installation()
    with responding.sessions(bench, 10) as (client, sessions):
        yield _woken(client, installation.api_key, f"sandbox.fn.localhost:{installation.port}", sessions)


@contextmanager
def shared_instances(bench: Bench, name: str, sharing: Sharing, count: int) -> Iterator[Called]:
    installation = bench.installation()
    host, keys = f"{name}.fn.localhost:{installation.port}", [f"chat-{number}" for number in range(count)]
    with responding.function(bench, name, sharing) as client:
        _call_each(client, Called(host, installation.api_key, keys, []))
        yield _woken(client, installation.api_key, host, client.sessions.list(function=name))


def _woken(client: Dovecote, api_key: str, host: str, sessions: Sequence[Session]) -> Called:
    with ThreadPoolExecutor(8) as pool:
        addresses = sorted(set(pool.map(lambda session: session.instance().address, sessions)))
    endpoints = [f"{address}:{responding.PORT}" for address in addresses]
    called = Called(host, api_key, [session.key for session in sessions], endpoints)
    _call_each(client, called)
    return called


def _call_each(client: Dovecote, called: Called) -> None:
    """Their instances run afterwards, and one of the gateway's workers knows the way."""
    with client.http_for(f"http://{called.host}") as web, ThreadPoolExecutor(8) as pool:
        for answer in pool.map(lambda key: web.get("/", headers=called.headers(key), timeout=120), called.keys):
            answer.raise_for_status()


@contextmanager
def _fixed(bench: Bench, called: Called) -> Iterator[int]:
    """The rival's port."""
    port = free_port()
    with static_envoy(bench.directory / "static", called.endpoints, port, concurrency=2):
        yield port


def _loaded(bench: Bench, name: str, called: Called, *, seconds: int = SECONDS) -> Row:
    ours, rivals = [], []
    script = bench.directory / "affinity.lua"
    script.write_text(_wrk_script(called))
    own = bench.installation().port
    with _fixed(bench, called) as port:
        for each in (port, own):
            _wrk(script, each, 2)  # each worker has learned the ways
        for _ in range(bench.times(5)):
            rivals.append(_wrk(script, port, seconds))
            ours.append(_wrk(script, own, seconds))
    return row(name, "requests/s", ours, RIVAL, rivals)


def _wrk_script(called: Called) -> str:
    named = ", ".join(f'"{key}"' for key in called.keys)
    return f"""
local sessions = {{{named}}}
local requests, at = {{}}, 0
function init()
  for i, name in ipairs(sessions) do
    local said = {{["Host"] = "{called.host}", ["x-dovecote-key"] = "{called.api_key}", ["x-dovecote-session"] = name}}
    requests[i] = wrk.format("GET", "/", said)
  end
end
function request()
  at = at % #requests + 1
  return requests[at]
end
"""


def _wrk(script: Path, port: int, seconds: int) -> float:
    done = subprocess.run(
        ["wrk", "-t1", "-c32", f"-d{seconds}s", "-s", str(script), f"http://127.0.0.1:{port}/"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    if "Non-2xx" in done.stdout:
        raise RuntimeError(done.stdout)
    found = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
    assert found, done.stdout
    return float(found.group(1))


class _Caller:
    """One connection; a client that does more would take longer than what is measured."""

    def __init__(self, called: Called, port: int) -> None:
        self._requests = [
            "\r\n".join(["GET / HTTP/1.1", *(f"{name}: {value}" for name, value in called.headers(key).items())])
            .encode("ascii")
            + b"\r\n\r\n"
            for key in called.keys
        ]  # fmt: skip
        self._at = 0
        self._connection = socket.create_connection(("127.0.0.1", port), timeout=10)
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> _Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def request(self) -> float:
        """Milliseconds, of the next session in turn."""
        request, self._at = self._requests[self._at], (self._at + 1) % len(self._requests)
        began = time.perf_counter()
        self._connection.sendall(request)
        answer = b""
        while not answer.endswith(b"\r\n\r\nok"):
            more = self._connection.recv(65_536)
            if not more:
                raise RuntimeError(f"the connection ended: {answer!r}")
            answer += more
        took = (time.perf_counter() - began) * 1e3
        if not answer.startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(f"not answered: {answer!r}")
        return took
