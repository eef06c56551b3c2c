"""One attempt against a real server on loopback, and webhooks that must not go inside."""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import socket
import ssl
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from dovecote.control.invocations import Calling, WebhookSecrets, lookups, webhooks
from dovecote.control.invocations.calling import exchange
from dovecote.control.invocations.deciding import Broken, Reply
from dovecote.control.invocations.lookups import Lookups
from dovecote.control.invocations.webhooks import Webhooks, is_outside, parse_url, signature
from dovecote.control.sessions import Routed
from dovecote.errors import Failed, Forbidden, Invalid, NoCapacity
from dovecote.gateway.certificates import Authority, authority_path
from dovecote.model.invocations import MOST_BODY
from dovecote.model.records import Function
from dovecote.model.serving import Destination, Invoking, To, parse_invoking
from dovecote.sdk import is_genuine
from tests.contract.stores import NOW, invocation, session
from tests.unit.control_world import until, world_on
from tests.unit.memory_host import Clock, MemoryHost

pytestmark = pytest.mark.anyio

FUNCTION = Function("fun_1", "ten_a", "work", "rev_1", NOW, "slug")
SESSION = session(id="ses_1")


@dataclass
class Server:
    """Answers each request with `answer`, or breaks the connection off without one."""

    answer: bytes = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\nx-a: b\r\n\r\ndone"
    delay: float = 0.0
    requests: list[tuple[bytes, bytes]] = field(default_factory=list)  # head, body
    address: str = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        sizes = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        body = await reader.readexactly(int(sizes[0].split(b":")[1])) if sizes else b""
        self.requests.append((head, body))
        await asyncio.sleep(self.delay)
        writer.write(self.answer)
        writer.close()


@asynccontextmanager
async def server_that(tls: ssl.SSLContext | None = None, **what: Any) -> AsyncIterator[Server]:
    made = Server(**what)
    listening = await asyncio.start_server(made.serve, "127.0.0.1", 0, ssl=tls)
    made.address = "127.0.0.1:" + str(listening.sockets[0].getsockname()[1])
    try:
        yield made
    finally:
        listening.close()
        await listening.wait_closed()


def nobody_at() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


class Routes:
    """Gives these addresses, one after the other; knows which had failed."""

    def __init__(self, *addresses: str | Exception) -> None:
        self.addresses = list(addresses)
        self.failed: list[str | None] = []
        self.touched = 0

    async def route(
        self, function: Function, *, user: str, key: str | None, is_made_here: bool = False, failed: str | None = None
    ) -> Routed:
        self.failed.append(failed)
        there = self.addresses.pop(0) if len(self.addresses) > 1 else self.addresses[0]
        if isinstance(there, Exception):
            raise there
        return Routed(there, SESSION)

    async def touch(self, session_id: str) -> None:
        assert session_id == SESSION.id
        self.touched += 1

    async def call(self, **changes: Any) -> tuple[Reply | Broken, list[str]]:
        placed = []

        async def note(session_id: str) -> None:
            placed.append(session_id)

        calling = Calling(
            self.route,
            authority=lambda name: f"{name}.fn.localhost",
            touch=self.touch,
            start_timeout=5,
            touch_every=0.01,
        )
        return await calling.call(FUNCTION, replace(invocation(attempts=2), **changes), note), placed


async def test_the_function_gets_the_request_and_knows_which_attempt_it_is() -> None:
    async with server_that() as server:
        made = invocation(attempts=2)
        outcome, placed = await Routes(server.address).call(id=made.id)
    assert outcome == Reply(200, {"content-length": "4", "x-a": "b"}, base64.b64encode(b"done").decode())
    assert placed == [SESSION.id]
    [(head, body)] = server.requests
    lines = head.decode().lower().split("\r\n")
    assert lines[0] == "post /work?a=b http/1.1"
    for line in (
        *("host: work.fn.localhost", f"x-dovecote-invocation-id: {made.id}", "x-dovecote-attempt: 2"),
        *("x-dovecote-session: chat7", "content-type: text/plain", "connection: close"),
    ):
        assert line in lines
    assert body == b"hi"
    assert not any(line.startswith("user-agent") for line in lines)


