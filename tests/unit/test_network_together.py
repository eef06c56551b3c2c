"""Calls share one run."""

from __future__ import annotations

import asyncio

import pytest

from dovecote.host.network.together import Together

pytestmark = pytest.mark.anyio


async def test_calls_during_a_run_share_the_next_one() -> None:
    runs: list[frozenset[int]] = []
    gate, started = asyncio.Event(), asyncio.Event()

    async def act(keys: frozenset[int]) -> dict[int, int]:
        runs.append(keys)
        started.set()
        await gate.wait()
        return {key: key * 10 for key in keys}

    together = Together(act)
    first = asyncio.create_task(together.call(1))
    await started.wait()
    rest = [asyncio.create_task(together.call(key)) for key in (1, 2, 3, 3)]
    await asyncio.sleep(0)
    gate.set()
    assert await first == 10
    assert await asyncio.gather(*rest) == [10, 20, 30, 30]
    assert runs == [frozenset({1}), frozenset({1, 2, 3})]


async def test_a_failure_reaches_its_callers_and_the_next_call_runs_anew() -> None:
    outcomes: list[Exception | None] = [OSError("no"), None]

    async def act(keys: frozenset[int]) -> dict[int, int]:
        outcome = outcomes.pop(0)
        if outcome:
            raise outcome
        return dict.fromkeys(keys, 1)

    together = Together(act)
    failures = await asyncio.gather(together.call(1), together.call(2), return_exceptions=True)
    assert [str(failure) for failure in failures] == ["no", "no"]
    assert await together.call(1) == 1


async def test_a_cancelled_caller_takes_nothing_from_the_others() -> None:
    gate = asyncio.Event()

    async def act(keys: frozenset[int]) -> dict[int, int]:
        await gate.wait()
        return dict.fromkeys(keys, 1)

    together = Together(act)
    one, two = (asyncio.create_task(together.call(1)) for _ in range(2))
    await asyncio.sleep(0)
    one.cancel()
    gate.set()
    assert await two == 1
