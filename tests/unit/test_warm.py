"""The warm pool is filled when there is time for it: not while claims are under way, unless that lasts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dovecote.host.instances import warm
from dovecote.host.instances.warm import WarmPool

pytestmark = pytest.mark.anyio

SIZE = 2


class Pauses:
    """Stands in for `asyncio.sleep`: counts the pauses, and makes none last."""

    def __init__(self) -> None:
        self.count = 0

    async def sleep(self, seconds: float) -> None:
        self.count += 1
        await asyncio.sleep(0)


class Counting:
    """Prepares at once."""

    def __init__(self) -> None:
        self.count = 0

    async def prepare(self, **_: object) -> Any:
        self.count += 1
        return SimpleNamespace(level="crun", allow_setuid=True)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> Pauses:
    pauses = Pauses()
    monkeypatch.setattr(warm, "asyncio", SimpleNamespace(**{**vars(asyncio), "sleep": pauses.sleep}))
    return pauses


@asynccontextmanager
async def filling(preparing: Counting) -> AsyncIterator[WarmPool]:
    pool = WarmPool(cast(Any, preparing), size=SIZE, level="crun", allow_setuid=True)
    pool.start(lambda _: None)
    try:
        yield pool
    finally:
        await pool.stop()


async def until(claim: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not claim():  # noqa: ASYNC110
            await asyncio.sleep(0)


async def take_all(pool: WarmPool) -> None:
    while await pool.take(level="crun", allow_setuid=True) is not None:
        pass


async def test_an_empty_pool_waits_for_the_claims_that_emptied_it(
    pauses: Pauses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm, "LONGEST_DEFERRAL", 3600.0)
    preparing = Counting()
    async with filling(preparing) as pool:
        await until(lambda: len(pool) == SIZE)
        with pool.claiming():
            await take_all(pool)
            before = pauses.count
            await until(lambda: pauses.count > before + 10)
            assert preparing.count == SIZE
        await until(lambda: len(pool) >= 1)


async def test_steady_claims_do_not_stop_it(pauses: Pauses, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm, "LONGEST_DEFERRAL", 0.01)
    preparing = Counting()
    async with filling(preparing) as pool:
        await until(lambda: len(pool) == SIZE)
        with pool.claiming():
            await take_all(pool)
            await until(lambda: len(pool) == SIZE)


async def test_a_pool_that_has_some_left_leaves_the_first_commands_alone(
    pauses: Pauses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm, "LONGEST_DEFERRAL", 3600.0)
    monkeypatch.setattr(warm, "DEFERRAL", 3600.0)
    preparing = Counting()
    async with filling(preparing) as pool:
        await until(lambda: len(pool) == SIZE)
        with pool.claiming():
            await pool.take(level="crun", allow_setuid=True)
        before = pauses.count
        await until(lambda: pauses.count > before + 10)
        assert preparing.count == SIZE
        await take_all(pool)  # the next one would have to wait for it
        await until(lambda: preparing.count > SIZE)
