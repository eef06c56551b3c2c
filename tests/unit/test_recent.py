"""What is remembered of what was read, and for how long."""

from __future__ import annotations

import asyncio

import pytest

from dovecote.recent import Recent

pytestmark = pytest.mark.anyio


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Shelf:
    """What is read, and how often it was."""

    def __init__(self) -> None:
        self.holds: dict[str, str] = {}
        self.reads = 0

    async def read(self) -> str | None:
        self.reads += 1
        return self.holds.get("it")


async def test_a_value_is_read_once_in_its_time() -> None:
    clock, shelf = Clock(), Shelf()
    recent: Recent[str, str] = Recent(ttl=10, most=5, clock=clock)
    shelf.holds["it"] = "old"
    assert [await recent.get("it", shelf.read) for _ in range(3)] == ["old"] * 3
    shelf.holds["it"] = "new"
    clock.now += 9.9
    assert (await recent.get("it", shelf.read), shelf.reads) == ("old", 1)
    clock.now += 0.1
    assert (await recent.get("it", shelf.read), shelf.reads) == ("new", 2)


async def test_what_is_not_there_is_looked_for_each_time() -> None:
    shelf = Shelf()
    recent: Recent[str, str] = Recent(ttl=10, most=5)
    assert [await recent.get("it", shelf.read) for _ in range(2)] == [None, None]
    shelf.holds["it"] = "there"
    assert await recent.get("it", shelf.read) == "there"


async def test_what_was_read_before_a_change_is_not_remembered_after_it() -> None:
    """However the two meet: the reader answers what it saw, and the next one reads again."""
    recent: Recent[str, str] = Recent(ttl=10, most=5)
    seen: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def slow() -> str:
        return await seen

    async def fresh() -> str:
        return "new"

    reader = asyncio.ensure_future(recent.get("it", slow))
    await asyncio.sleep(0)
    recent.forget()
    seen.set_result("old")
    assert await reader == "old"
    assert await recent.get("it", fresh) == "new"


async def test_many_who_ask_at_once_read_it_once_and_one_who_leaves_takes_nothing_from_the_others() -> None:
    recent: Recent[str, str] = Recent(ttl=10, most=5)
    seen: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    reads = 0

    async def slow() -> str:
        nonlocal reads
        reads += 1
        return await seen

    leaver, *stayers = [asyncio.ensure_future(recent.get("it", slow)) for _ in range(50)]
    await asyncio.sleep(0)
    leaver.cancel()
    await asyncio.wait([leaver])
    seen.set_result("there")
    assert (await asyncio.gather(*stayers), reads) == (["there"] * 49, 1)


async def test_a_reading_that_fails_fails_for_all_who_waited_and_for_nobody_else() -> None:
    recent: Recent[str, str] = Recent(ttl=10, most=5)
    shelf = Shelf()
    shelf.holds["it"] = "there"

    async def broken() -> str:
        raise RuntimeError("the store is away")

    failed = await asyncio.gather(*(recent.get("it", broken) for _ in range(3)), return_exceptions=True)
    assert [str(each) for each in failed] == ["the store is away"] * 3
    assert await recent.get("it", shelf.read) == "there"


async def test_it_is_bounded_and_what_was_read_first_goes_first() -> None:
    recent: Recent[str, str] = Recent(ttl=10, most=2)
    read: list[str] = []

    async def get(key: str) -> None:
        async def read_it() -> str:
            read.append(key)
            return key

        await recent.get(key, read_it)

    for key in ("a", "b", "c", "c", "b", "a"):
        await get(key)
    assert read == ["a", "b", "c", "a"]
