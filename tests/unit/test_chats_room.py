"""Chats over a real store and a host in memory: files and messages go back together."""

from __future__ import annotations

import pytest

from dovecote.control.chats import Chats
from dovecote.control.snapshots import Snapshots
from dovecote.errors import Conflict, NotFound, StorageFailed
from dovecote.model.records import Chat, Session, Turn
from dovecote.model.states import SnapshotCause
from tests.unit.control_world import World


@pytest.fixture
def snapshots(world: World) -> Snapshots:
    return Snapshots(world.store, world.sessions, world.functions)


@pytest.fixture
def chats(world: World, snapshots: Snapshots) -> Chats:
    return Chats(world.store, world.sessions, world.tenancy, snapshots)


async def talk(world: World, chats: Chats, *texts: str) -> tuple[Session, Chat]:
    """A chat in which each text is a turn and what the file then holds."""
    session = await world.sessions.create(world.tenant)
    chat = await chats.create(world.tenant, session_id=session.id)
    for text in texts:
        await say(world, chats, session, chat, text)
    return session, chat


async def say(world: World, chats: Chats, session: Session, chat: Chat, text: str) -> Turn:
    await world.write(session, text.encode())
    return await chats.add_turn(world.tenant, chat.id, [{"text": text}])


async def said(world: World, chats: Chats, chat: Chat, *, rewound: bool = False) -> list[tuple[int, str]]:
    turns = await chats.turns(world.tenant, chat.id, rewound=rewound)
    return [(turn.number, turn.messages[0]["text"]) for turn in turns]


@pytest.mark.anyio
async def test_a_chat_goes_back_with_its_files_and_its_numbering_goes_on(world: World, chats: Chats) -> None:
    session, chat = await talk(world, chats, "one", "two", "three")
    await chats.rewind(world.tenant, chat.id, 1)
    assert await world.read(session) == b"one"
    assert await said(world, chats, chat) == [(1, "one")]
    await say(world, chats, session, chat, "four")
    assert await said(world, chats, chat) == [(1, "one"), (4, "four")]
    everything = await chats.turns(world.tenant, chat.id, rewound=True)
    assert [(turn.number, turn.rewound_at is not None) for turn in everything] == [
        (1, False),
        (2, True),
        (3, True),
        (4, False),
    ]
    with pytest.raises(NotFound):
        await chats.rewind(world.tenant, chat.id, 2)
    await chats.rewind(world.tenant, chat.id, 4)
    assert await world.read(session) == b"four"


@pytest.mark.anyio
async def test_a_turn_is_kept_when_its_snapshot_fails_and_says_why(world: World, chats: Chats) -> None:
    session, chat = await talk(world, chats, "one")
    world.host.refuse("save", StorageFailed("no space left", code="disk_full"), times=1)
    turn = await say(world, chats, session, chat, "two")
    assert (turn.snapshot_id, turn.snapshot_note) == (None, "disk_full: no space left")
    with pytest.raises(Conflict) as refused:
        await chats.rewind(world.tenant, chat.id, 2)
    assert refused.value.code == "no_snapshot"
    assert await said(world, chats, chat) == [(1, "one"), (2, "two")]
    assert await world.read(session) == b"two"


@pytest.mark.anyio
async def test_a_session_without_an_instance_is_not_woken_for_a_turn(
    world: World, chats: Chats, snapshots: Snapshots
) -> None:
    session, chat = await talk(world, chats, "one")
    await world.sessions.park(world.tenant, session.id)
    parked = await chats.add_turn(world.tenant, chat.id, [{"text": "parked"}])
    assert parked.snapshot_id is not None
    taken = await snapshots.get(world.tenant, session.id, parked.snapshot_id)
    assert (taken.cause, taken.label) == (SnapshotCause.TURN, "turn 1")  # nothing has changed since
    new = await world.sessions.create(world.tenant, wake=False)
    empty = await chats.create(world.tenant, session_id=new.id)
    turn = await chats.add_turn(world.tenant, empty.id, [{"text": "early"}])
    assert turn.snapshot_id is None
    assert (turn.snapshot_note or "").startswith("no_files")
    assert (world.host.of(session.id), world.host.of(new.id)) == (None, None)


@pytest.mark.anyio
async def test_a_rewind_that_fails_leaves_files_and_messages(world: World, chats: Chats) -> None:
    session, chat = await talk(world, chats, "one", "two")
    world.host.refuse("verify", StorageFailed("no store", code="disk_full"), times=1)
    with pytest.raises(StorageFailed):
        await chats.rewind(world.tenant, chat.id, 1)
    assert await said(world, chats, chat) == [(1, "one"), (2, "two")]
    assert await world.read(session) == b"two"
    await chats.rewind(world.tenant, chat.id, 1)
    assert (await said(world, chats, chat), await world.read(session)) == ([(1, "one")], b"one")


@pytest.mark.anyio
async def test_a_forked_chat_has_its_own_files_turns_and_past(world: World, chats: Chats) -> None:
    session, chat = await talk(world, chats, "one", "gone")
    await chats.rewind(world.tenant, chat.id, 1)
    await say(world, chats, session, chat, "two")
    await say(world, chats, session, chat, "three")
    forked = await chats.fork(world.tenant, chat.id, 3)
    theirs = await world.sessions.get(world.tenant, forked.session_id)
    assert await said(world, chats, forked) == [(1, "one"), (2, "two")]
    assert await world.read(theirs) == b"two"
    await say(world, chats, theirs, forked, "other")
    await chats.rewind(world.tenant, forked.id, 1)
    assert await world.read(theirs) == b"one"
    assert await said(world, chats, chat) == [(1, "one"), (3, "two"), (4, "three")]
    assert await world.read(session) == b"three"


@pytest.mark.anyio
async def test_a_turn_whose_snapshot_was_let_go_cannot_be_gone_back_to(
    world: World, chats: Chats, snapshots: Snapshots
) -> None:
    session, chat = await talk(world, chats, "one", "two")
    first = (await chats.turns(world.tenant, chat.id))[0]
    assert first.snapshot_id is not None
    await snapshots.delete(world.tenant, session.id, first.snapshot_id)
    with pytest.raises(Conflict):
        await chats.rewind(world.tenant, chat.id, 1)
    forked = await chats.fork(world.tenant, chat.id, 2)
    assert [turn.snapshot_id is None for turn in await chats.turns(world.tenant, forked.id)] == [True, False]


@pytest.mark.anyio
async def test_another_tenants_chat_is_not_there(world: World, chats: Chats) -> None:
    _, chat = await talk(world, chats, "one")
    for act in (chats.rewind, chats.fork):
        with pytest.raises(NotFound):
            await act(world.other, chat.id, 1)
