"""Queues that the operator has: streams of Redis, subjects of NATS. Each tenant has names of its own in them."""

from __future__ import annotations

import asyncio
import importlib
import logging
import re
from typing import Any, Protocol

from dovecote.errors import DovecoteError, Failed, Invalid, Unsupported

log = logging.getLogger(__name__)

WITHIN = 10.0  # seconds
MOST_IN_A_STREAM = 100_000  # messages; the oldest go first
_TARGET = re.compile(r"(?:(redis|nats):)?([A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*)")


class Queue(Protocol):
    """One kind of queue."""

    async def publish(self, tenant_id: str, name: str, message: bytes) -> None:
        """Taken when it returns; may be repeated. Raises whatever the client raises."""

    async def close(self) -> None: ...


class Queues:
    """The queues by their names, `redis` and `nats`; a target that names none goes to the only one there is."""

    def __init__(self, queues: dict[str, Queue]) -> None:
        self._queues = queues

    async def publish(self, tenant_id: str, target: str, message: bytes) -> None:
        """Raises Unsupported (no_queue), Invalid, Failed (queue_failed)."""
        kind, name = parse_target(target)
        queue = self._queues.get(kind or next(iter(self._queues), ""))
        if queue is None:
            raise Unsupported(
                f"this installation has no queue {kind}".rstrip(),
                code="no_queue",
                hint="the operator sets DOVECOTE_REDIS_URL or DOVECOTE_NATS_URL",
            )
        try:
            async with asyncio.timeout(WITHIN):
                await queue.publish(tenant_id, name, message)
        except DovecoteError:
            raise
        except Exception as error:  # each client has errors of its own
            raise Failed(f"the queue took no message: {error or type(error).__name__}", code="queue_failed") from error

    async def close(self) -> None:
        """Lets go of all. Raises nothing: what a client says of a server that is away stops nobody from stopping."""
        for kind, queue in self._queues.items():
            try:
                async with asyncio.timeout(WITHIN):
                    await queue.close()
            except Exception as error:
                log.warning("the queue %s was not closed in order: %s", kind, error or type(error).__name__)


class RedisStreams:
    """Stream `dovecote:{tenant}:{name}`, one field `message`."""

    def __init__(self, url: str) -> None:
        client = _library("redis.asyncio", "redis").Redis
        self._client: Any = client.from_url(
            url, socket_timeout=WITHIN, socket_connect_timeout=WITHIN, single_connection_client=False
        )

    async def publish(self, tenant_id: str, name: str, message: bytes) -> None:
        stream = f"dovecote:{tenant_id}:{name}"
        await self._client.xadd(stream, {"message": message}, maxlen=MOST_IN_A_STREAM, approximate=True)

    async def close(self) -> None:
        await self._client.aclose()


class NATSSubjects:
    """Subject `dovecote.{tenant}.{name}`. Kept only where a stream of JetStream listens to it."""

    def __init__(self, url: str) -> None:
        self._library = _library("nats", "nats")
        self._url = url
        self._client: Any = None
        self._connecting = asyncio.Lock()

    async def publish(self, tenant_id: str, name: str, message: bytes) -> None:
        client = await self._connected()
        await client.publish(f"dovecote.{tenant_id}.{name}", message)
        await client.flush(timeout=WITHIN)

    async def _connected(self) -> Any:
        async with self._connecting:
            if self._client is None or self._client.is_closed:
                self._client = await self._library.connect(
                    self._url, connect_timeout=WITHIN, max_reconnect_attempts=2, error_cb=_quiet
                )
            return self._client

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()


async def _quiet(error: Exception) -> None:
    """Whoever publishes hears of it."""


def open_queues(*, redis_url: str, nats_url: str) -> Queues:
    """Those that are set; connects when the first message comes. Raises Unsupported (not_installed)."""
    queues: dict[str, Queue] = {}
    if redis_url:
        queues["redis"] = RedisStreams(redis_url)
    if nats_url:
        queues["nats"] = NATSSubjects(nats_url)
    return Queues(queues)


def parse_target(text: str) -> tuple[str, str]:
    """`orders`, `redis:orders` or `nats:orders.done` -> the kind or "", and the name. Raises Invalid."""
    match = _TARGET.fullmatch(text)
    if match is None or len(text) > 200:
        raise Invalid(
            f"not a name in a queue: {text[:60]!r}",
            hint="letters, digits, _ and -, with dots between; redis: or nats: first",
        )
    return match[1] or "", match[2]


def _library(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Unsupported(
            f"the library for {extra} is not installed",
            code="not_installed",
            hint=f"pip install 'dovecote[{extra}]' into the server's environment",
        ) from error
