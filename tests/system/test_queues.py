"""Results of asynchronous calls in a real Redis, and what happens without one."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
