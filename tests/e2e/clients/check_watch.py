"""Watches and metadata of files, by E2B's Python SDKs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import e2b
import pytest
from e2b import AsyncSandbox, FilesystemEvent, FilesystemEventType, Sandbox, SandboxException

Kind = FilesystemEventType
Seen = list[tuple[str, Kind]]


def until(handle: Any, is_enough: Callable[[Seen], bool]) -> list[FilesystemEvent]:
    """The events that came until they were enough."""
    events: list[FilesystemEvent] = []
    deadline = time.monotonic() + 20
    while not is_enough([(each.name, each.type) for each in events]):
        assert time.monotonic() < deadline, events
        events += handle.get_new_events()
        time.sleep(0.02)
    return events


def test_changes_of_a_directory_are_told_when_they_are_asked_for(sandbox: Sandbox) -> None:
    sandbox.files.make_dir("watched")
    sandbox.files.write("watched/there", "old")
    watch = sandbox.files.watch_dir("watched")
    assert watch.get_new_events() == []
    sandbox.files.write("watched/there", "new")
    until(watch, lambda seen: ("there", Kind.WRITE) in seen)
    sandbox.commands.run(
        "echo x > watched/made; chmod 600 watched/made; mv watched/made watched/moved; rm watched/moved"
    )
    seen = until(watch, lambda seen: ("moved", Kind.REMOVE) in seen)
    told = [(each.name, each.type) for each in seen]
    for wanted in (("made", Kind.CREATE), ("made", Kind.CHMOD), ("made", Kind.RENAME), ("moved", Kind.CREATE)):
        assert wanted in told
    assert {each.entry for each in seen} == {None}
    watch.stop()
    with pytest.raises(SandboxException):
        watch.get_new_events()


def test_a_watch_may_go_down_and_tell_of_entries(sandbox: Sandbox) -> None:
    sandbox.files.make_dir("deep/below")
    flat = sandbox.files.watch_dir("deep")
    deep = sandbox.files.watch_dir("deep", recursive=True, include_entry=True)
    sandbox.files.write("deep/below/new/file", "12345")
    sandbox.files.write("deep/last", "x")
    events = until(deep, lambda seen: {"below/new/file", "last"} <= {name for name, _ in seen})
    entry = next(each.entry for each in events if each.name == "below/new/file" and each.entry)
    assert (entry.path, entry.size) == ("/home/user/deep/below/new/file", 5)
    names = {each.name for each in until(flat, lambda seen: ("last", Kind.CREATE) in seen)}
    assert "below/new/file" not in names
    flat.stop()
    deep.stop()


def test_what_cannot_be_watched_says_why(sandbox: Sandbox) -> None:
    sandbox.files.write("a-file", "x")
    with pytest.raises(getattr(e2b, "FileNotFoundException", e2b.NotFoundException)):
        sandbox.files.watch_dir("not-there")
    with pytest.raises(e2b.InvalidArgumentException):
        sandbox.files.watch_dir("a-file")


async def test_changes_are_told_at_once_to_who_waits(sandbox: Sandbox) -> None:
    other = await AsyncSandbox.connect(sandbox.sandbox_id)
    await other.files.make_dir("stream/below")
    seen: list[FilesystemEvent] = []
    arrived = asyncio.Event()

    def take(event: FilesystemEvent) -> None:
        seen.append(event)
        if event.name == "below/last":
            arrived.set()

    watch = await other.files.watch_dir("stream", on_event=take, recursive=True)
    await other.files.write("stream/first", "x")
    await other.files.write("stream/below/last", "x")
    async with asyncio.timeout(20):
        await arrived.wait()
    await watch.stop()
    assert ("first", Kind.CREATE) in {(each.name, each.type) for each in seen}


def test_files_have_metadata(sandbox: Sandbox) -> None:
    written = sandbox.files.write("labelled", "x", metadata={"Origin": "a check", "step-2": "b"})
    assert written.metadata == {"origin": "a check", "step-2": "b"}
    assert sandbox.files.get_info("labelled").metadata == {"origin": "a check", "step-2": "b"}
    assert sandbox.files.rename("labelled", "labelled-2").metadata == {"origin": "a check", "step-2": "b"}
    sandbox.files.write("plain", "x")
    assert sandbox.files.get_info("plain").metadata is None
    several = sandbox.files.write_files([{"path": f"m{n}", "data": "x"} for n in range(2)], metadata={"a": "b"})
    assert [each.metadata for each in several] == [{"a": "b"}] * 2