async def test_a_refused_connection_is_no_attempt_and_goes_where_it_can() -> None:
    gone = nobody_at()
    async with server_that() as server:
        routes = Routes(gone, server.address)
        outcome, _ = await routes.call()
    assert isinstance(outcome, Reply)
    assert routes.failed == [None, gone]
    full, _ = await Routes(gone).call()
    assert isinstance(full, Broken)
    assert (full.was_sent, type(full.error)) == (False, NoCapacity)


async def test_an_instance_that_dies_in_an_attempt_may_have_had_it() -> None:
    async with server_that(answer=b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhal") as server:
        outcome, _ = await Routes(server.address).call()
    assert isinstance(outcome, Broken)
    assert (outcome.was_sent, outcome.error.code) == (True, "instance_died")
    assert len(server.requests) == 1


async def test_an_attempt_takes_no_longer_than_it_may() -> None:
    async with server_that(delay=60) as server:
        routes = Routes(server.address)
        outcome, _ = await routes.call(timeout=timedelta(seconds=0.2))
    assert isinstance(outcome, Broken)
    assert (outcome.was_sent, outcome.error.code) == (True, "function_timeout")
    assert routes.touched > 1  # the session is in use as long as that


async def test_what_routing_says_is_passed_on() -> None:
    outcome, placed = await Routes(NoCapacity("no memory", code="no_memory")).call()
    assert isinstance(outcome, Broken)
    assert (outcome.was_sent, outcome.error.code, placed) == (False, "no_memory", [])


async def test_a_long_answer_is_read_to_its_end_and_kept_in_part() -> None:
    size = 3 * MOST_BODY
    head = f"HTTP/1.1 200 OK\r\ncontent-length: {size}\r\nretry-after: 7\r\n\r\n".encode()
    async with server_that(answer=head + b"x" * size) as server:
        outcome, _ = await Routes(server.address).call()
    assert isinstance(outcome, Reply)
    assert (len(base64.b64decode(outcome.body)), outcome.is_truncated, outcome.retry_after) == (MOST_BODY, True, 7.0)


# -- webhooks


@pytest.fixture
async def secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[WebhookSecrets, str]]:
    async with world_on(MemoryHost(Clock()), tmp_path, monkeypatch) as world:
        yield WebhookSecrets(world.store), world.tenant


LOOPBACK = (ipaddress.IPv4Network("127.0.0.0/8"),)


async def test_a_webhook_is_signed_with_its_tenants_secret(secrets: tuple[WebhookSecrets, str]) -> None:
    kept, tenant = secrets
    async with server_that() as server:
        await Webhooks(kept, allowed=LOOPBACK).send(tenant, f"http://{server.address}/done?a=b", b'{"a":1}')
    [(head, body)] = server.requests
    lines = dict(line.partition(": ")[::2] for line in head.decode().lower().split("\r\n")[1:])
    assert head.startswith(b"POST /done?a=b ")
    assert (lines["host"], body) == (server.address, b'{"a":1}')
    assert is_genuine(await kept.get(tenant), lines["x-dovecote-signature"], body)
    assert not is_genuine(await kept.rotate(tenant), lines["x-dovecote-signature"], body)


