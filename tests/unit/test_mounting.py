"""Mounts into a running instance: whatever fails or whoever leaves, none is left that nobody knows of."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace
from typing import Any

import pytest

from dovecote.errors import StorageFailed
from dovecote.host.instances import mounting
from dovecote.host.instances.instance import Claim
from dovecote.host.storage import mounts
from dovecote.model.sizes import SPECS, NetworkPolicy
from dovecote.model.trees import Workspace
from dovecote.model.volumes import Mount
from tests.unit.control_world import until

pytestmark = pytest.mark.anyio

WANTED = Mount("vol_1", "/data")


class Entrance:
    """`attached` is what is mounted inside by now, by number."""

    def __init__(self) -> None:
        self.attached: list[str] = []
        self.detached: list[int] = []
        self.gate = asyncio.Event()
        self.is_inside = False
        self.error: Exception | None = None
        self.cannot: Exception | None = None

    async def attach(self, pid: int, detached: int, at: str, *, owner: int) -> None:
        os.fstat(detached)  # it is not closed under us
        self.is_inside = True
        await self.gate.wait()
        os.fstat(detached)
        self.attached.append(at)
        if self.error is not None:
            raise self.error

    async def detach(self, pid: int, number: int, *, lazy: bool = False) -> None:
        if self.cannot is not None:
            raise self.cannot
        self.detached.append(number)
        self.attached.clear()


class Instance(SimpleNamespace):
    def record(self) -> None:
        self.recorded = dict(self.mounted)
        self.recorded_opening = self.opening


@pytest.fixture
def entrance() -> Entrance:
    return Entrance()


@pytest.fixture
def attaching(entrance: Entrance, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Instance]:
    async def opened(*_: object) -> int:
        return os.open("/", os.O_PATH)

    monkeypatch.setattr(mounting, "_open", opened)
    monkeypatch.setattr(mounts, "mount_id", lambda _: 77)
    instance = Instance(id="ins_1", pid=1, id_base=0, mounted={}, opening=None, claim=SimpleNamespace(mounts=(WANTED,)))
    return SimpleNamespace(entrance=entrance), instance


async def test_a_mount_whose_caller_leaves_is_taken_back_once_it_is_there(
    entrance: Entrance, attaching: tuple[Any, Instance]
) -> None:
    parts, instance = attaching
    task = asyncio.ensure_future(mounting.mount_all(parts, instance))  # type: ignore[arg-type]
    await until(lambda: entrance.is_inside)
    assert instance.recorded == {"/data": 77}
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()  # more than once
    with pytest.raises(asyncio.CancelledError):
        await task
    entrance.gate.set()
    await until(lambda: entrance.detached == [77])
    await until(lambda: instance.recorded == {})
    assert (entrance.attached, instance.mounted) == ([], {})


async def test_a_mount_that_failed_halfway_is_taken_back(entrance: Entrance, attaching: tuple[Any, Instance]) -> None:
    parts, instance = attaching
    entrance.error = StorageFailed("the helper died", code="entrance_died")
    entrance.gate.set()
    with pytest.raises(StorageFailed):
        await mounting.mount_all(parts, instance)  # type: ignore[arg-type]
    assert (entrance.detached, entrance.attached, instance.recorded) == ([77], [], {})


async def test_what_cannot_be_taken_back_stays_written_down(
    entrance: Entrance, attaching: tuple[Any, Instance]
) -> None:
    parts, instance = attaching
    entrance.error = entrance.cannot = StorageFailed("the helper died", code="entrance_died")
    entrance.gate.set()
    with pytest.raises(StorageFailed):
        await mounting.mount_all(parts, instance)  # type: ignore[arg-type]
    assert instance.recorded == instance.mounted == {"/data": 77}


@pytest.fixture
def live(attaching: tuple[Any, Instance]) -> tuple[Any, Instance]:
    """The same, without a mount in its claim."""
    parts, instance = attaching
    runtime = SimpleNamespace(capabilities=SimpleNamespace(can_mount_live=True))
    parts.runtimes = {"crun": runtime}
    limits, workspace = SPECS["small"].limits, Workspace("a" * 64)
    instance.level, instance.claim = "crun", Claim("usr", workspace, limits, NetworkPolicy(), "crun", 1)
    return parts, instance


@pytest.mark.parametrize("times", [1, 2])
async def test_a_mount_whose_caller_left_is_on_its_way_until_it_is_taken_back(
    entrance: Entrance, live: tuple[Any, Instance], times: int
) -> None:
    parts, instance = live
    task = asyncio.ensure_future(mounting.mount(parts, instance, WANTED))  # type: ignore[arg-type]
    await until(lambda: entrance.is_inside)
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
    assert instance.recorded_opening == WANTED
    entrance.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: instance.recorded_opening is None)
    assert (entrance.detached, instance.mounted, instance.claim.mounts) == ([77], {}, ())


async def test_a_mount_whose_caller_left_while_it_was_opened_is_not_on_its_way(
    live: tuple[Any, Instance], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, instance = live
    opening = asyncio.Event()

    async def open_for_ever(*_: object) -> int:
        opening.set()
        await asyncio.Event().wait()
        return -1

    monkeypatch.setattr(mounting, "_open", open_for_ever)
    task = asyncio.ensure_future(mounting.mount(parts, instance, WANTED))  # type: ignore[arg-type]
    await opening.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert instance.recorded_opening is None


async def test_what_may_be_there_after_it_failed_is_known_until_it_is_unmounted(
    entrance: Entrance, live: tuple[Any, Instance]
) -> None:
    parts, instance = live
    entrance.error = entrance.cannot = StorageFailed("the helper died", code="entrance_died")
    entrance.gate.set()
    with pytest.raises(StorageFailed):
        await mounting.mount(parts, instance, WANTED)  # type: ignore[arg-type]
    assert instance.recorded_opening == WANTED
    entrance.cannot = None
    await mounting.unmount(parts, instance, WANTED.at, force=True)  # type: ignore[arg-type]
    assert (entrance.attached, instance.recorded, instance.recorded_opening) == ([], {}, None)


@pytest.mark.parametrize("mounted", [{}, {"/data": 77}])
async def test_what_a_restart_cut_off_is_taken_back(
    entrance: Entrance, live: tuple[Any, Instance], mounted: dict[str, int]
) -> None:
    parts, instance = live
    instance.opening, instance.mounted = WANTED, dict(mounted)
    await mounting.take_back_unfinished(parts, instance)  # type: ignore[arg-type]
    assert (instance.recorded, instance.recorded_opening) == ({}, None)
    assert entrance.detached == list(mounted.values())
