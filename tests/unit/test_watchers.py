"""Watchers keep changes for who asks, each for its own session, and never too many."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from dovecote.control.sandboxes import FileChange, Watchers, watchers
from dovecote.errors import Failed, NoCapacity, NotFound

pytestmark = pytest.mark.anyio


class Source:
    """Stands for guests: each watch that was begun gives what is put into its queue; None ends it."""

    def __init__(self) -> None:
        self.begun: list[asyncio.Queue[FileChange | Exception | None]] = []
        self.left = 0
        self.was_left = asyncio.Event()
        self.refuses: Exception | None = None

    async def begin(
        self, tenant_id: str, session_id: str, path: str, recursive: bool, user: str | None
    ) -> AsyncGenerator[FileChange, None]:
        if self.refuses:
            raise self.refuses
        queue: asyncio.Queue[FileChange | Exception | None] = asyncio.Queue()
        self.begun.append(queue)
        return self._changes(queue)

    async def _changes(self, queue: asyncio.Queue[FileChange | Exception | None]) -> AsyncGenerator[FileChange, None]:
        try:
            while (change := await queue.get()) is not None:
                if isinstance(change, Exception):
                    raise change
                yield change
        finally:
            self.left += 1
            self.was_left.set()

    def put(self, *changes: FileChange | Exception | None) -> None:
        for change in changes:
            self.begun[-1].put_nowait(change)

    async def settled(self) -> None:
        for _ in range(30):  # turns of the loop, more than one for each that was put
            await asyncio.sleep(0)


async def test_changes_are_taken_once_in_their_order() -> None:
    source = Source()
    room = Watchers(source.begin)
    one = await room.create("ten", "ses", "/x")
    assert room.take("ten", "ses", one) == []
    source.put(FileChange("create", "a"), FileChange("rename", "a", "b"))
    await source.settled()
    assert room.take("ten", "ses", one) == [FileChange("create", "a"), FileChange("rename", "a", "b")]
    assert room.take("ten", "ses", one) == []
    room.delete("ten", "ses", one)
    await source.settled()
    assert source.left == 1
    with pytest.raises(NotFound):
        room.delete("ten", "ses", one)


async def test_a_watcher_belongs_to_its_session_and_tenant() -> None:
    room = Watchers(Source().begin)
    one = await room.create("ten", "ses", "/x")
    for tenant_id, session_id in (("other", "ses"), ("ten", "other")):
        with pytest.raises(NotFound):
            room.take(tenant_id, session_id, one)
        with pytest.raises(NotFound):
            room.delete(tenant_id, session_id, one)
    assert room.take("ten", "ses", one) == []


async def test_too_many_changes_become_one_overflow_and_reading_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchers, "MOST_KEPT", 3)
    source = Source()
    room = Watchers(source.begin)
    one = await room.create("ten", "ses", "/x")
    source.put(*(FileChange("create", f"{i}") for i in range(9)))
    await source.settled()
    assert [c.path or c.kind for c in room.take("ten", "ses", one)] == ["0", "1", "2", "overflow"]
    source.put(FileChange("create", "later"))
    await source.settled()
    assert [c.path for c in room.take("ten", "ses", one)] == ["later"]
    monkeypatch.setattr(watchers, "MOST_KEPT_BYTES", 10)
    source.put(*(FileChange("create", "x" * 11) for _ in range(9)))
    await source.settled()
    assert [c.kind for c in room.take("ten", "ses", one)] == ["create", "overflow"]


async def test_one_that_ended_gives_what_it_has_and_is_gone() -> None:
    source = Source()
    room = Watchers(source.begin)
    for end, kinds in ((None, ["remove"]), (Failed("it died", code="guest_unreachable"), ["remove", "overflow"])):
        one = await room.create("ten", "ses", "/x")
        source.put(FileChange("remove"), end)
        await source.settled()
        assert [c.kind for c in room.take("ten", "ses", one)] == kinds
        with pytest.raises(NotFound) as error:
            room.take("ten", "ses", one)
        assert error.value.code == "no_such_watcher"


async def test_they_are_bounded_and_a_refusal_takes_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchers, "MOST_OF_SESSION", 2)
    monkeypatch.setattr(watchers, "MOST", 3)
    source = Source()
    room = Watchers(source.begin)
    source.refuses = NotFound("no file /x", code="file_not_found")
    for _ in range(5):
        with pytest.raises(NotFound):
            await room.create("ten", "ses", "/x")
    source.refuses = None
    first = await room.create("ten", "ses", "/x")
    await room.create("ten", "ses", "/x")
    for session_id in ("ses", "other", "third"):
        if session_id == "other":
            await room.create("ten", "other", "/x")
            continue
        with pytest.raises(NoCapacity) as error:
            await room.create("ten", session_id, "/x")
        assert error.value.code == "too_many_watchers"
    room.delete("ten", "ses", first)
    await room.create("ten", "third", "/x")


async def test_one_that_nobody_reads_is_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchers, "UNREAD_FOR", 0.01)
    source = Source()
    room = Watchers(source.begin)
    await room.create("ten", "ses", "/x")
    async with asyncio.timeout(20):
        await source.was_left.wait()
    assert not room._all
