"""Instances that are ready before anybody asks: a claim takes one, the pool makes the next."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dovecote.errors import DovecoteError
from dovecote.host.instances.instance import Instance
from dovecote.host.instances.preparing import Preparing
from dovecote.model.sizes import Limits

log = logging.getLogger(__name__)

DEFERRAL = 0.06  # seconds after a claim in which no instance is prepared, unless the next one would have to wait for it
LONGEST_DEFERRAL = 0.5
LONGEST_PAUSE = 30.0  # seconds between tries when instances cannot be prepared


class WarmPool:
    """Keeps `size` instances of one shape (`level`, `allow_setuid`) prepared; other shapes are started cold."""

    def __init__(self, preparing: Preparing, *, size: int, level: str, allow_setuid: bool) -> None:
        self._preparing = preparing
        self._size = size
        self._level = level
        self._allow_setuid = allow_setuid
        self._ready: deque[Instance] = deque()
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._claims = 0  # under way
        self._claimed_at = 0.0
        self._on_prepared: Callable[[Instance], None] = lambda _: None

    def start(self, on_prepared: Callable[[Instance], None]) -> None:
        """`on_prepared` is called with each new instance, so that its death is noticed."""
        self._on_prepared = on_prepared
        self._wanted.set()
        self._task = asyncio.ensure_future(self._fill())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def clear(self) -> None:
        await self.stop()
        while self._ready:
            await self._preparing.unmake(self._ready.popleft(), keep_disk=False)

    def fits(self, instance: Instance) -> bool:
        """Whether it has the pool's shape."""
        return (instance.level, instance.allow_setuid) == (self._level, self._allow_setuid)

    def adopt(self, instance: Instance) -> None:
        self._ready.append(instance)

    def drop(self, instance: Instance) -> bool:
        """Forgets one that died; True when it was here."""
        try:
            self._ready.remove(instance)
        except ValueError:
            return False
        self._wanted.set()
        return True

    def disks(self) -> set[str]:
        return {instance.disk for instance in self._ready}

    def __len__(self) -> int:
        return len(self._ready)

    async def take(self, *, level: str, allow_setuid: bool) -> Instance | None:
        """A prepared instance, or None when there is none of that shape."""
        if (level, allow_setuid) != (self._level, self._allow_setuid) or not self._ready:
            self._wanted.set()
            return None
        instance = self._ready.popleft()
        self._wanted.set()
        return instance

    @contextmanager
    def claiming(self) -> Iterator[None]:
        """Around a claim, from before `take` until it has its instance: meanwhile others are not prepared."""
        self._claims += 1
        try:
            yield
        finally:
            self._claims -= 1
            self._claimed_at = time.monotonic()

    async def _pause_for_claims(self) -> None:
        """Preparing takes CPU that claims and first commands want now; but under steady claims it must go on."""
        deadline = time.monotonic() + LONGEST_DEFERRAL
        while self._is_claimed() and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(DEFERRAL)

    def _is_claimed(self) -> bool:
        if self._claims:
            return True
        return bool(self._ready) and time.monotonic() < self._claimed_at + DEFERRAL

    async def _fill(self) -> None:
        pause = 0.5
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            while len(self._ready) < self._size:
                await self._pause_for_claims()
                try:
                    instance = await self._preparing.prepare(
                        level=self._level, allow_setuid=self._allow_setuid, limits=Limits()
                    )
                except Exception as error:
                    expected = isinstance(error, (DovecoteError, OSError))
                    log.error(
                        "no instance could be prepared, next try in %.0f s: %s", pause, error, exc_info=not expected
                    )
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, LONGEST_PAUSE)
                    continue
                pause = 0.5
                self._ready.append(instance)
                self._on_prepared(instance)