async def test_a_secret_that_was_replaced_signs_for_a_while(secrets: tuple[WebhookSecrets, str]) -> None:
    kept, tenant = secrets
    now = datetime(2026, 11, 28, tzinfo=UTC)
    kept._now = lambda: now
    old = await kept.get(tenant)
    new = await kept.rotate(tenant, overlap=timedelta(hours=1))
    assert await kept.signing(tenant) == [new, old]
    assert all(is_genuine(each, signature([new, old], 1000, b"x"), b"x", now=1000) for each in (new, old))
    now += timedelta(hours=1)
    assert await kept.signing(tenant) == [new]
    newest = await kept.rotate(tenant, overlap=timedelta(0))
    assert await kept.signing(tenant) == [newest] == [await kept.get(tenant)]
    with pytest.raises(Invalid):
        await kept.rotate(tenant, overlap=timedelta(days=31))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "2130706433"])
async def test_a_webhook_does_not_go_inside(secrets: tuple[WebhookSecrets, str], host: str) -> None:
    kept, tenant = secrets
    async with server_that() as server:
        port = server.address.partition(":")[2]
        with pytest.raises(Forbidden) as caught:
            await Webhooks(kept).send(tenant, f"http://{host}:{port}/", b"{}")
    assert caught.value.code == "address_refused"
    assert server.requests == []


