"""How much work the loss of a host may cost: said by the tier, asked of the host, and told to whoever asks."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as some

from dovecote.control.sessions.rules import resting_lag
from dovecote.errors import NotFound
from dovecote.host.instances.checkpoints import (
    BURST_ENDS,
    BURST_FILES,
    DEBOUNCE,
    LONGEST_BURST,
    LONGEST_REST,
    Progress,
    is_due,
    lag_of,
)
from dovecote.model.sizes import TIERS
from dovecote.model.states import SessionState
from dovecote.model.trees import LagState
from tests.unit.control_world import World


@given(
    point=some.floats(0.5, 60),
    took=some.floats(0, 100),
    dirty=some.floats(0, 100),
    rested=some.floats(0, 100),
    failures=some.integers(0, 50),
    new_files=some.integers(0, 5000),
    grew=some.floats(0, 5),
)
def test_what_was_written_is_never_left_for_longer_than_the_longest_rest(
    point: float, took: float, dirty: float, rested: float, failures: int, new_files: int, grew: float
) -> None:
    saved = Progress(dirty_since=100 - dirty, rested_since=100 - rested, took=took, failures=failures)
    saved = replace(saved, new_files=new_files, grew_at=100 - grew)
    if dirty > LONGEST_BURST and rested > LONGEST_REST:
        assert is_due(saved, now=100, recovery_point=point)
    if new_files >= BURST_FILES and grew < BURST_ENDS:
        return
    if dirty >= DEBOUNCE and rested > LONGEST_REST:
        assert is_due(saved, now=100, recovery_point=point)
    if dirty > point and rested > point and not failures and took < point / 20:
        assert is_due(saved, now=100, recovery_point=point)


def test_a_burst_of_new_files_is_saved_at_its_end_or_when_it_lasts() -> None:
    """And a few new files, or many of which nobody knows when they came, wait for nothing."""
    saved = Progress(dirty_since=0.0).grown([300], now=0.0)
    installing = saved.grown(range(301, 301 + BURST_FILES), now=5.0)
    assert not is_due(installing, now=5.2, recovery_point=2.0)
    assert is_due(installing, now=5.1 + BURST_ENDS, recovery_point=2.0)
    assert is_due(installing.grown([9999], now=LONGEST_BURST), now=LONGEST_BURST, recovery_point=2.0)
    assert is_due(saved.grown(range(301, 310), now=5.0), now=5.2, recovery_point=2.0)
    assert is_due(Progress(dirty_since=0.0).grown(range(5000), now=5.0), now=5.2, recovery_point=2.0)


def test_a_smaller_recovery_point_is_saved_sooner() -> None:
    saved = Progress(dirty_since=0.0, rested_since=0.0)
    assert is_due(saved, now=0.6, recovery_point=1.0)
    assert not is_due(saved, now=0.6, recovery_point=2.0)


def test_the_lag_names_what_fails_and_how_much_waits() -> None:
    clean = lag_of(Progress(saved_at=8.0), 0, now=10, recovery_point=2)
    assert (clean.state, clean.saved_ago, clean.behind) == (LagState.SAVED, 2.0, 0.0)
    behind = lag_of(Progress(saved_at=8.0, dirty_since=9.0), 3, now=10, recovery_point=2)
    assert (behind.state, behind.behind, behind.pending) == (LagState.PENDING, 1.0, 3)
    failing = lag_of(Progress(dirty_since=1.0, failures=4, error_code="disk_full"), None, now=10, recovery_point=2)
    assert (failing.state, failing.saved_ago, failing.pending) == (LagState.FAILING, None, None)
    assert failing.error_code == "disk_full"


@pytest.mark.anyio
async def test_a_claim_asks_for_the_recovery_point_of_the_tier(world: World) -> None:
    for name, tier in TIERS.items():
        await world.sessions.create(world.tenant, tier=name)
        assert world.host.claims[-1].recovery_point == tier.recovery_point.total_seconds()


@pytest.mark.anyio
async def test_a_new_tier_changes_what_runs_and_a_restart_makes_good_what_was_missed(world: World) -> None:
    session = await world.sessions.create(world.tenant, tier="default")
    instance = world.host.of(session.id)
    assert instance is not None
    await world.sessions.update(world.tenant, session.id, tier="svip")
    assert instance.claim.recovery_point == 1.0
    assert (await world.sessions.lag(world.tenant, session.id)).recovery_point == 1.0
    await world.rewrite(session, tier="regular")  # written, and control died before it told the host
    await world.restart()
    assert instance.claim.recovery_point == 2.0


@pytest.mark.anyio
async def test_the_lag_of_a_session_follows_its_life_and_wakes_nobody(world: World) -> None:
    async def state() -> LagState:
        return (await world.sessions.lag(world.tenant, session.id)).state

    session = await world.sessions.create(world.tenant, wake=False)
    assert await state() is LagState.SAVED
    assert world.host.claims == []
    await world.write(session, b"text")
    lag = await world.sessions.lag(world.tenant, session.id)
    assert (lag.state, lag.pending) == (LagState.PENDING, 1)
    await world.sessions.save(world.tenant, session.id)
    assert await state() is LagState.SAVED
    await world.host.die(session.id)
    await world.becomes(session, SessionState.LOST)
    assert await state() is LagState.ON_HOST
    await world.sessions.park(world.tenant, session.id)
    assert await state() is LagState.SAVED
    assert await world.becomes(session, SessionState.PARKED)
    await world.rewrite(session, state=SessionState.DAMAGED)
    assert await state() is LagState.DAMAGED


@pytest.mark.anyio
async def test_another_tenant_sees_no_lag(world: World) -> None:
    session = await world.sessions.create(world.tenant)
    with pytest.raises(NotFound):
        await world.sessions.lag(world.other, session.id)


@pytest.mark.anyio
async def test_the_age_of_a_parked_sessions_save_is_told(world: World) -> None:
    session = await world.sessions.create(world.tenant)
    parked = await world.sessions.park(world.tenant, session.id)
    assert parked.saved_at is not None
    assert resting_lag(parked, parked.saved_at + timedelta(seconds=5)).saved_ago == 5.0
    assert resting_lag(parked, datetime.now(UTC)).state is LagState.SAVED
