"""Results of asynchronous calls in a real Redis and a real NATS, and what happens without one."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nats
import pytest
import redis.asyncio

from dovecote.control.invocations import Queues, open_queues, queues
from dovecote.errors import Failed, Invalid, Unsupported
from tests.unit.control_world import until

pytestmark = [pytest.mark.system, pytest.mark.anyio]


@dataclass
class Redis:
    """A server on a Unix socket of its own, so that it needs no port."""

    socket: Path

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Redis]:
    program = shutil.which("redis-server")
    assert program, "deploy/install.sh test installs it"
    there = Redis(tmp_path / "redis.sock")
    words = ["--port", "0", "--unixsocket", str(there.socket), "--save", "", "--dir", str(tmp_path)]
    process = subprocess.Popen([program, *words], stdout=subprocess.DEVNULL)
    try:
        yield there
    finally:
        process.kill()
        process.wait(10)


@pytest.fixture
async def client(server: Redis) -> AsyncIterator[Any]:
    client: Any = redis.asyncio.Redis.from_url(server.url)

    async def is_up() -> bool:
        try:
            return bool(await client.ping())
        except redis.exceptions.ConnectionError:
            return False

    await until(is_up)
    yield client
    await client.aclose()


@pytest.fixture
async def opened(server: Redis) -> AsyncIterator[Queues]:
    made = open_queues(redis_url=server.url, nats_url="")
    yield made
    await made.close()


async def test_each_tenant_has_streams_of_its_own(opened: Queues, client: Any) -> None:
    await opened.publish("ten_a", "redis:orders", b'{"a":1}')
    await opened.publish("ten_a", "orders", b'{"a":2}')  # there is one kind of queue only
    await opened.publish("ten_b", "orders", b'{"b":1}')
    assert sorted(await client.keys()) == [b"dovecote:ten_a:orders", b"dovecote:ten_b:orders"]
    messages = [fields[b"message"] for _, fields in await client.xrange("dovecote:ten_a:orders")]
    assert messages == [b'{"a":1}', b'{"a":2}']


async def test_a_stream_does_not_grow_without_bound(
    opened: Queues, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queues, "MOST_IN_A_STREAM", 100)
    for _ in range(500):
        await opened.publish("ten_a", "orders", b"x")
    assert await client.xlen("dovecote:ten_a:orders") < 300


class NATS:
    """A server with JetStream, at a port that it chose itself when it was first started."""

    def __init__(self, directory: Path) -> None:
        program = shutil.which("nats-server")
        assert program, "deploy/install.sh test installs it"
        self._program, self._directory = program, directory
        self.url = ""

    def start(self) -> None:
        port = self.url.rpartition(":")[2] or "-1"
        words = [
            "-a",
            "127.0.0.1",
            "-p",
            port,
            "--ports_file_dir",
            str(self._directory),
            "-js",
            "-sd",
            str(self._directory),
        ]
        output = subprocess.DEVNULL
        self._process = subprocess.Popen([self._program, *words], stdout=output, stderr=output)
        self._told = self._directory / f"{Path(self._program).name}_{self._process.pid}.ports"

    async def is_up(self) -> None:
        await until(lambda: self._told.is_file() and self._told.stat().st_size > 0)
        self.url = json.loads(self._told.read_text())["nats"][0]

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(10)


@pytest.fixture
async def nats_server(tmp_path: Path) -> AsyncIterator[NATS]:
    there = NATS(tmp_path)
    try:
        there.start()
        await there.is_up()
        yield there
    finally:
        there.kill()


async def test_each_tenant_has_subjects_of_its_own(nats_server: NATS) -> None:
    opened = open_queues(redis_url="", nats_url=nats_server.url)
    client = await nats.connect(nats_server.url)
    listening = await client.subscribe("dovecote.ten_a.>")
    await client.flush()
    await opened.publish("ten_b", "orders.done", b'{"b":1}')
    await opened.publish("ten_a", "nats:orders.done", b'{"a":1}')
    await opened.publish("ten_a", "orders", b'{"a":2}')
    heard = [await listening.next_msg(timeout=10) for _ in range(2)]
    assert [(each.subject, each.data) for each in heard] == [
        ("dovecote.ten_a.orders.done", b'{"a":1}'),
        ("dovecote.ten_a.orders", b'{"a":2}'),
    ]
    await client.close()
    await opened.close()


async def test_a_stream_keeps_what_nobody_listens_to(nats_server: NATS) -> None:
    opened = open_queues(redis_url="", nats_url=nats_server.url)
    client = await nats.connect(nats_server.url)
    kept = client.jetstream()
    await kept.add_stream(name="orders", subjects=["dovecote.ten_a.>"])
    await opened.publish("ten_a", "orders", b'{"a":1}')
    reader = await kept.pull_subscribe("dovecote.ten_a.>", durable="reader")
    [message] = await reader.fetch(1, timeout=10)
    assert message.data == b'{"a":1}'
    await client.close()
    await opened.close()


async def test_a_message_that_is_too_large_for_a_subject_is_not_taken(nats_server: NATS) -> None:
    """The server takes a megabyte; the connection goes on afterwards."""
    opened = open_queues(redis_url="", nats_url=nats_server.url)
    with pytest.raises(Failed) as caught:
        await opened.publish("ten_a", "orders", b"x" * (2 << 20))
    assert caught.value.code == "queue_failed"
    await asyncio.gather(*(opened.publish("ten_a", "orders", b"x") for _ in range(20)))
    await opened.close()


async def test_a_server_that_comes_back_is_found_again(nats_server: NATS, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queues, "WITHIN", 1.0)
    opened = open_queues(redis_url="", nats_url=nats_server.url)
    await opened.publish("ten_a", "orders", b"1")
    nats_server.kill()
    with pytest.raises(Failed):
        await opened.publish("ten_a", "orders", b"2")
    nats_server.start()

    async def is_taken() -> bool:
        try:
            await opened.publish("ten_a", "orders", b"3")
        except Failed:
            return False
        return True

    await until(is_taken)
    nats_server.kill()
    await opened.close()  # whatever the client says of a server that is away


async def test_a_queue_that_is_away_is_tried_later(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for urls in (
        {"redis_url": f"redis://127.0.0.1:{port}", "nats_url": ""},
        {"redis_url": "", "nats_url": f"nats://127.0.0.1:{port}"},
    ):
        away = open_queues(**urls)
        with pytest.raises(Failed) as caught:
            await away.publish("ten_a", "orders", b"x")
        assert caught.value.code == "queue_failed"
        await away.close()


async def test_without_a_queue_it_is_said() -> None:
    none = open_queues(redis_url="", nats_url="")
    with pytest.raises(Unsupported) as caught:
        await none.publish("ten_a", "nats:orders", b"x")
    assert caught.value.code == "no_queue"


@pytest.mark.parametrize("target", ["", "a b", "orders:*", "$SYS.x", "a..b", ">", "redis:", "kafka:orders", "x" * 201])
async def test_what_is_no_name_in_a_queue(target: str) -> None:
    with pytest.raises(Invalid):
        await open_queues(redis_url="", nats_url="").publish("ten_a", target, b"x")
