"""A session is found by what its token was used for."""

from __future__ import annotations

import pytest

from dovecote.control.sessions import tokens
from tests.unit.control_world import World

pytestmark = pytest.mark.anyio


async def test_a_session_of_any_tenant_is_found_awake_or_resting_and_not_once_it_ended(world: World) -> None:
    mine = await world.sessions.create(world.tenant)
    theirs = await world.sessions.create(world.other)
    resting = await world.sessions.park(world.tenant, (await world.sessions.create(world.tenant)).id)
    assert len({mine.token, theirs.token, resting.token}) == 3
    for each in (mine, theirs, resting):
        found = await world.sessions.tokens.find(lambda token, each=each: token == each.token)  # type: ignore[misc]
        assert found is not None
        assert found.id == each.id
    await world.sessions.delete(world.tenant, mine.id)
    assert await world.sessions.tokens.find(lambda token: token == mine.token) is None
    assert await world.sessions.tokens.find(lambda _: False) is None


async def test_a_search_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "MOST", 2)
    for _ in range(4):
        await world.sessions.create(world.tenant, wake=False)
    tried: list[str] = []
    assert await world.sessions.tokens.find(lambda token: bool(tried.append(token))) is None  # type: ignore[func-returns-value]
    assert len(tried) == 2