@pytest.mark.parametrize("status", [b"302 Found\r\nlocation: http://127.0.0.1:1/", b"500 No", b"404 No"])
async def test_a_webhook_has_to_be_taken(secrets: tuple[WebhookSecrets, str], status: bytes) -> None:
    kept, tenant = secrets
    async with server_that(answer=b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\n\r\n") as server:
        with pytest.raises(Failed) as caught:
            await Webhooks(kept, allowed=LOOPBACK).send(tenant, f"http://{server.address}/", b"{}")
    assert caught.value.code == "webhook_failed"
    assert len(server.requests) == 1


async def test_attempts_and_webhooks_read_no_authorities_again(
    secrets: tuple[WebhookSecrets, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading them holds up everybody else's requests for longer than a call takes."""
    kept, tenant = secrets
    sender = Webhooks(kept, allowed=LOOPBACK)

    def read(*_: object, **__: object) -> None:
        raise AssertionError("authorities are read")

    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", read)
    monkeypatch.setattr(ssl.SSLContext, "load_default_certs", read)
    async with server_that() as server:
        await sender.send(tenant, f"http://{server.address}/", b"{}")
        await exchange(server.address, {"host": "a"}, invocation())
    assert len(server.requests) == 2


async def test_a_webhook_by_tls_is_sent_to_whom_its_name_belongs(
    secrets: tuple[WebhookSecrets, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Though its connection goes to an address: a certificate of another name, or of nobody known, is refused."""
    chain, key = Authority(tmp_path, "hooks.example").current(datetime.now(UTC))
    (tmp_path / "chain.pem").write_text(chain)
    (tmp_path / "key.pem").write_text(key)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "chain.pem", tmp_path / "key.pem")

    def resolve(host: str, port: int, **_: Any) -> list[Any]:
        return [(0, 0, 0, "", ("127.0.0.1", port))]

    kept, tenant = secrets
    sender = Webhooks(kept, allowed=LOOPBACK)
    async with server_that(tls) as server:
        port = server.address.partition(":")[2]
        monkeypatch.setattr(lookups, "getaddrinfo", resolve)
        with pytest.raises(Failed):
            await sender.send(tenant, f"https://hooks.example:{port}/", b"{}")
        sender._tls.load_verify_locations(authority_path(tmp_path, "hooks.example"))
        with pytest.raises(Failed):
            await sender.send(tenant, f"https://other.example:{port}/", b"{}")
        assert server.requests == []
        await sender.send(tenant, f"https://hooks.example:{port}/", b"{}")
    [(head, _)] = server.requests
    assert f"host: hooks.example:{port}".encode() in head.lower()


async def test_a_webhook_that_hangs_is_left(
    secrets: tuple[WebhookSecrets, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "WITHIN", 0.2)
    kept, tenant = secrets
    async with server_that(delay=60) as server:
        with pytest.raises(Failed):
            await Webhooks(kept, allowed=LOOPBACK).send(tenant, f"http://{server.address}/", b"{}")
        await until(lambda: len(server.requests) == 1)


async def test_a_name_that_leads_inside_is_refused(
    secrets: tuple[WebhookSecrets, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One address of several is enough."""

    def resolve(host: str, port: int, **_: Any) -> list[Any]:
        return [(0, 0, 0, "", (address, port)) for address in ("93.184.215.14", "10.0.0.7")]

    kept, tenant = secrets
    monkeypatch.setattr(lookups, "getaddrinfo", resolve)
    with pytest.raises(Forbidden):
        await Webhooks(kept).send(tenant, "http://rebind.example/", b"{}")


async def test_dead_names_of_one_tenant_hold_up_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor the threads that all the rest of us has."""
    answers = threading.Event()

    def resolve(host: str, port: int, **_: Any) -> list[Any]:
        if host == "dead.example":
            answers.wait(30)
        return [(0, 0, 0, "", ("192.0.2.1", port))]

    monkeypatch.setattr(lookups, "getaddrinfo", resolve)
    names = Lookups()
    dead = [asyncio.ensure_future(names.find("one", "dead.example", 80)) for _ in range(100)]
    try:
        async with asyncio.timeout(20):
            assert await names.find("other", "alive.example", 80) == [ipaddress.ip_address("192.0.2.1")]
        for each in dead[:50]:
            each.cancel()  # whoever gives up leaves no more than his thread behind
        async with asyncio.timeout(20):
            await asyncio.gather(*[names.find("other", "alive.example", 80) for _ in range(20)])
    finally:
        answers.set()
    found = await asyncio.gather(*dead, return_exceptions=True)
    assert sum(isinstance(each, list) for each in found) == 50


@pytest.mark.parametrize(
    ("address", "is_so"),
    [
        *(("93.184.215.14", True), ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", True)),
        *(("10.0.0.1", False), ("172.16.0.1", False), ("192.168.1.1", False), ("100.64.0.1", False)),
        *(("127.0.0.1", False), ("169.254.169.254", False), ("0.0.0.0", False), ("255.255.255.255", False)),
        *(("224.0.0.1", False), ("::1", False), ("fe80::1", False), ("fc00::1", False), ("ff02::1", False)),
    ],
)
def test_what_is_outside(address: str, is_so: bool) -> None:
    assert is_outside(ipaddress.ip_address(address)) is is_so


@pytest.mark.parametrize(
    "address", ["::ffff:10.0.0.1", "64:ff9b::a9fe:a9fe", "2002:0a00:0001::1", "::ffff:169.254.169.254"]
)
async def test_an_address_in_disguise_is_seen_through(secrets: tuple[WebhookSecrets, str], address: str) -> None:
    kept, tenant = secrets
    with pytest.raises(Forbidden):
        await Webhooks(kept).send(tenant, f"http://[{address}]/", b"{}")


@pytest.mark.parametrize("url", ["ftp://example.com/", "http://", "http://user:pass@example.com/", "/done"])
def test_what_is_no_url_of_a_webhook(url: str) -> None:
    with pytest.raises(Invalid):
        parse_url(url)
    with pytest.raises(Invalid):
        parse_invoking(Invoking(on_success=Destination(To.WEBHOOK, url)))


def test_a_signature_is_of_this_body_and_of_now() -> None:
    made = signature(["s"], 1000, b"body")
    assert is_genuine("s", made, b"body", now=1200)
    for secret, sent, body, now in (
        ("t", made, b"body", 1200),
        ("s", made, b"other", 1200),
        ("s", made, b"body", 1400),
        ("s", made.replace("t=1000", "t=1001"), b"body", 1200),
        ("s", "t=,v1=", b"body", 1200),
        ("s", "t=" + "9" * 5000 + ",v1=a", b"body", 1200),
        ("s", "", b"body", 1200),
    ):
        assert not is_genuine(secret, sent, body, now=now)
