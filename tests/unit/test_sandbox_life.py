"""Sandboxes that their clients name, find, limit in time, pause and resume."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from dovecote.control.snapshots import Snapshots
from dovecote.errors import Conflict, Gone, Invalid, NotFound
from dovecote.model.records import Session
from dovecote.model.sizes import NetworkPolicy
from dovecote.model.states import AtTimeout, Desired, SessionState
from tests.unit.control_world import World

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("lost_sessions_are_tried_at_once")]

S = SessionState
MINUTE = timedelta(minutes=1)
PASSED = timedelta(microseconds=1)


async def now(world: World, session: Session) -> Session:
    return await world.sessions.get(world.tenant, session.id)


async def test_a_sandbox_of_another_size_runs_a_revision_that_all_of_that_size_share(world: World) -> None:
    plain = await world.sessions.create(world.tenant)
    large = await world.sessions.create(world.tenant, spec="large")
    again = await world.sessions.create(world.tenant, spec="large", template="base")
    assert plain.revision_id != large.revision_id
    assert large.revision_id == again.revision_id
    assert (await world.functions.revision(world.tenant, large.revision_id)).spec == "large"
    assert plain.revision_id == (await world.sessions.create(world.tenant)).revision_id
    instance = world.host.of(large.id)
    assert instance is not None
    assert instance.claim.limits.cpus == 4.0


@pytest.mark.parametrize("wish", ["template", "spec", "level"])
async def test_a_sandbox_of_what_is_not_there_leaves_nothing(world: World, wish: str) -> None:
    with pytest.raises(NotFound):
        await world.sessions.create(world.tenant, **{wish: "pyramid"})  # type: ignore[arg-type]
    assert await world.sessions.list(world.tenant) == []


async def test_a_function_says_itself_what_its_sessions_run(world: World) -> None:
    await world.functions.create(world.tenant, "chess")
    with pytest.raises(Invalid):
        await world.sessions.create(world.tenant, function="chess", spec="large")


async def test_a_network_of_its_own_goes_before_its_revisions(world: World) -> None:
    session = await world.sessions.create(world.tenant, network=NetworkPolicy(internet=False))
    instance = world.host.of(session.id)
    assert instance is not None
    assert not instance.claim.network.internet


async def test_metadata_finds_its_tenants_sandboxes_only(world: World) -> None:
    both = await world.sessions.create(world.tenant, metadata={"chat": "c 7", "a.b$['x']": "ü"}, wake=False)
    one = await world.sessions.create(world.tenant, metadata={"chat": "c 7"}, wake=False)
    await world.sessions.create(world.tenant, metadata={"chat": "8"}, wake=False)
    await world.sessions.create(world.other, metadata={"chat": "c 7"}, wake=False)

    async def found(**texts: str) -> list[str]:
        return [each.id for each in await world.sessions.list(world.tenant, metadata=texts)]

    assert await found(chat="c 7") == [both.id, one.id]
    assert await found(**{"chat": "c 7", "a.b$['x']": "ü"}) == [both.id]
    assert await found(chat="7") == []


@pytest.mark.parametrize(
    "metadata",
    [{'a"b': ""}, {"a\\b": ""}, {"": "x"}, {"a": "\0"}, {str(n): "" for n in range(65)}, {"a": "x" * 20_000}],
)
async def test_metadata_that_nobody_could_look_for_is_refused(world: World, metadata: dict[str, str]) -> None:
    with pytest.raises(Invalid):
        await world.sessions.create(world.tenant, metadata=metadata)
    with pytest.raises(Invalid):
        await world.sessions.list(world.tenant, metadata=metadata)


async def test_a_timeout_ends_it_unless_it_was_moved(world: World) -> None:
    short, moved, none = [await world.sessions.create(world.tenant, timeout=MINUTE) for _ in range(3)]
    await world.sessions.set_timeout(world.tenant, short.id, PASSED)
    await world.sessions.set_timeout(world.tenant, moved.id, 2 * MINUTE)
    assert (await world.sessions.set_timeout(world.tenant, none.id, None)).timeout_at is None
    await world.tick()
    assert [(await now(world, each)).state for each in (short, moved, none)] == [S.ENDED, S.READY, S.READY]
    with pytest.raises(Gone):
        await world.sessions.set_timeout(world.tenant, short.id, MINUTE)


async def test_the_end_of_a_timeout_pauses_one_that_said_so_and_takes_the_timeout_away(world: World) -> None:
    session = await world.sessions.create(world.tenant, timeout=PASSED, at_timeout=AtTimeout.PAUSE)
    resting = await world.sessions.create(world.tenant, timeout=PASSED, at_timeout=AtTimeout.PAUSE, wake=False)
    await world.tick()
    for each in (session, resting):
        paused = await now(world, each)
        assert (paused.is_paused, paused.timeout_at) == (True, None)
    assert (await now(world, session)).state is S.FROZEN
    resumed = await world.sessions.resume(world.tenant, session.id, at_least=MINUTE)
    assert (resumed.state, resumed.is_paused) == (S.READY, False)
    assert resumed.timeout_at is not None
    await world.tick()
    assert not (await now(world, session)).is_paused


async def test_the_end_of_a_timeout_parks_one_that_keeps_its_files_only(world: World) -> None:
    session = await world.sessions.create(world.tenant, timeout=PASSED, at_timeout=AtTimeout.PARK)
    resting = await world.sessions.create(world.tenant, timeout=PASSED, at_timeout=AtTimeout.PARK, wake=False)
    await world.tick()
    for each in (session, resting):
        paused = await now(world, each)
        assert (paused.is_paused, paused.timeout_at, paused.is_hibernated) == (True, None, False)
    assert (await now(world, session)).state is S.PARKED
    assert world.host.instances == {}
    resumed = await world.sessions.resume(world.tenant, session.id, at_least=MINUTE)
    assert (resumed.state, resumed.is_paused) == (S.READY, False)


async def test_a_ttl_ends_it_though_it_is_paused(world: World) -> None:
    session = await world.sessions.create(world.tenant, ttl=MINUTE)
    await world.sessions.pause(world.tenant, session.id)
    await world.rewrite(await now(world, session), expires_at=datetime.now(UTC))
    live = world.sessions.live.get(session.id)
    assert live is not None
    live.session = replace(live.session, expires_at=datetime.now(UTC), generation=live.session.generation + 1)
    await world.tick()
    assert (await world.store.tenant(world.tenant).sessions.get(session.id)).state is S.ENDED


async def test_resuming_moves_a_timeout_out_and_never_in(world: World) -> None:
    session = await world.sessions.create(world.tenant, timeout=10 * MINUTE)
    assert session.timeout_at == (await world.sessions.resume(world.tenant, session.id, at_least=MINUTE)).timeout_at
    later = (await world.sessions.resume(world.tenant, session.id, at_least=20 * MINUTE)).timeout_at
    assert session.timeout_at is not None
    assert later is not None
    assert later > session.timeout_at


async def test_a_pause_stops_it_whatever_goes_on_in_it(world: World) -> None:
    session = await world.sessions.create(world.tenant)
    instance = world.host.of(session.id)
    assert instance is not None
    world.host.flows[instance.id] = 3
    async with world.sessions.use(world.tenant, session.id):
        paused = await world.sessions.pause(world.tenant, session.id)
    assert (paused.state, paused.is_paused) == (S.FROZEN, True)
    with pytest.raises(Conflict, match="paused"):
        await world.sessions.pause(world.tenant, session.id)
    assert [each.id for each in await world.sessions.list(world.tenant, is_paused=True)] == [session.id]
    assert await world.sessions.list(world.tenant, is_paused=False) == []


@pytest.mark.parametrize("is_parked", [False, True])
@pytest.mark.parametrize("is_restarted", [False, True])
async def test_a_pause_lasts_until_it_is_used_or_asked(world: World, is_parked: bool, is_restarted: bool) -> None:
    easy = await world.sessions.create(world.tenant)
    strict = await world.sessions.create(world.tenant, resumes_on_use=False)
    for each in (easy, strict):
        await world.write(each, b"kept")
        await world.sessions.pause(world.tenant, each.id)
        if is_parked:
            await world.sessions.park(world.tenant, each.id, reason="idle")
    if is_restarted:
        await world.restart()
    assert [(await now(world, each)).is_paused for each in (easy, strict)] == [True, True]
    assert await world.read(easy) == b"kept"
    assert not (await now(world, easy)).is_paused
    with pytest.raises(Conflict, match="paused"):
        await world.read(strict)
    await world.sessions.resume(world.tenant, strict.id)
    assert await world.read(strict) == b"kept"
    assert not (await world.store.tenant(world.tenant).sessions.get(strict.id)).is_paused


async def test_parking_by_itself_is_no_pause_but_being_asked_to_park_is(world: World) -> None:
    session = await world.sessions.create(world.tenant, resumes_on_use=False)
    assert not (await world.sessions.park(world.tenant, session.id, reason="idle for 300 s")).is_paused
    await world.sessions.wake(world.tenant, session.id)
    assert (await world.sessions.park(world.tenant, session.id)).desired is Desired.PARKED
    with pytest.raises(Conflict, match="paused"):
        await world.sessions.wake(world.tenant, session.id)


async def test_what_it_may_reach_changes_at_once_and_for_later(world: World) -> None:
    session = await world.sessions.create(world.tenant)
    wanted = NetworkPolicy(internet=False, allow_cidrs=("10.1.0.0/16",))
    assert (await world.sessions.set_network(world.tenant, session.id, wanted)).network == wanted
    instance = world.host.of(session.id)
    assert instance is not None
    assert instance.claim.network == wanted
    await world.sessions.park(world.tenant, session.id)
    await world.sessions.set_network(world.tenant, session.id, denied := NetworkPolicy(deny_cidrs=("203.0.113.0/24",)))
    await world.sessions.wake(world.tenant, session.id)
    assert world.host.claims[-1].network == denied
    await world.sessions.set_network(world.tenant, session.id, None)
    instance = world.host.of(session.id)
    assert instance is not None
    assert instance.claim.network == NetworkPolicy()


async def test_networks_that_no_host_could_keep_are_not_recorded(world: World) -> None:
    """Else a session that rests could not wake any more."""
    wrong = NetworkPolicy(allow_cidrs=("10.0.0.1/8",))
    session = await world.sessions.create(world.tenant, wake=False)
    with pytest.raises(Invalid):
        await world.sessions.set_network(world.tenant, session.id, wrong)
    assert (await world.record(session)).network is None
    with pytest.raises(Invalid):
        await world.sessions.create(world.tenant, wake=False, network=wrong)
    with pytest.raises(Invalid):
        await world.functions.create(world.tenant, "closed", network=wrong)


async def test_a_slug_finds_whoever_has_not_ended(world: World) -> None:
    session = await world.sessions.create(world.tenant)
    assert (await world.sessions.by_slug(session.slug)).id == session.id
    await world.sessions.delete(world.tenant, session.id)
    with pytest.raises(NotFound):
        await world.sessions.by_slug(session.slug)
    assert len({session.token, session.slug, session.id}) == 3


async def test_a_snapshot_may_outlive_its_session_and_begin_others(world: World) -> None:
    snapshots = Snapshots(world.store, world.sessions, world.functions)
    session = await world.sessions.create(world.tenant, spec="large", user="ada", env={"A": "1"})
    await world.write(session, b"kept")
    kept = await snapshots.create(world.tenant, session.id, outlives_session=True)
    other = await snapshots.create(world.tenant, session.id, is_pinned=True)
    await world.sessions.delete(world.tenant, session.id)
    await snapshots.retain()
    assert [each.id for each in await snapshots.all(world.tenant)] == [kept.id] != [other.id]
    assert await snapshots.all(world.other) == []
    begun = await snapshots.begin(world.tenant, kept.id, metadata={"from": "kept"})
    assert await world.read(begun) == b"kept"
    assert (begun.revision_id, begun.user_id, begun.env) == (session.revision_id, session.user_id, {"A": "1"})
    with pytest.raises(NotFound):
        await snapshots.begin(world.other, kept.id)
    await snapshots.delete(world.tenant, session.id, kept.id)
    assert await world.read(begun) == b"kept"
