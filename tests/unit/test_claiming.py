"""What a claim has to do to an instance that was prepared, and what it need not do."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dovecote.errors import Conflict
from dovecote.host.instances.claiming import Claiming
from dovecote.host.instances.instance import Instance
from dovecote.model.sizes import SPECS, Limits
from dovecote.model.states import InstanceState

pytestmark = pytest.mark.anyio


class Limiting:
    """Groups and disks; notes what is asked of them."""

    def __init__(self) -> None:
        self.groups: list[Limits] = []
        self.disks: list[int] = []
        self.failure: Exception | None = None

    async def limit(self, name: str, limits: Limits | None = None, *, max_bytes: int = 0) -> None:
        if self.failure is not None:
            raise self.failure
        if limits is not None:
            self.groups.append(limits)
        else:
            self.disks.append(max_bytes)


class World:
    def __init__(self, directory: Path, limits: Limits | None) -> None:
        self.limiting = Limiting()
        runtime = SimpleNamespace(capabilities=SimpleNamespace(roomy=lambda limits: limits))
        parts = SimpleNamespace(cgroups=self.limiting, disks=self.limiting, runtimes={"crun": runtime})
        nothing = cast(Any, None)
        self.claiming = Claiming(cast(Any, parts), nothing, nothing, nothing, nothing, nothing, memory_reserve_bytes=0)
        self.instance = Instance(
            "ins_1", directory, InstanceState.CLAIMED, "crun", True, "10.0.0.1", directory, 1, 1 << 21, "ins_1", 1, 1,
            limits=limits,
        )  # fmt: skip

    async def limit(self, spec: str) -> None:
        await self.claiming._limit(self.instance, SPECS[spec].limits)


@pytest.mark.parametrize("there", [SPECS["small"].limits, None])
async def test_an_instance_of_another_size_gets_its_limits(tmp_path: Path, there: Limits | None) -> None:
    world = World(tmp_path, there)
    await world.limit("large")
    assert world.limiting.groups == [SPECS["large"].limits]
    assert world.limiting.disks == [SPECS["large"].limits.disk_bytes]
    assert world.instance.limits == SPECS["large"].limits


async def test_one_that_was_prepared_with_them_keeps_them(tmp_path: Path) -> None:
    world = World(tmp_path, SPECS["small"].limits)
    await world.limit("small")
    assert (world.limiting.groups, world.limiting.disks) == ([], [])


async def test_after_a_failure_nobody_takes_the_old_ones_for_true(tmp_path: Path) -> None:
    world = World(tmp_path, SPECS["small"].limits)
    world.limiting.failure = Conflict("in use", code="memory_in_use")
    with pytest.raises(Conflict):
        await world.limit("nano")
    world.limiting.failure = None
    await world.limit("small")
    assert world.limiting.groups == [SPECS["small"].limits]
