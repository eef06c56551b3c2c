"""How long Envoy's workers remember a route, and how many, with a clock and bounds of the test."""

from __future__ import annotations

from pathlib import Path

import pytest

from dovecote.gateway import Answer, Ask, bootstrap
from dovecote.gateway.routes import read_lua
from dovecote.model.serving import Affinity
from tests.system.gateway_world import SLUG, World, world

pytestmark = [pytest.mark.system, pytest.mark.anyio]

BOX = f"3000-{SLUG}.box.localhost"
FUNCTION = "chat.fn.localhost"


class Clock:
    """What Envoy's Lua takes for the time. A new one for each request, so it is read from a file."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._path = path
        self.set(1_000_000)
        mine = f"local os = {{time = function() return tonumber(io.open('{path}'):read()) end}}\n"
        monkeypatch.setattr(bootstrap, "read_lua", lambda name: mine * (name == "routes.lua") + read_lua(name))

    def set(self, now: int) -> None:
        self._path.write_text(str(now))


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(tmp_path / "now", monkeypatch)


async def asks_at(w: World, clock: Clock, now: int) -> bool:
    clock.set(now)
    before = len(w.asks)
    assert (await w.get(BOX)).status_code == 200
    return len(w.asks) > before


@pytest.mark.parametrize(("later", "asks"), [(0, False), (29, False), (59, False), (60, True), (10**6, True)])
async def test_a_route_is_used_for_two_ttl_at_most(clock: Clock, later: int, asks: bool) -> None:
    async with world() as w:
        await w.open()
        w.points_to(await w.instance("a"))
        assert await asks_at(w, clock, 1_000_000)
        assert await asks_at(w, clock, 1_000_000 + later) == asks


async def test_a_clock_that_is_set_back_keeps_no_route_for_longer(clock: Clock) -> None:
    """By then its address may be another tenant's."""
    async with world() as w:
        await w.open()
        w.points_to(await w.instance("a"))
        assert await asks_at(w, clock, 1_000_000)
        assert await asks_at(w, clock, 990_000)
        assert not await asks_at(w, clock, 990_029)
        assert await asks_at(w, clock, 990_060)


async def test_what_is_remembered_of_callers_is_bounded_also_where_no_route_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "MOST_ENTRIES", 10)
    async with world() as w:
        await w.open()
        instance = await w.instance("a")

        async def answer(ask: Ask) -> Answer:
            return Answer(instance.address, learn=ask.credential == "known", affinity=Affinity(), key="s1")

        w.answers = answer
        known = {"x_dovecote_key": "known", "x_dovecote_session": "s1"}
        for asked in (1, 1):
            await w.get(FUNCTION, **known)
            assert len(w.asks) == asked
        for n in range(20):
            await w.get(FUNCTION, x_dovecote_key=f"key-{n}", x_dovecote_session="s1")
        before = len(w.asks)
        await w.get(FUNCTION, **known)
        assert len(w.asks) == before + 1
