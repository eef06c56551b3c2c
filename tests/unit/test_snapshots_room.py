"""Snapshots over a real store and a host in memory."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from dovecote.control.fleet import Claim, Placed
from dovecote.control.snapshots import Snapshots, expired
from dovecote.errors import Conflict, NotFound, StorageFailed
from dovecote.model.moments import moment_after
from dovecote.model.records import Revision, Session, Snapshot
from dovecote.model.sizes import TIERS
from dovecote.model.states import SessionState, SnapshotCause
from dovecote.model.trees import Saved
from tests.unit.control_world import World, world_on
from tests.unit.memory_host import Clock, MemoryHost

NOW = datetime(2026, 3, 1, tzinfo=UTC)
ONE = Snapshot("snp_0", "ten_a", "ses_a", "", SnapshotCause.ASKED, "t", "d", 1, 0, 0, NOW)


@pytest.fixture
def snapshots(world: World) -> Snapshots:
    return Snapshots(world.store, world.sessions, world.functions)


def test_what_was_just_taken_stays_when_the_clock_goes_back() -> None:
    tier, kept = TIERS["default"], [ONE]
    for number in range(2 * tier.snapshots):
        now = NOW + timedelta(hours=number if number < tier.snapshots else -number)
        taken = replace(ONE, id=f"snp_x{number}", created_at=moment_after(kept[-1], now))
        kept.append(taken)
        gone = expired(kept, tier, now)
        assert taken not in gone
        assert len(kept) - len(gone) <= tier.snapshots
        kept = [each for each in kept if each not in gone]


@pytest.mark.anyio
async def test_a_rewind_brings_files_back_and_can_be_undone(world: World, snapshots: Snapshots) -> None:
    session = await world.sessions.create(world.tenant)
    await world.write(session, b"first")
    first = await snapshots.create(world.tenant, session.id, label="one")
    await world.write(session, b"second")
    await world.write(session, b"new", "/home/user/other")
    rewound = await snapshots.rewind(world.tenant, session.id, first.id)
    assert (rewound.state, rewound.tree is not None) == (SessionState.PARKED, True)
    assert await world.read(session) == b"first"
    with pytest.raises(NotFound):
        await world.read(session, "/home/user/other")
    undo = (await snapshots.list(world.tenant, session.id))[-1]
    assert undo.cause is SnapshotCause.BEFORE_REWIND
    await snapshots.rewind(world.tenant, session.id, undo.id)
    assert await world.read(session) == b"second"


@pytest.mark.anyio
async def test_a_rewind_that_fails_or_is_cut_short_leaves_the_files_as_they_were(
    world: World, snapshots: Snapshots
) -> None:
    session = await world.sessions.create(world.tenant)
    await world.write(session, b"first")
    first = await snapshots.create(world.tenant, session.id)
    await world.write(session, b"second")
    for method in ("stop", "save_leftover", "verify"):
        world.host.refuse(method, StorageFailed("no store", code="disk_full"), times=1)
        with pytest.raises(StorageFailed):
            await snapshots.rewind(world.tenant, session.id, first.id)
        await world.restart()
        snapshots = Snapshots(world.store, world.sessions, world.functions)
        assert await world.read(session) == b"second", method


@pytest.mark.anyio
async def test_files_of_before_do_not_come_back_when_control_dies_before_it_discards_them(
    world: World, snapshots: Snapshots
) -> None:
    session = await world.sessions.create(world.tenant)
    await world.write(session, b"first")
    first = await snapshots.create(world.tenant, session.id)
    await world.write(session, b"second")
    world.host.refuse("discard", StorageFailed("gone", code="disk_full"))
    with pytest.raises(StorageFailed):
        await snapshots.rewind(world.tenant, session.id, first.id)  # parking has not discarded its leftover
    with pytest.raises(StorageFailed):
        await snapshots.rewind(world.tenant, session.id, first.id)  # nor has rewinding
    assert session.id in world.host.left
    world.host.mend("discard")
    assert await world.read(session) == b"first"


@pytest.mark.anyio
async def test_forks_diverge_and_leave_the_original_alone(world: World, snapshots: Snapshots) -> None:
    session = await world.sessions.create(world.tenant, env={"A": "1"}, user="u1")
    await world.write(session, b"first")
    first = await snapshots.create(world.tenant, session.id)
    await world.write(session, b"second")
    old = await snapshots.fork(world.tenant, session.id, snapshot_id=first.id, key="old")
    new = await snapshots.fork(world.tenant, session.id, env={"B": "2"})
    assert (await world.read(old), await world.read(new)) == (b"first", b"second")
    await world.write(old, b"mine")
    await world.sessions.park(world.tenant, old.id)
    assert [await world.read(each) for each in (old, new, session)] == [b"mine", b"second", b"second"]
    assert (old.user_id, new.env, old.key) == (session.user_id, {"A": "1", "B": "2"}, "old")
    assert len({each.slug for each in (old, new, session)}) == 3


@pytest.mark.anyio
async def test_nobody_names_what_is_another_tenants_or_another_sessions(world: World, snapshots: Snapshots) -> None:
    session = await world.sessions.create(world.tenant)
    mine = await snapshots.create(world.tenant, session.id)
    theirs = await world.sessions.create(world.other)
    beside = await world.sessions.create(world.tenant)
    for tenant, owner in ((world.other, theirs.id), (world.other, session.id), (world.tenant, beside.id)):
        for act in (snapshots.get, snapshots.rewind, snapshots.delete):
            with pytest.raises(NotFound):
                await act(tenant, owner, mine.id)
        with pytest.raises(NotFound):
            await snapshots.fork(tenant, owner, snapshot_id=mine.id)
    with pytest.raises(NotFound):
        await snapshots.list(world.other, session.id)
    with pytest.raises(NotFound):
        await snapshots.create(world.other, session.id)
    assert await snapshots.get(world.tenant, session.id, mine.id) == mine


@pytest.mark.anyio
async def test_a_parked_session_is_not_woken_for_a_snapshot_and_an_ended_one_has_none(
    world: World, snapshots: Snapshots
) -> None:
    session = await world.sessions.create(world.tenant)
    await world.sessions.park(world.tenant, session.id)
    taken = await snapshots.create(world.tenant, session.id)
    assert world.host.of(session.id) is None
    assert [each.tree async for each in snapshots.workspaces()] == [taken.tree]
    await world.sessions.delete(world.tenant, session.id)
    with pytest.raises(Conflict):
        await snapshots.create(world.tenant, session.id)


@pytest.mark.anyio
async def test_deleting_a_session_removes_its_snapshots_and_those_of_no_other(
    world: World, snapshots: Snapshots
) -> None:
    session = await world.sessions.create(world.tenant)
    other = await world.sessions.create(world.tenant)
    for _ in range(3):
        await snapshots.create(world.tenant, session.id, is_pinned=True)
    kept = await snapshots.create(world.tenant, other.id)
    await world.sessions.delete(world.tenant, session.id)
    assert [each.tree async for each in snapshots.workspaces()] == [kept.tree]


@pytest.mark.anyio
async def test_a_snapshot_that_is_being_taken_while_its_session_is_deleted_leaves_no_record(
    world: World, snapshots: Snapshots, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await world.sessions.create(world.tenant)
    checkpoint = world.sessions.files.checkpoint

    async def deleted_first(saved: Session) -> Saved | None:
        found = await checkpoint(saved)
        await world.sessions.delete(world.tenant, session.id)
        return found

    monkeypatch.setattr(world.sessions.files, "checkpoint", deleted_first)
    with pytest.raises(Conflict):
        await snapshots.create(world.tenant, session.id)
    assert [each async for each in snapshots.workspaces()] == []


@pytest.mark.anyio
async def test_changes_are_told_until_another_snapshot_or_now_and_to_no_other_tenant(
    world: World, snapshots: Snapshots
) -> None:
    session = await world.sessions.create(world.tenant)
    first = await snapshots.create(world.tenant, session.id)
    await world.write(session, b"1", "/one")
    second = await snapshots.create(world.tenant, session.id)
    await world.write(session, b"2", "/two")
    until = await snapshots.changes(world.tenant, session.id, first.id, second.id)
    now = await snapshots.changes(world.tenant, session.id, first.id)
    assert ([each.path for each in until], [each.path for each in now]) == (["/one"], ["/one", "/two"])
    theirs = await world.sessions.create(world.other)
    own = await snapshots.create(world.other, theirs.id)
    for old, new in ((first.id, None), (own.id, first.id)):
        with pytest.raises(NotFound):
            await snapshots.changes(world.other, theirs.id, old, new)


TAKEN = some.lists(some.tuples(some.integers(0, 400), some.booleans()), max_size=60)


@given(TAKEN, some.sampled_from(list(TIERS.values())))
def test_retention_keeps_pinned_ones_the_newest_and_no_more_than_the_tier_says(
    taken: list[tuple[int, bool]], tier: object
) -> None:
    all_of_them = [
        replace(ONE, id=f"snp_{i}", created_at=NOW - timedelta(days=days), is_pinned=pinned)
        for i, (days, pinned) in enumerate(taken)
    ]
    gone = expired(all_of_them, tier, NOW)  # type: ignore[arg-type]
    kept = [each for each in all_of_them if each not in gone]
    assert not any(each.is_pinned for each in gone)
    if all_of_them:
        newest = max(all_of_them, key=lambda each: (each.created_at, each.id))
        assert newest in kept
        loose = [each for each in kept if not each.is_pinned and each is not newest]
        assert len(loose) <= tier.snapshots  # type: ignore[attr-defined]
        assert all(NOW - each.created_at <= tier.snapshots_for for each in loose)  # type: ignore[attr-defined]
    assert expired(kept, tier, NOW) == []  # type: ignore[arg-type]


class LogDamaged(MemoryHost):
    """From when `is_damaged` on, the newest save in the log cannot be put together, nor can any save be verified."""

    is_damaged = False

    async def claim(self, claim: Claim) -> Placed:
        self._check()
        return await super().claim(claim)

    async def last_saved(self, owner: str) -> Saved | None:
        self._check()
        return await super().last_saved(owner)

    async def last_good(self, owner: str, *, before: int) -> int | None:
        self._check()
        return await super().last_good(owner, before=before)

    def _check(self) -> None:
        if self.is_damaged:
            raise StorageFailed("slot 3 of a log is missing", code="corrupt")


@pytest.mark.anyio
async def test_a_session_with_a_damaged_log_says_so_and_can_go_back_to_a_good_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = LogDamaged(Clock())
    async with world_on(host, tmp_path, monkeypatch) as world:
        snapshots = Snapshots(world.store, world.sessions, world.functions)
        session = await world.sessions.create(world.tenant)
        await world.write(session, b"first")
        first = await snapshots.create(world.tenant, session.id)
        await world.write(session, b"second")
        await world.sessions.park(world.tenant, session.id)
        host.is_damaged = True
        with pytest.raises(StorageFailed):
            await world.read(session)
        damaged = await world.record(session)
        assert damaged.state is SessionState.DAMAGED
        assert "not known" in damaged.reason
        await snapshots.rewind(world.tenant, session.id, first.id)
        host.is_damaged = False
        assert await world.read(session) == b"first"


@pytest.mark.anyio
async def test_a_snapshot_taken_while_its_session_is_deleted_does_not_outlive_it(
    world: World, snapshots: Snapshots, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await world.sessions.create(world.tenant)
    await world.sessions.park(world.tenant, session.id)
    swap = world.sessions._ledger.swap

    async def taken_just_ahead(session: Session, **changes: object) -> Session:
        if changes.get("state") is SessionState.ENDED:
            await snapshots.create(world.tenant, session.id)
        return await swap(session, **changes)

    monkeypatch.setattr(world.sessions._ledger, "swap", taken_just_ahead)
    await world.sessions.delete(world.tenant, session.id)
    assert [each async for each in snapshots.workspaces()] == []


@pytest.mark.anyio
async def test_what_an_instance_left_that_died_while_it_was_being_rewound_can_be_gone_back_to(
    world: World, snapshots: Snapshots, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await world.sessions.create(world.tenant)
    await world.write(session, b"first")
    first = await snapshots.create(world.tenant, session.id)
    await world.write(session, b"second")
    revision = world.functions.revision

    async def dies_meanwhile(tenant_id: str, revision_id: str) -> Revision:
        if world.host.of(session.id) is not None:
            await world.host.die(session.id)
        return await revision(tenant_id, revision_id)

    monkeypatch.setattr(world.functions, "revision", dies_meanwhile)
    await snapshots.rewind(world.tenant, session.id, first.id)
    assert await world.read(session) == b"first"
    undo = (await snapshots.list(world.tenant, session.id))[-1]
    await snapshots.rewind(world.tenant, session.id, undo.id)
    assert await world.read(session) == b"second"
