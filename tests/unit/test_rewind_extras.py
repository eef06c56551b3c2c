"""Turns that changed nothing, what was published, forks for others, archives, diffs, and letting old snapshots go."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from dovecote.control.snapshots import Snapshots
from dovecote.errors import Conflict, NotFound, StorageFailed
from dovecote.model.ids import new_id
from dovecote.model.states import SessionState, SnapshotCause
from tests.unit.control_world import START, World


@pytest.fixture
def snapshots(world: World) -> Snapshots:
    return Snapshots(world.store, world.sessions, world.functions)


@pytest.mark.anyio
async def test_a_turn_that_changed_nothing_names_the_snapshot_before(world: World, snapshots: Snapshots) -> None:
    session = await world.sessions.create(world.tenant)
    await world.write(session, b"one")
    first = await snapshots.at_turn(world.tenant, session.id, "turn 1")
    assert await snapshots.at_turn(world.tenant, session.id, "turn 2") == first
    await world.write(session, b"two")
    second = await snapshots.at_turn(world.tenant, session.id, "turn 3")
    assert second.id != first.id
    await snapshots.rewind(world.tenant, session.id, first.id)
    # The files are those of the first one, which is not the newest: that would be let go before it.
    again = await snapshots.at_turn(world.tenant, session.id, "turn 4")
    assert again.id not in (first.id, second.id)
    assert again.tree == first.tree or world.host.trees[again.tree] == world.host.trees[first.tree]


@pytest.mark.anyio
async def test_publishing_leaves_a_snapshot_of_what_was_published(world: World, snapshots: Snapshots) -> None:
    world.apps._published = snapshots.at_publish
    session = await world.sessions.create(world.tenant)
    await world.write(session, b"one")
    for text in (b"one", b"two"):
        await world.write(session, text)
        await world.apps.publish(world.tenant, session.id, name="mine", start=START)
    taken = await snapshots.list(world.tenant, session.id)
    assert [(each.cause, each.label) for each in taken] == [(SnapshotCause.PUBLISHED, "published as mine")] * 2
    assert [world.host.trees[each.tree]["/home/user/note"] for each in taken] == [b"one", b"two"]


@pytest.mark.anyio
async def test_a_snapshot_that_fails_does_not_undo_a_publishing(
    world: World, snapshots: Snapshots, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise StorageFailed("no store")

    monkeypatch.setattr(snapshots, "_record", fail)
    world.apps._published = snapshots.at_publish
    session = await world.sessions.create(world.tenant)
    assert (await world.apps.publish(world.tenant, session.id, name="mine", start=START)).name == "mine"


@pytest.mark.anyio
async def test_a_fork_may_be_another_users(world: World, snapshots: Snapshots) -> None:
    session = await world.sessions.create(world.tenant, user="anna", tier="vip")
    await world.write(session, b"text")
    same = await snapshots.fork(world.tenant, session.id)
    assert (same.user_id, same.tier) == (session.user_id, "vip")
    ben = await world.tenancy.user(world.tenant, "ben", "regular")
    theirs = await snapshots.fork(world.tenant, session.id, user="ben")
    assert (theirs.user_id, theirs.tier) == (ben.id, "regular")
    assert await world.read(theirs) == b"text"


@pytest.mark.anyio
async def test_archives_and_diffs_are_of_a_snapshot_or_of_now_and_of_no_other_tenant(
    world: World, snapshots: Snapshots
) -> None:
    async def text(**of: str | None) -> str:
        pieces = snapshots.archive(world.tenant, session.id, **of)
        return b"".join([piece async for piece in pieces]).decode()

    session = await world.sessions.create(world.tenant)
    await world.write(session, b"one")
    await world.write(session, b"x", "/etc/x")
    first = await snapshots.create(world.tenant, session.id)
    await world.write(session, b"two")
    assert await text() == "/home/user/note=two\n"
    assert await text(snapshot_id=first.id) == "/home/user/note=one\n"
    assert await text(path="/etc") == "/etc/x=x\n"
    assert await text(path="other") == ""
    found = await snapshots.diff(world.tenant, session.id, first.id, "note")
    assert (found.path, found.text) == ("/home/user/note", "-b'one'\n+b'two'\n")
    assert (await snapshots.diff(world.tenant, session.id, first.id, "note", first.id)).text == ""
    theirs = await world.sessions.create(world.other)
    with pytest.raises(NotFound):
        await snapshots.diff(world.other, theirs.id, first.id, "note")
    for owner, snapshot in ((session.id, None), (theirs.id, first.id)):
        with pytest.raises(NotFound):
            await anext(snapshots.archive(world.other, owner, snapshot_id=snapshot))


@pytest.mark.anyio
async def test_old_snapshots_go_without_anybody_taking_one(world: World, snapshots: Snapshots) -> None:
    """More than a page of them, those of a tier that was lowered, and those of a session that has ended."""
    now = datetime.now(UTC)
    many = await world.sessions.create(world.tenant, tier="svip")
    old = await world.sessions.create(world.tenant)
    ended = await world.sessions.create(world.tenant)
    scope = world.store.tenant(world.tenant)
    first = await snapshots.create(world.tenant, many.id)

    async def add(session_id: str, count: int, age: timedelta) -> None:
        async with scope.together() as whole:
            for i in range(count):
                made = now - age + timedelta(milliseconds=i)
                copy = replace(first, id=new_id("snp"), session_id=session_id, created_at=made)
                await whole.snapshots.insert(copy)

    await add(many.id, 1100, timedelta(days=2))
    await add(old.id, 3, timedelta(days=8))
    await add(ended.id, 2, timedelta(days=8))
    await world.rewrite(ended, state=SessionState.ENDED)
    await snapshots.retain()
    assert await scope.snapshots.count(session_id=many.id) == 1000
    assert await scope.snapshots.count(session_id=old.id) == 1  # the newest stays
    assert await scope.snapshots.count(session_id=ended.id) == 0
    await world.sessions.update(world.tenant, many.id, tier="default")
    await snapshots.retain()
    assert await scope.snapshots.count(session_id=many.id) == 20


@pytest.mark.anyio
async def test_a_rewind_that_is_cut_short_counts_from_its_record_on(
    world: World, snapshots: Snapshots, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed behind the record, before or behind the slot in the log; then the host is lost with all that it had."""
    for cut in ("before the slot", "behind the slot"):
        session = await world.sessions.create(world.tenant)
        await world.write(session, b"first")
        first = await snapshots.create(world.tenant, session.id)
        await world.write(session, b"second")
        rewind = world.host.rewind

        async def killed(owner: str, *, epoch: int, template: str, tree: str) -> None:
            if cut == "behind the slot":  # noqa: B023
                await rewind(owner, epoch=epoch, template=template, tree=tree)  # noqa: B023
            raise Conflict("killed", code="killed")

        with monkeypatch.context() as patch:
            patch.setattr(world.host, "rewind", killed)
            with pytest.raises(Conflict):
                await snapshots.rewind(world.tenant, session.id, first.id)
        world.host.left.clear()
        await world.restart()
        snapshots = Snapshots(world.store, world.sessions, world.functions)
        record = await world.record(session)
        assert (record.tree, record.state) == (first.tree, SessionState.PARKED), cut
        fork = await snapshots.fork(world.tenant, session.id)  # asks the record only
        assert (await world.read(session), await world.read(fork)) == (b"first", b"first"), cut
        await world.write(session, b"third")
        await world.sessions.park(world.tenant, session.id)
        assert await world.read(session) == b"third", cut


@pytest.mark.anyio
async def test_a_log_that_cannot_be_told_of_a_rewind_does_not_undo_it(world: World, snapshots: Snapshots) -> None:
    session = await world.sessions.create(world.tenant)
    await world.write(session, b"first")
    first = await snapshots.create(world.tenant, session.id)
    await world.write(session, b"second")
    world.host.refuse("rewind", StorageFailed("no store", code="store_unreachable"), times=1)
    assert (await snapshots.rewind(world.tenant, session.id, first.id)).reason == "rewound"
    assert await world.read(session) == b"first"
