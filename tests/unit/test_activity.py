"""Why a session is awake or rests: leases, what keeps it awake, tiers that change while it lives."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovecote.control.fleet import Command
from dovecote.control.sessions.idle import Move, Quiet, awake_by, next_move, to_come
from dovecote.errors import Conflict, Gone, Invalid
from dovecote.model.records import Session
from dovecote.model.serving import Sharing
from dovecote.model.sizes import TIERS, NetworkPolicy
from dovecote.model.states import SessionState
from tests.unit.control_world import START, World

pytestmark = pytest.mark.anyio
S = SessionState
MINUTE = timedelta(minutes=1)


async def _opened(world: World, **wishes: object) -> Session:
    return await world.sessions.create(world.tenant, **wishes)  # type: ignore[arg-type]


async def _after(world: World, session: Session, seconds: float) -> SessionState:
    world.clock.advance(seconds)
    await world.tick()
    return (await world.sessions.get(world.tenant, session.id)).state


async def _lease_over(world: World, session: Session, ago: float) -> None:
    """Time passes for the lease: its end is a moment of the calendar, which no test waits for."""
    live = world.sessions.live.get(session.id)
    assert live is not None
    live.session = await world.rewrite(session, awake_until=datetime.now(UTC) - timedelta(seconds=ago))


async def _reasons(world: World, session: Session) -> list[str]:
    return [str(each.what) for each in (await world.sessions.activity(world.tenant, session.id)).reasons]


# -- leases


async def test_a_lease_keeps_it_awake_and_its_end_counts_as_use(world: World) -> None:
    session = await _opened(world)
    await world.sessions.lease(world.tenant, session.id, 20 * MINUTE)
    assert await _after(world, session, 1000) is S.READY
    assert await _reasons(world, session) == ["lease"]
    await _lease_over(world, session, ago=5)
    assert await _after(world, session, 1) is S.READY
    await _lease_over(world, session, ago=11)
    assert await _after(world, session, 1) is S.FROZEN
    await _lease_over(world, session, ago=301)
    assert await _after(world, session, 300) is S.PARKED


async def test_a_lease_wakes_what_rests(world: World) -> None:
    session = await _opened(world)
    await world.sessions.park(world.tenant, session.id, reason="idle")
    leased = await world.sessions.lease(world.tenant, session.id, MINUTE)
    assert leased.state is S.READY
    await world.sessions.freeze(world.tenant, session.id)
    assert (await world.sessions.lease(world.tenant, session.id, MINUTE)).state is S.READY


async def test_a_lease_that_is_released_counts_no_more(world: World) -> None:
    session = await _opened(world)
    await world.sessions.lease(world.tenant, session.id, MINUTE)
    released = await world.sessions.release(world.tenant, session.id)
    assert released.awake_until is not None
    assert released.awake_until <= datetime.now(UTC)
    assert "lease" not in await _reasons(world, session)
    assert await world.sessions.release(world.tenant, session.id) == released


@pytest.mark.parametrize("tier", TIERS)
async def test_a_lease_has_the_bound_of_the_tier(world: World, tier: str) -> None:
    session = await _opened(world, tier=tier)
    await world.sessions.lease(world.tenant, session.id, TIERS[tier].lease)
    with pytest.raises(Invalid) as caught:
        await world.sessions.lease(world.tenant, session.id, TIERS[tier].lease + timedelta(seconds=1))
    assert caught.value.code == "lease_too_long"


async def test_a_lease_does_not_outlive_the_session(world: World) -> None:
    session = await _opened(world, ttl=timedelta(microseconds=1), wake=False)
    with pytest.raises(Gone):
        await world.sessions.lease(world.tenant, session.id, MINUTE)


async def test_a_pause_that_only_its_owner_ends_is_not_ended_by_a_lease(world: World) -> None:
    session = await _opened(world, resumes_on_use=False)
    await world.sessions.pause(world.tenant, session.id, hibernate=False)
    with pytest.raises(Conflict):
        await world.sessions.lease(world.tenant, session.id, MINUTE)


# -- what keeps it awake


async def test_a_request_that_takes_its_time_keeps_it_awake(world: World) -> None:
    session = await _opened(world)
    instance = world.host.of(session.id)
    assert instance is not None
    world.host.flows[instance.id] = 2
    assert await _after(world, session, 1000) is S.READY
    activity = await world.sessions.activity(world.tenant, session.id)
    assert [(str(each.what), each.count) for each in activity.reasons] == [("requests", 2)]
    assert activity.next == []
    world.host.flows.clear()
    assert await _after(world, session, 0) is S.PARKED


async def test_a_command_is_named_by_its_words(world: World) -> None:
    session = await _opened(world)
    instance = world.host.of(session.id)
    assert instance is not None
    await world.host.guest(instance.id).start(Command(argv=("npm", "run", "dev"), user="user"))
    instance.files["/proc/1001/cmdline"] = b"npm\0run\0dev\x1b[2J\0"
    [reason] = (await world.sessions.activity(world.tenant, session.id)).reasons
    assert reason.text == "`npm run dev [2J` runs"
    assert reason.since is not None
    assert await _after(world, session, 1000) is S.READY


async def test_a_call_that_is_inside_is_a_reason(world: World) -> None:
    session = await _opened(world)
    async with world.sessions.use(world.tenant, session.id):
        assert await _reasons(world, session) == ["calls"]
        assert await _after(world, session, 1000) is S.READY


@pytest.mark.parametrize(("counts", "then"), [(True, S.READY), (False, S.PARKED)])
async def test_traffic_with_the_outside_counts_by_policy(world: World, counts: bool, then: SessionState) -> None:
    session = await _opened(world, network=NetworkPolicy(outbound_keeps_awake=counts))
    instance = world.host.of(session.id)
    assert instance is not None
    world.host.sent_at[instance.id] = world.clock.now + 1000
    assert await _after(world, session, 1000) is then
    assert await _reasons(world, session) == (["outbound"] if counts else [])


async def test_each_stage_says_why_and_what_comes(world: World) -> None:
    session = await _opened(world)
    activity = await world.sessions.activity(world.tenant, session.id)
    assert [str(each.what) for each in activity.reasons] == ["used"]
    assert [each.move for each in activity.next] == ["freeze", "park"]
    await _after(world, session, 11)
    activity = await world.sessions.activity(world.tenant, session.id)
    assert (activity.state, activity.why) == (S.FROZEN, "frozen: quiet")
    assert [each.move for each in activity.next] == ["park"]
    await _after(world, session, 300)
    activity = await world.sessions.activity(world.tenant, session.id)
    assert activity.why == "parked: idle for 311 s"
    assert activity.next == []
    await world.sessions.delete(world.tenant, session.id)
    activity = await world.sessions.activity(world.tenant, session.id)
    assert activity.why == "ended: deleted"
    assert [move.state for move in activity.past.moves][-4:] == ["frozen", "parking", "parked", "ended"]


# -- tiers


async def test_a_users_tier_changes_his_sessions_at_once(world: World) -> None:
    follows, own = await _opened(world, user="ada"), await _opened(world, user="ada", tier="svip")
    other = await _opened(world, user="bob")
    await world.sessions.set_user_tier(world.tenant, "ada", "vip")
    tiers = [(await world.sessions.get(world.tenant, each.id)).tier for each in (follows, own, other)]
    assert tiers == ["vip", "svip", "default"]
    assert (await _opened(world, user="ada")).tier == "vip"
    instance = world.host.of(follows.id)
    assert instance is not None
    assert instance.claim.recovery_point == TIERS["vip"].recovery_point.total_seconds()
    assert await _after(world, follows, 301) is S.FROZEN  # and not parked


async def test_a_user_who_was_never_seen_gets_his_tier(world: World) -> None:
    assert (await world.sessions.set_user_tier(world.tenant, "eve", "regular")).tier == "regular"
    assert (await world.sessions.set_user_tier(world.tenant, "eve", "vip")).tier == "vip"


async def test_a_tier_of_another_tenants_user_is_another_matter(world: World) -> None:
    mine = await _opened(world, user="ada")
    await world.sessions.set_user_tier(world.other, "ada", "vip")
    assert (await world.sessions.get(world.tenant, mine.id)).tier == "default"


async def test_an_open_session_of_a_function_is_told_of_too(world: World) -> None:
    await world.functions.create(world.tenant, "served", start=START)
    routed = await world.call("served", user="ada", key="k")
    assert routed.session is not None
    assert await _reasons(world, routed.session) == ["used"]
    await asyncio.sleep(0)


# -- the decisions

QUIETS = st.builds(
    Quiet,
    quiet_for=st.floats(0, 1e6),
    busy=st.integers(0, 2),
    commands=st.integers(0, 2),
    requests=st.integers(0, 2),
    sent_ago=st.none() | st.floats(0, 1e6),
    leased_for=st.floats(0, 1e5),
    expires_in=st.none() | st.floats(-10, 1e6),
    pauses_in=st.none() | st.floats(-10, 1e6),
)
STATES = st.sampled_from([S.READY, S.FROZEN])
TIMES = st.floats(0.1, 1e5)


@given(STATES, QUIETS, TIMES, TIMES)
def test_what_has_a_reason_to_be_awake_neither_freezes_nor_parks(
    state: SessionState, quiet: Quiet, quiet_after: float, idle_after: float
) -> None:
    move = next_move(state, quiet, quiet_after=quiet_after, idle_after=idle_after)
    if awake_by(state, quiet):
        assert move not in (Move.FREEZE, Move.PARK)
    elif move is Move.STAY:
        assert quiet.unused_for < idle_after


@given(STATES, QUIETS, TIMES, TIMES)
def test_what_is_told_to_come_agrees_with_what_is_decided(
    state: SessionState, quiet: Quiet, quiet_after: float, idle_after: float
) -> None:
    times = {"quiet_after": quiet_after, "idle_after": idle_after}
    due = [move for move, seconds in to_come(state, quiet, **times) if seconds <= 0]
    decided = next_move(state, quiet, **times)
    if decided is Move.STAY:
        assert due == []
    else:
        assert decided in due


async def test_a_session_with_a_seat_says_how_long_it_keeps_that(world: World) -> None:
    await world.functions.create(world.tenant, "chat", start=START, sharing=Sharing(sessions=2))
    session = (await world.call("chat", user="ann", key="a")).session
    assert session is not None
    world.clock.advance(100)
    await world.call("chat", user="ann", key="a")
    world.clock.advance(20)
    told = await world.sessions.activity(world.tenant, session.id)
    assert told.unused_for is not None
    assert round(told.unused_for.total_seconds()) == 20
    assert [each.move for each in told.next] == ["park"]
    assert told.why == "awake, and quiet"
    parked = await world.sessions.park(world.tenant, session.id)
    assert round((datetime.now(UTC) - parked.last_active_at).total_seconds()) in (20, 21)
