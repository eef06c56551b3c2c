"""Keeping: what becomes of sessions after a restart, and as time goes by."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from dovecote.errors import Failed, NotFound
from dovecote.model.records import Session
from dovecote.model.states import LIVE_SESSION, SessionState
from tests.unit.control_world import AT_ONCE, START, MakeWorld, World, until
from tests.unit.failing_hosts import FailsSave, FreezeFails
from tests.unit.memory_host import Clock, MemoryHost
from tests.unit.memory_instance import Left

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("lost_sessions_are_tried_at_once")]

S = SessionState


# -- after a restart


async def _before_restart(world: World, state: SessionState, there: str, *, is_log_newer: bool) -> Session:
    """A session with one recorded save, whose record and host say different things."""
    session = await world.sessions.create(world.tenant)
    await world.write(session, b"recorded")
    await world.sessions.save(world.tenant, session.id)
    instance = world.host.of(session.id)
    assert instance is not None
    if is_log_newer:
        await world.write(session, b"logged")
        await world.host.save(instance.id)
    if there != "neither":
        await world.write(session, b"unsaved")
    if there == "frozen":
        await world.host.freeze(instance.id)
    elif there in ("leftover", "neither"):
        await world.host.die(session.id, is_told=False)
    if there == "neither":
        world.host.left.clear()
    lives = state in (S.READY, S.FROZEN, S.PARKING)
    return await world.rewrite(session, state=state, instance_id=instance.id if lives else None)


def _expected(there: str) -> SessionState:
    return {"observed": S.READY, "frozen": S.FROZEN, "leftover": S.LOST, "neither": S.PARKED}[there]


@pytest.mark.parametrize("is_log_newer", [False, True], ids=["log-known", "log-newer"])
@pytest.mark.parametrize("there", ["observed", "frozen", "leftover", "neither"])
@pytest.mark.parametrize("state", sorted(LIVE_SESSION))
async def test_what_lives_by_the_books_becomes_what_the_host_has(
    world: World, state: SessionState, there: str, is_log_newer: bool
) -> None:
    session = await _before_restart(world, state, there, is_log_newer=is_log_newer)
    await world.restart()
    record = await world.record(session)
    assert record.state is _expected(there)
    assert (record.instance_id is not None) == (there in ("observed", "frozen"))
    newest = b"unsaved" if there != "neither" else b"logged" if is_log_newer else b"recorded"
    assert await world.read(session) == newest
    assert len(world.host.instances) == 1


RESTING = [
    (state, there, is_log_newer)
    for state in (S.LOST, S.DAMAGED, S.PARKED)
    for there in ("leftover", "neither")
    for is_log_newer in (False, True)
    # Both have tests of their own below.
    if (state, there, is_log_newer) != (S.PARKED, "leftover", False) and (state, there) != (S.LOST, "neither")
]


@pytest.mark.parametrize(("state", "there", "is_log_newer"), RESTING)
async def test_what_rests_by_the_books_stays_and_keeps_the_newest_files_known(
    world: World, state: SessionState, there: str, is_log_newer: bool
) -> None:
    session = await _before_restart(world, state, there, is_log_newer=is_log_newer)
    await world.restart()
    assert (await world.record(session)).state is state
    if there == "leftover":
        assert await world.read(session) == b"unsaved"


async def test_files_of_a_parking_that_was_recorded_are_discarded(world: World) -> None:
    session = await world.sessions.create(world.tenant)
    await world.write(session, b"mine")
    world.host.refuse("discard", Failed("cut short", code="internal"), times=1)
    with pytest.raises(Failed):
        await world.sessions.park(world.tenant, session.id)
    assert session.id in world.host.left
    await world.restart()
    assert (await world.record(session)).state is S.PARKED
    assert not world.host.left
    assert await world.read(session) == b"mine"


async def test_a_first_start_that_was_cut_short_is_new_again(world: World) -> None:
    session = await world.sessions.create(world.tenant, wake=False)
    await world.rewrite(session, state=S.STARTING, epoch=1)
    await world.restart()
    assert (await world.record(session)).state is S.NEW
    assert (await world.sessions.wake(world.tenant, session.id)).epoch == 2


async def test_a_start_that_was_cut_short_finds_the_only_save_in_the_log(world: World) -> None:
    session = await world.sessions.create(world.tenant)
    await world.write(session, b"logged")
    await world.host.save("ins_1")
    await world.host.die(session.id, is_told=False)
    world.host.left.clear()
    await world.rewrite(session, state=S.STARTING, instance_id=None)
    await world.restart()
    assert await world.read(session) == b"logged"


async def test_a_lost_session_finds_the_newest_save_in_the_log(world: World) -> None:
    session = await _before_restart(world, S.LOST, "neither", is_log_newer=True)
    await world.restart()
    assert await world.read(session) == b"logged"


async def test_a_lost_session_whose_instance_runs_keeps_its_files(on: MakeWorld) -> None:
    async with on(MemoryHost(Clock())) as world:
        session = await world.sessions.create(world.tenant, idle_after=AT_ONCE)
        await world.write(session, b"mine")
        await world.rewrite(session, state=S.LOST, instance_id=None)
        await world.restart()
        await world.tick()
        await world.restart()
        assert await world.read(session) == b"mine"


async def test_files_that_a_host_finds_again_later_are_not_discarded(world: World) -> None:
    session = await world.sessions.create(world.tenant)
    await world.write(session, b"mine")
    await world.host.die(session.id)
    await world.becomes(session, S.LOST)
    being_buried = dict(world.host.left)
    world.host.left.clear()
    await world.sessions.park(world.tenant, session.id)
    world.host.left.update(being_buried)
    await world.restart()
    assert await world.read(session) == b"mine"


@pytest.mark.parametrize("state", [S.ENDED, S.PARKED])
async def test_orphans_go_with_their_session_and_not_before(world: World, state: SessionState) -> None:
    """Its end was recorded, and then the server was killed."""
    session = await world.sessions.create(world.tenant)
    await world.sessions.park(world.tenant, session.id)
    world.host.orphans[session.id] = [Left("disk", {"a": b"of another life"}, 1, 1)]
    await world.rewrite(session, state=state, instance_id=None)
    await world.restart()
    assert (session.id in world.host.orphans) is (state is S.PARKED)


@pytest.mark.parametrize("state", [S.ENDED, S.NEW, None], ids=["ended", "new", "unknown"])
@pytest.mark.parametrize("there", ["observed", "leftover"])
async def test_strays_are_removed(world: World, state: SessionState | None, there: str) -> None:
    session = await world.sessions.create(world.tenant)
    kept = await world.sessions.create(world.tenant)
    if there == "leftover":
        await world.host.die(session.id, is_told=False)
    if state is None:
        await world.store.tenant(world.tenant).sessions.delete(session.id)
    else:
        await world.rewrite(session, state=state, instance_id=None)
    await world.restart()
    assert world.host.of(session.id) is None
    assert session.id not in world.host.left
    assert world.host.of(kept.id) is not None


@pytest.mark.parametrize("error", [NotFound("gone", code="no_such_instance"), Failed("busy")], ids=["gone", "busy"])
async def test_one_stray_that_cannot_be_stopped_keeps_nothing_from_starting(on: MakeWorld, error: Exception) -> None:
    async with on(MemoryHost(Clock())) as world:
        session = await world.sessions.create(world.tenant)
        await world.rewrite(session, state=S.ENDED, instance_id=None)
        world.host.refuse("stop", error, times=1)
        await world.restart()


async def test_one_session_that_cannot_be_taken_over_keeps_none_of_the_others(world: World) -> None:
    broken = await world.sessions.create(world.tenant)
    good = await world.sessions.create(world.tenant)
    await world.rewrite(broken, revision_id="rev_gone")
    await world.restart()
    assert world.sessions.live.get(good.id) is not None
    assert world.sessions.live.get(broken.id) is None
    assert world.host.of(broken.id) is not None


async def test_a_session_that_was_taken_over_has_address_server_and_further_life(world: World) -> None:
    session = await world.sessions.create(world.tenant, wake=False)
    await world.sessions.set_start(world.tenant, session.id, START)
    address = await world.routing.box(session.slug, START.port)
    await world.restart()
    assert await world.routing.box(session.slug, START.port) == address
    assert len(world.host.starts()) == 1
    await world.host.die(session.id)
    await world.becomes(session, S.LOST)


# -- as time goes by


async def test_quiet_freezes_and_idle_parks(world: World) -> None:
    session = await world.sessions.create(
        world.tenant, quiet_after=timedelta(seconds=10), idle_after=timedelta(seconds=300)
    )
    await world.write(session, b"mine")
    seen = []
    for seconds in (5, 10, 100, 300):
        world.clock.advance(seconds)
        await world.tick()
        seen.append((await world.record(session)).state)
    assert seen == [S.READY, S.FROZEN, S.FROZEN, S.PARKED]
    assert "idle for" in (await world.record(session)).reason
    assert await world.read(session) == b"mine"


async def test_times_changed_by_its_owner_count_at_once(world: World) -> None:
    session = await world.sessions.create(world.tenant)
    world.clock.advance(5)
    await world.tick()
    assert (await world.record(session)).state is S.READY
    await world.sessions.update(world.tenant, session.id, quiet_after=timedelta(seconds=1))
    await world.tick()
    assert (await world.record(session)).state is S.FROZEN
    await world.sessions.update(world.tenant, session.id, idle_after=timedelta(seconds=2))
    await world.tick()
    assert (await world.record(session)).state is S.PARKED


async def test_a_detached_command_keeps_it_awake_until_it_ends(world: World) -> None:
    session = await world.sessions.create(world.tenant)
    started = await world.sandboxes.start(world.tenant, session.id, argv=["make"])
    world.clock.advance(1000)
    await world.tick()
    assert (await world.record(session)).state is S.READY
    await world.sandboxes.signal(world.tenant, session.id, started.number, 9)
    world.clock.advance(1000)
    await world.tick()
    assert (await world.record(session)).state is S.PARKED


async def test_a_call_that_lasts_keeps_it_awake(world: World) -> None:
    session = await world.sessions.create(world.tenant)
    async with world.sessions.use(world.tenant, session.id):
        world.clock.advance(1000)
        await world.tick()
        assert (await world.record(session)).state is S.READY
    await world.tick()
    assert (await world.record(session)).state is S.READY


async def test_nobody_stays_awake_by_never_answering(world: World) -> None:
    session = await world.sessions.create(world.tenant)
    world.host.refuse("list_commands", Failed("no answer", code="guest_unreachable"))
    world.clock.advance(1000)
    await world.tick()
    assert (await world.record(session)).state is S.PARKED


async def test_a_freezer_that_fails_does_not_keep_it_from_parking(on: MakeWorld) -> None:
    async with on(FreezeFails(Clock())) as world:
        session = await world.sessions.create(world.tenant)
        world.clock.advance(100)
        await world.tick()
        assert (await world.sessions.get(world.tenant, session.id)).state is S.READY
        world.clock.advance(1000)
        await world.tick()
        assert (await world.record(session)).state is S.PARKED


async def test_a_session_whose_save_fails_is_woken_with_all_its_files(on: MakeWorld) -> None:
    host = FailsSave(Clock())
    async with on(host) as world:
        session = await world.sessions.create(world.tenant)
        await world.write(session, b"mine")
        world.clock.advance(1000)
        await world.tick()
        assert (await world.record(session)).state is S.LOST
        assert await world.read(session) == b"mine"
        host.mend_store()
        world.clock.advance(1000)
        await world.tick()
        assert (await world.record(session)).state is S.PARKED
        assert await world.read(session) == b"mine"


async def test_one_move_that_fails_holds_up_no_other(world: World) -> None:
    one, two = [await world.sessions.create(world.tenant) for _ in range(2)]
    world.host.refuse("save_leftover", Failed("no", code="internal"), times=1)
    world.clock.advance(1000)
    await world.tick()
    assert sorted([(await world.record(one)).state, (await world.record(two)).state]) == [S.LOST, S.PARKED]


async def test_an_instance_that_vanished_unseen_is_noted_by_a_tick(world: World) -> None:
    session = await world.sessions.create(world.tenant)
    await world.host.die(session.id, is_told=False)
    await world.tick()
    assert "does not know of it" in (await world.becomes(session, S.LOST)).reason


async def test_a_session_of_an_ended_time_ends_although_it_works(world: World) -> None:
    session = await world.sessions.create(world.tenant)
    await world.sandboxes.start(world.tenant, session.id, argv=["make"])
    await world.sessions.update(world.tenant, session.id, ttl=AT_ONCE)
    await world.tick()
    assert (await world.record(session)).state is S.ENDED
    assert not world.host.instances


async def test_a_session_that_was_given_more_time_is_not_ended_by_a_decision_from_before(world: World) -> None:
    session = await world.sessions.create(world.tenant)
    await world.sessions.update(world.tenant, session.id, ttl=AT_ONCE)
    world.host.hold("save")
    saving = asyncio.ensure_future(world.sessions.save(world.tenant, session.id))
    await until(lambda: world.host.held("save") == 1)
    extending = asyncio.ensure_future(world.sessions.update(world.tenant, session.id, ttl=timedelta(days=1)))
    await asyncio.sleep(0)
    await world.keeping.tick()  # its time is over, so it is to end once the lock is free
    await asyncio.sleep(0)
    world.host.let_go("save")
    await asyncio.gather(saving, extending)
    await world.keeping.stop()
    assert (await world.record(session)).state is S.READY


@pytest.mark.parametrize("dies", ["before", "after"])
async def test_a_first_claim_that_control_did_not_hear_of_is_saved_when_idle(world: World, dies: str) -> None:
    session = await world.sessions.create(world.tenant)
    await world.write(session, b"mine")
    await world.rewrite(session, state=S.STARTING, instance_id=None, host_id=None)
    if dies == "before":
        await world.host.die(session.id, is_told=False)
    await world.restart()
    if dies == "after":
        await world.host.die(session.id)
        await world.becomes(session, S.LOST)
    parked = await world.sessions.park(world.tenant, session.id)
    assert (parked.state, world.host.left) == (S.PARKED, {})
    assert await world.read(session) == b"mine"


async def test_a_session_that_another_server_took_over_keeps_no_instance_here(world: World) -> None:
    """Also when nothing inside writes, so that no save finds out."""
    moved, changed = [
        await world.sessions.create(world.tenant, quiet_after=timedelta(seconds=10), idle_after=timedelta(seconds=300))
        for _ in range(2)
    ]
    await world.rewrite(moved, instance_id="ins_elsewhere", epoch=moved.epoch + 1)
    await world.rewrite(changed, reason="said by another server")  # still the same instance
    world.clock.advance(20)
    await world.tick()
    assert world.host.of(moved.id) is None
    assert world.host.of(changed.id) is not None
    assert (await world.record(moved)).instance_id == "ins_elsewhere"
    world.clock.advance(300)
    await world.tick()
    assert (await world.record(changed)).state is S.PARKED
