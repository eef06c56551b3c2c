"""Memory that tiers promise: who is let in, who makes room, and what a broken promise leaves."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from dovecote.control.sessions.memory import STARTING, Held, make_room, outstanding, relieve
from dovecote.errors import NoCapacity
from dovecote.model.records import Session, User
from dovecote.model.serving import Sharing
from dovecote.model.sizes import GIB, MIB, SPECS
from dovecote.model.states import Park, SessionState
from tests.unit.control_world import START, World

pytestmark = pytest.mark.anyio
S = SessionState
LIMIT = SPECS["small"].limits.memory_bytes  # of a sandbox, when nobody says otherwise


@pytest.fixture
def world(world: World) -> World:
    world.host.reserve = 1 * GIB
    return world


async def _opened(world: World, tier: str, *, uses: int = 0, **wishes: object) -> Session:
    session = await world.sessions.create(world.tenant, tier=tier, **wishes)  # type: ignore[arg-type]
    world.host.memory_used[session.id] = uses
    return session


async def _quiet(world: World) -> None:
    """All that are there are frozen, and measured."""
    world.clock.advance(11)
    await world.tick()
    world.clock.advance(10)
    await world.tick()


def _free(world: World, free: int) -> None:
    """So much is left beside the reserve, with all that is used now."""
    used = sum(world.host.memory_used[i.claim.owner] for i in world.host.instances.values())
    world.host.total_memory = world.host.reserve + free + used


async def _state(world: World, session: Session) -> SessionState:
    return (await world.record(session)).state


def _breaches(cause: str) -> float:
    return REGISTRY.get_sample_value("dovecote_promise_breaches_total", {"cause": cause}) or 0.0


async def test_a_promise_is_not_given_twice(world: World) -> None:
    _free(world, LIMIT // 4 * 3 + STARTING)
    for _ in range(3):
        await _opened(world, "vip")
    with pytest.raises(NoCapacity) as caught:
        await _opened(world, "vip")
    assert (caught.value.code, caught.value.retry_after) == ("no_memory", 5.0)
    await _opened(world, "default")  # there is room for one that is promised nothing
    with pytest.raises(NoCapacity):
        await _opened(world, "vip")


async def test_hundred_at_once_do_not_break_it_either(world: World) -> None:
    _free(world, LIMIT // 4 * 3)
    made = await asyncio.gather(*(_opened(world, "vip") for _ in range(100)), return_exceptions=True)
    assert sum(isinstance(each, Session) for each in made) == 3
    assert len(world.host.instances) == 3


async def test_strict_accounting_keeps_the_whole_limit(world: World) -> None:
    world.sessions.admitting._overcommit = 1.0
    _free(world, 2 * LIMIT + STARTING)
    for _ in range(2):
        await _opened(world, "vip")
    with pytest.raises(NoCapacity):
        await _opened(world, "vip")


async def test_a_refused_waking_leaves_the_session_as_it_was(world: World) -> None:
    session = await _opened(world, "vip")
    await world.sessions.park(world.tenant, session.id)
    before = await world.record(session)
    _free(world, 0)
    with pytest.raises(NoCapacity):
        await world.sessions.wake(world.tenant, session.id)
    assert await world.record(session) == before


async def test_best_effort_makes_room_longest_unused_first_and_is_saved(world: World) -> None:
    old = await _opened(world, "default", uses=300 * MIB)
    await world.write(old, b"kept")
    world.clock.advance(5)
    new = await _opened(world, "default", uses=300 * MIB)
    await _quiet(world)
    _free(world, 0)
    vip = await _opened(world, "vip")
    assert await _state(world, vip) is S.READY
    assert await _state(world, old) is S.PARKED
    assert await _state(world, new) is S.FROZEN
    assert "its memory was needed" in (await world.record(old)).reason
    _free(world, GIB)
    assert await world.read(old) == b"kept"


async def test_what_keeps_its_processes_is_hibernated_for_that(world: World) -> None:
    session = await _opened(world, "default", uses=300 * MIB, park=Park.MEMORY, level="runsc")
    await _quiet(world)
    _free(world, 0)
    await _opened(world, "vip")
    assert (await world.record(session)).is_hibernated


async def test_who_works_or_was_promised_makes_no_room(world: World) -> None:
    busy = await _opened(world, "default", uses=900 * MIB)
    promised = await _opened(world, "regular", uses=900 * MIB)
    await _quiet(world)
    _free(world, 0)
    async with world.sessions.use(world.tenant, busy.id):
        with pytest.raises(NoCapacity):
            await _opened(world, "vip")
    assert await _state(world, promised) is S.FROZEN
    assert _breaches("parked") == 0


async def test_nobody_is_parked_where_that_would_not_help(world: World) -> None:
    session = await _opened(world, "default", uses=10 * MIB)
    await _quiet(world)
    _free(world, 0)
    with pytest.raises(NoCapacity):
        await _opened(world, "vip")
    assert await _state(world, session) is S.FROZEN


async def test_a_machine_that_runs_out_of_memory_parks_best_effort(world: World) -> None:
    best, promised = await _opened(world, "default", uses=500 * MIB), await _opened(world, "vip", uses=500 * MIB)
    await _quiet(world)
    _free(world, -100 * MIB)
    await world.tick()
    assert await _state(world, best) is S.PARKED
    assert await _state(world, promised) is S.FROZEN
    assert (await world.sessions.activity(world.tenant, promised.id)).past.breaches == 0


async def test_a_leased_session_makes_no_room(world: World) -> None:
    session = await _opened(world, "default", uses=500 * MIB)
    await world.sessions.lease(world.tenant, session.id, timedelta(minutes=5))
    await _quiet(world)
    _free(world, -100 * MIB)
    await world.tick()
    assert await _state(world, session) is S.READY


async def test_a_promise_that_had_to_be_broken_is_counted_and_told(world: World) -> None:
    before = _breaches("parked")
    session = await _opened(world, "vip", uses=900 * MIB)
    await _quiet(world)
    _free(world, -900 * MIB)
    await world.tick()
    assert await _state(world, session) is S.PARKED
    assert _breaches("parked") == before + 1
    past = (await world.sessions.activity(world.tenant, session.id)).past
    assert past.breaches == 1
    assert past.last_breach is not None
    assert "before its promised time" in past.last_breach.reason


async def test_making_room_that_fails_is_heard_of(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def park(*_: object, **__: object) -> Session:
        raise RuntimeError("nobody thought of this")

    session = await _opened(world, "default", uses=500 * MIB)
    await _quiet(world)
    world.sessions.admitting.join(park)
    _free(world, -100 * MIB)
    await world.tick()
    assert f"parking {session.id} failed" in caplog.text


@pytest.mark.parametrize(("tier", "told"), [("vip", 1), ("default", 0)])
async def test_a_killed_instance_breaks_a_promise(world: World, tier: str, told: int) -> None:
    before = _breaches("killed")
    session = await _opened(world, tier)
    await world.host.die(session.id)
    await world.becomes(session, S.LOST)
    assert _breaches("killed") == before + told
    assert (await world.sessions.activity(world.tenant, session.id)).past.breaches == told


async def test_a_tier_that_is_taken_away_takes_its_promise_along(world: World) -> None:
    session = await _opened(world, "vip", uses=500 * MIB)
    await world.sessions.update(world.tenant, session.id, tier="default")
    await _quiet(world)
    _free(world, -100 * MIB)
    await world.tick()
    assert await _state(world, session) is S.PARKED


HELD = st.lists(
    st.builds(
        Held,
        session_id=st.uuids().map(str),
        limit_bytes=st.integers(STARTING, 8 * GIB),
        used_bytes=st.integers(0, 8 * GIB),
        is_promised=st.booleans(),
        unused_for=st.floats(0, 1e6),
        may_rest=st.booleans(),
    ),
    max_size=30,
)


@given(st.integers(0, 8 * GIB), st.integers(-8 * GIB, 32 * GIB), HELD, st.floats(1, 100))
def test_nobody_is_let_in_at_the_cost_of_a_promise(needed: int, free: int, held: list[Held], overcommit: float) -> None:
    room = make_room(needed, free, held, overcommit=overcommit)
    promised = sum(outstanding(each, overcommit) for each in held)
    if room.is_enough:
        assert free + sum(each.used_bytes for each in room.park) - promised >= needed
    else:
        assert room.park == ()
    assert all(each.may_rest and not each.is_promised for each in room.park)
    unused = [each.unused_for for each in room.park]
    assert unused == sorted(unused, reverse=True)


@given(st.integers(-8 * GIB, 32 * GIB), st.integers(-8 * GIB, 0), HELD, st.floats(1, 100))
def test_promises_are_the_last_to_be_broken(free: int, critical: int, held: list[Held], overcommit: float) -> None:
    chosen = relieve(free, critical, held, overcommit=overcommit)
    assert all(each.may_rest for each in chosen)
    if any(each.is_promised for each in chosen):
        assert free < critical
        assert not any(each.may_rest and not each.is_promised for each in held)


@pytest.mark.parametrize(("tier", "told"), [("vip", 1), ("default", 0)])
async def test_a_killed_instance_breaks_the_promise_of_each_who_sat_there(world: World, tier: str, told: int) -> None:
    before = _breaches("killed")
    await world.functions.create(world.tenant, "chat", start=START, sharing=Sharing(sessions=2))
    session = await world.sessions.create(world.tenant, function="chat", key="a", user="ann", tier=tier, wake=False)
    await world.call("chat", user="ann", key="a")
    await world.host.die(next(iter(world.host.instances.values())).claim.owner)
    assert (await world.becomes(session, S.LOST)).past.breaches == told
    assert _breaches("killed") == before + told


async def test_a_live_session_is_promised_what_there_is_memory_for(world: World) -> None:
    _free(world, LIMIT // 4 * 2)
    sessions = [await _opened(world, "default") for _ in range(3)]
    raised = await asyncio.gather(
        *(world.sessions.update(world.tenant, each.id, tier="vip") for each in sessions), return_exceptions=True
    )
    refused = [each for each in raised if isinstance(each, NoCapacity)]
    assert [each.code for each in refused] == ["no_memory"]
    tiers = [(await world.record(each)).tier for each in sessions]
    assert sorted(tiers) == ["default", "vip", "vip"]
    [left] = [each for each, tier in zip(sessions, tiers, strict=True) if tier == "default"]
    assert (await world.sessions.update(world.tenant, left.id, ttl=timedelta(hours=1))).tier == "default"
    assert (await world.sessions.update(world.tenant, left.id, tier="default")).tier == "default"
    [promised, _] = [each for each, tier in zip(sessions, tiers, strict=True) if tier == "vip"]
    assert (await world.sessions.update(world.tenant, promised.id, tier="svip")).tier == "svip"  # promised already


async def test_others_make_room_for_a_session_that_is_promised_more(world: World) -> None:
    quiet = await _opened(world, "default", uses=LIMIT // 4)
    raised = await _opened(world, "default")
    await _quiet(world)
    await world.sessions.wake(world.tenant, raised.id)
    _free(world, LIMIT // 8)
    await world.sessions.update(world.tenant, raised.id, tier="vip")
    assert await _state(world, quiet) is S.PARKED
    assert await _state(world, raised) is S.READY
    assert (await world.record(raised)).tier == "vip"


async def test_a_user_is_promised_more_for_all_his_sessions_that_fit_and_a_repeat_raises_the_rest(world: World) -> None:
    _free(world, LIMIT // 4)
    fits = [await _opened(world, "default", user="ada") for _ in range(2)]
    rests = await world.sessions.create(world.tenant, user="ada", wake=False)
    with pytest.raises(NoCapacity):
        await world.sessions.set_user_tier(world.tenant, "ada", "vip")
    assert sorted([(await world.record(each)).tier for each in (*fits, rests)]) == ["default", "vip", "vip"]
    assert (await world.record(rests)).tier == "vip"  # it came after the one that does not fit
    _free(world, LIMIT)
    assert (await world.sessions.set_user_tier(world.tenant, "ada", "vip")).tier == "vip"
    assert {(await world.record(each)).tier for each in (*fits, rests)} == {"vip"}


async def test_a_session_opened_while_its_user_is_promised_more_is_raised_by_a_repeat(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is there when all others have followed already, and does not fit."""
    made: list[Session] = []
    store = world.tenancy.set_tier

    async def set_tier(tenant_id: str, name: str, tier: str) -> User:
        if not made:
            made.append(await _opened(world, "default", user="ada"))
            _free(world, 0)
        return await store(tenant_id, name, tier)

    monkeypatch.setattr(world.tenancy, "set_tier", set_tier)
    await world.tenancy.user(world.tenant, "ada")
    with pytest.raises(NoCapacity):
        await world.sessions.set_user_tier(world.tenant, "ada", "vip")
    assert (await world.record(made[0])).tier == "default"
    _free(world, LIMIT)
    await world.sessions.set_user_tier(world.tenant, "ada", "vip")
    assert (await world.record(made[0])).tier == "vip"
