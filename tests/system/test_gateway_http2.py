"""Callers that speak HTTP/2, without TLS by prior knowledge and with it by ALPN: all as by HTTP/1.1."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import struct
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from dovecote.gateway.certificates import authority_path
from dovecote.model.serving import Affinity, Mode
from tests.system.gateway_world import BOUND, Serving, World, free_port, world

pytestmark = [pytest.mark.system, pytest.mark.anyio]

NAME = "chat.fn.localhost"
BOTH = pytest.mark.parametrize("scheme", ["http", "https"])
ENABLE_CONNECT_PROTOCOL = 8  # of SETTINGS: who offers WebSockets over HTTP/2 says so (RFC 8441)
CLIENT_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + struct.pack(">IBI", 0x04, 0, 0)  # and empty SETTINGS


@pytest.fixture
async def w() -> AsyncIterator[World]:
    async with world() as there:
        there.tls_port = free_port()
        await there.open()
        yield there


@dataclass
class Answered:
    """What curl was answered."""

    body: bytes
    version: str
    status: int
    connects: int  # that this one took

    @property
    def said(self) -> dict[str, Any]:
        return dict(json.loads(self.body))


def command(w: World, scheme: str, *requests: Sequence[str]) -> list[str]:
    """Each request is curl's arguments for it, with its path last; they go one after the other."""
    port = w.tls_port if scheme == "https" else w.port
    how = ["--http2", "--cacert", str(authority_path(w.run_dir, "localhost"))]
    common = [*(how if scheme == "https" else ["--http2-prior-knowledge"]), "-sS", "-N", "--max-time", str(BOUND)]
    common += ["--resolve", f"{NAME}:{port}:127.0.0.1", "-H", "x-dovecote-key: key-of-one"]
    common += ["-w", "\n%{http_version} %{http_code} %{num_connects}\n"]
    words = ["curl"]
    for number, (*arguments, path) in enumerate(requests):
        words += [*(["--next"] if number else []), *common, *arguments, f"{scheme}://{NAME}:{port}{path}"]
    return words


@contextlib.asynccontextmanager
async def running(words: Sequence[str]) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(*words, stdin=PIPE, stdout=PIPE, stderr=PIPE)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def curl(w: World, scheme: str, *requests: Sequence[str], data: bytes = b"") -> list[Answered]:
    """By TLS all over one connection; without it curl, as Debian has it, cannot use one again."""
    if scheme == "http" and len(requests) > 1:
        return [answer for each in requests for answer in await curl(w, scheme, each, data=data)]
    async with running(command(w, scheme, *requests)) as process:
        out, error = await asyncio.wait_for(process.communicate(data), BOUND)
    assert process.returncode == 0, error
    lines = out.splitlines()
    answers = []
    for body, line in zip(lines[::2], lines[1::2], strict=True):
        version, status, connects = line.decode().split()
        answers.append(Answered(body, version, int(status), int(connects)))
    return answers


@BOTH
async def test_requests_go_each_to_its_own_session(w: World, scheme: str) -> None:
    Serving(w, Affinity(), await w.instance("a"), await w.instance("b"))
    named = [("-H", f"x-dovecote-session: {key}", "/x?y=z") for key in ("one", "two", "one", "two")]
    answers = await curl(w, scheme, *named)
    assert [(each.version, each.status) for each in answers] == [("2", 200)] * 4
    assert [each.said["name"] for each in answers] == ["a", "b", "a", "b"]
    assert sum(each.connects for each in answers) == (1 if scheme == "https" else 4)
    assert {each.said["path"] for each in answers} == {"/x?y=z"}
    assert "x-dovecote-key" not in answers[2].said["headers"]
    assert len(w.asks) == 2  # the other two were warm


@BOTH
async def test_a_cookie_that_comes_in_several_fields_is_one(w: World, scheme: str) -> None:
    """Clients of HTTP/2 may send each of its pairs in a field of its own."""
    serving = Serving(w, Affinity(modes=(Mode.COOKIE,)), await w.instance("a"), await w.instance("b"))
    serving.sessions |= {"s1": serving.instances[0], "s2": serving.instances[1]}
    name = "__Host-dovecote-session" if scheme == "https" else "dovecote-session"
    fields = ["-H", "cookie: a=1", "-H", f"cookie: {name}=s2", "-H", "cookie: b=2"]
    for answer in await curl(w, scheme, [*fields, "/"], [*fields, "/"]):
        assert (answer.said["name"], answer.said["headers"]["cookie"]) == ("b", "a=1; b=2")
    assert len(w.asks) == 1


@BOTH
async def test_a_large_body_arrives_whole_after_a_cold_start(w: World, scheme: str) -> None:
    Serving(w, Affinity(), await w.instance("a"))
    body = bytes(range(256)) * 12_000  # more than a window of flow control
    (answer,) = await curl(w, scheme, ["-H", "x-dovecote-session: one", "--data-binary", "@-", "/"], data=body)
    assert (answer.version, answer.status, answer.said["method"]) == ("2", 200, "POST")
    assert (answer.said["size"], answer.said["sha256"]) == (len(body), hashlib.sha256(body).hexdigest())


@BOTH
async def test_an_event_stream_comes_as_it_is_sent(w: World, scheme: str) -> None:
    instance = await w.instance("a")
    Serving(w, Affinity(), instance)
    async with running(command(w, scheme, ["-H", "x-dovecote-session: one", "/events"])) as process:
        assert process.stdout is not None
        for number in range(3):
            instance.gate.release()  # the next event is sent now, and not before the last has come
            assert await asyncio.wait_for(process.stdout.readline(), BOUND) == b"data: %d\n" % number
            assert await asyncio.wait_for(process.stdout.readline(), BOUND) == b"\n"


@BOTH
async def test_an_error_of_the_gateway_has_its_shape(w: World, scheme: str) -> None:
    (answer,) = await curl(w, scheme, ["/"])
    assert (answer.version, answer.status, answer.said["error"]["code"]) == ("2", 404, "not_found")


async def test_websockets_are_not_offered_over_it_so_that_browsers_take_a_connection_of_their_own(w: World) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", w.port)
    try:
        writer.write(CLIENT_PREFACE)
        async with asyncio.timeout(BOUND):
            kind, length = -1, 0
            while kind != 4:
                head = await reader.readexactly(9)
                kind, length = head[3], int.from_bytes(head[:3])
                payload = await reader.readexactly(length)
    finally:
        writer.close()
    settings = dict(struct.iter_unpack(">HI", payload))
    assert settings, "no settings of the server"
    assert not settings.get(ENABLE_CONNECT_PROTOCOL)
