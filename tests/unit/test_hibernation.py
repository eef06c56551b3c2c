"""Sessions whose processes are kept with their files: paused, idle, forked, and met by crashes."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from dovecote.control.fleet import Command
from dovecote.control.references import living_trees
from dovecote.control.snapshots import Snapshots
from dovecote.errors import Conflict, Failed, StorageFailed, Unsupported
from dovecote.model.records import Session
from dovecote.model.states import InstanceState, Park, SessionState
from tests.unit.control_world import World

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("lost_sessions_are_tried_at_once")]

S = SessionState


async def counting(world: World, **wishes: object) -> Session:
    """One with a command that runs."""
    session = await world.sessions.create(world.tenant, level="runsc", **wishes)  # type: ignore[arg-type]
    instance = world.host.of(session.id)
    assert instance is not None
    instance.files["log"] = b"1"
    await world.host.guest(instance.id).start(Command(("count",)))
    return session


def running(world: World, session: Session) -> list[str]:
    instance = world.host.of(session.id)
    return [each.command.argv[0] for each in instance.commands if each.is_running] if instance else []


async def test_a_pause_puts_processes_into_the_store_and_waking_goes_on_with_them(world: World) -> None:
    session = await counting(world)
    paused = await world.sessions.pause(world.tenant, session.id)
    assert (paused.state, paused.is_paused, paused.is_hibernated) == (S.PARKED, True, True)
    assert world.host.of(session.id) is None
    assert world.host.left == {}
    living, _ = await living_trees(world.store)
    assert {paused.tree, paused.memory} <= living
    woken = await world.sessions.wake(world.tenant, session.id)
    assert (woken.state, woken.memory, woken.is_paused) == (S.READY, None, False)
    assert woken.reason == "its processes go on where they were"
    assert running(world, session) == ["count"]
    await world.sessions.park(world.tenant, session.id)
    assert world.host.claims[-1].memory == paused.memory
    await world.sessions.wake(world.tenant, session.id)
    assert world.host.claims[-1].memory is None
    assert running(world, session) == []


async def test_asked_to_stay_on_the_host_it_is_frozen(world: World) -> None:
    session = await counting(world)
    assert (await world.sessions.pause(world.tenant, session.id, hibernate=False)).state is S.FROZEN
    assert world.host.count("hibernate") == 0


async def test_a_level_that_cannot_is_frozen_or_says_so(world: World) -> None:
    session = await world.sessions.create(world.tenant)
    with pytest.raises(Unsupported) as refused:
        await world.sessions.pause(world.tenant, session.id, hibernate=True)
    assert refused.value.code == "cannot_hibernate"
    assert (await world.sessions.get(world.tenant, session.id)).state is S.READY
    assert (await world.sessions.pause(world.tenant, session.id)).state is S.FROZEN


async def test_one_without_processes_has_none_to_keep(world: World) -> None:
    session = await world.sessions.create(world.tenant, level="runsc", wake=False)
    with pytest.raises(Conflict) as refused:
        await world.sessions.pause(world.tenant, session.id, hibernate=True)
    assert refused.value.code == "no_instance"


@pytest.mark.parametrize("error", [Failed("a file", code="runtime_failed"), StorageFailed("full", code="disk_full")])
async def test_what_cannot_be_saved_goes_on(world: World, error: Exception) -> None:
    session = await counting(world)
    world.host.refuse("hibernate", error)
    with pytest.raises(type(error)):
        await world.sessions.pause(world.tenant, session.id, hibernate=True)
    after = await world.record(session)
    assert (after.state, after.is_paused, after.memory) == (S.READY, False, None)
    assert running(world, session) == ["count"]
    assert (await world.sessions.pause(world.tenant, session.id)).state is S.FROZEN


async def test_one_that_does_not_go_on_is_lost_with_its_files_on_the_host(world: World) -> None:
    session = await counting(world)
    world.host.refuse("hibernate", Failed("no", code="runtime_failed"))
    world.host.refuse("awaken", Failed("it hangs", code="guest_unreachable"))
    with pytest.raises(Failed):
        await world.sessions.pause(world.tenant, session.id, hibernate=True)
    assert (await world.record(session)).state is S.LOST
    world.host.mend("awaken")
    await world.sessions.wake(world.tenant, session.id)
    instance = world.host.of(session.id)
    assert instance is not None
    assert instance.files == {"log": b"1"}


async def test_processes_that_cannot_be_restored_leave_the_files(world: World) -> None:
    session = await counting(world)
    paused = await world.sessions.pause(world.tenant, session.id)
    assert paused.memory is not None
    world.host.spoilt.add(paused.memory)
    woken = await world.sessions.wake(world.tenant, session.id)
    assert (woken.memory, woken.reason) == (None, "its processes could not be restored")
    assert running(world, session) == []


@pytest.mark.parametrize("park", Park)
async def test_idleness_keeps_what_the_session_says(world: World, park: Park) -> None:
    session = await counting(world, park=park, idle_after=timedelta(seconds=60))
    instance = world.host.of(session.id)
    assert instance is not None
    instance.commands[0].command = replace(instance.commands[0].command, tag="start")  # keeps nobody awake
    world.clock.advance(600)
    await world.tick()
    parked = await world.record(session)
    assert parked.state is S.PARKED
    assert parked.is_hibernated is (park is Park.MEMORY)
    await world.sessions.wake(world.tenant, session.id)
    assert (running(world, session) == ["count"]) is (park is Park.MEMORY)


async def test_idleness_whose_memory_cannot_be_kept_keeps_the_files(world: World) -> None:
    session = await counting(world, park=Park.MEMORY, idle_after=timedelta(seconds=60))
    instance = world.host.of(session.id)
    assert instance is not None
    instance.commands.clear()
    world.host.refuse("hibernate", Failed("no", code="runtime_failed"))
    world.clock.advance(600)
    await world.tick()
    parked = await world.record(session)
    assert (parked.state, parked.memory) == (S.PARKED, None)


async def test_files_of_another_time_do_without_the_processes(world: World) -> None:
    """A rewind, to the very same files too."""
    snapshots = Snapshots(world.store, world.sessions, world.functions)
    session = await counting(world)
    await world.sessions.pause(world.tenant, session.id)
    snapshot = await snapshots.create(world.tenant, session.id)
    assert snapshot.memory is None
    rewound = await snapshots.rewind(world.tenant, session.id, snapshot.id)
    assert (rewound.tree, rewound.memory) == (snapshot.tree, None)


async def test_forks_and_snapshots_go_on_with_processes_of_one_that_runs_on(world: World) -> None:
    snapshots = Snapshots(world.store, world.sessions, world.functions)
    session = await counting(world)
    fork = await snapshots.fork(world.tenant, session.id, memory=True)
    plain = await snapshots.fork(world.tenant, session.id)
    kept = await snapshots.create(world.tenant, session.id, memory=True, outlives_session=True)
    assert [running(world, each) for each in (session, fork, plain)] == [["count"], ["count"], []]
    source = await world.record(session)
    assert (source.state, source.memory) == (S.READY, None)
    await world.sessions.delete(world.tenant, session.id)
    living, _ = await living_trees(world.store)
    assert kept.memory in living
    begun = await snapshots.begin(world.tenant, kept.id)
    assert running(world, begun) == ["count"]


async def test_a_hibernated_one_is_forked_without_waking_it(world: World) -> None:
    snapshots = Snapshots(world.store, world.sessions, world.functions)
    session = await counting(world)
    await world.sessions.pause(world.tenant, session.id)
    fork = await snapshots.fork(world.tenant, session.id, memory=True)
    assert running(world, fork) == ["count"]
    assert (await world.record(session)).is_hibernated


async def test_a_crash_before_the_record_leaves_it_running(world: World) -> None:
    session = await counting(world)
    instance = world.host.of(session.id)
    assert instance is not None
    record = await world.record(session)
    await world.store.everyone().sessions.swap(replace(record, state=S.PARKING))
    await world.restart()
    after = await world.record(session)
    assert (after.state, after.instance_id, after.memory) == (S.READY, instance.id, None)
    assert running(world, session) == ["count"]


async def test_a_crash_after_the_record_leaves_it_in_the_store(world: World) -> None:
    """What ran on meanwhile, and what it wrote, nobody has seen."""
    session = await counting(world)
    world.host.refuse("stop", RuntimeError("killed here"), times=1)
    with pytest.raises(RuntimeError):
        await world.sessions.pause(world.tenant, session.id)
    instance = world.host.of(session.id)
    assert instance is not None
    instance.state = InstanceState.READY  # its host let it go on at its own start
    instance.files["log"] = b"2"
    before = await world.record(session)
    assert before.is_hibernated
    await world.restart()
    assert world.host.of(session.id) is None
    assert world.host.left == {}
    after = await world.record(session)
    assert (after.state, after.tree, after.memory) == (S.PARKED, before.tree, before.memory)


async def test_a_crash_while_it_is_restored_leaves_it_in_the_store(world: World) -> None:
    session = await counting(world)
    paused = await world.sessions.pause(world.tenant, session.id)
    record = await world.record(session)
    await world.store.everyone().sessions.swap(replace(record, state=S.STARTING))
    await world.restart()
    after = await world.record(session)
    assert (after.state, after.memory) == (S.PARKED, paused.memory)


async def test_a_crash_right_after_the_restore_leaves_it_running_without_a_way_back(world: World) -> None:
    session = await counting(world)
    paused = await world.sessions.pause(world.tenant, session.id)
    await world.sessions.wake(world.tenant, session.id)
    record = await world.record(session)
    await world.store.everyone().sessions.swap(replace(record, state=S.STARTING, memory=paused.memory))
    await world.restart()
    after = await world.record(session)
    assert (after.state, after.memory) == (S.READY, None)
