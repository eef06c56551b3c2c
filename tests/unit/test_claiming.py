"""What a claim has to do to an instance that was prepared, and what it need not do."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dovecote.errors import Conflict, NotFound
from dovecote.host.instances.claiming import Claiming
from dovecote.host.instances.instance import Claim, Instance
from dovecote.host.instances.mounting import mounted_paths
from dovecote.host.storage import mounts
from dovecote.model.sizes import SPECS, Limits, NetworkPolicy
from dovecote.model.states import InstanceState
from dovecote.model.trees import Workspace
from dovecote.model.volumes import Mount

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

    def path(self, name: str) -> Path:
        return Path(name)


class Idle:
    """A network and an entrance that do at once what they are asked for."""

    async def apply(self, address: str, policy: NetworkPolicy) -> None: ...

    async def swap_root(self, pid: int, root: int, *, id_base: int) -> None: ...


class Roots:
    async def assemble(self, *_: object, **__: object) -> int:
        return os.open("/", os.O_PATH)


class Volumes:
    """Has none; notes what is known to be mounted by the time that one is opened."""

    def __init__(self, instances: Path) -> None:
        self._instances = instances
        self.known: list[list[str]] = []

    def open(self, mount: Mount) -> int:
        self.known.append(mounted_paths(self._instances, mount.volume))
        raise NotFound("no such volume", code="no_such_volume")


class World:
    def __init__(self, directory: Path, limits: Limits | None) -> None:
        self.limiting = Limiting()
        runtime = SimpleNamespace(capabilities=SimpleNamespace(roomy=lambda limits: limits, can_swap_root=True))
        self.parts = parts = SimpleNamespace(
            cgroups=self.limiting, disks=self.limiting, runtimes={"crun": runtime}, network=Idle(), entrance=Idle()
        )
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


async def test_the_mounts_of_a_claim_are_known_before_they_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit that is set meanwhile would put other files in the place of those that are being mounted."""
    (tmp_path / "ins_1").mkdir()
    limits = SPECS["small"].limits
    world = World(tmp_path / "ins_1", limits)
    world.instance.state = InstanceState.PREPARED
    world.instance.record()
    volumes = world.parts.volumes = Volumes(tmp_path)
    world.parts.roots = Roots()
    world.claiming._preparing = SimpleNamespace(guest_binary=Path("guest"))  # type: ignore[assignment]
    monkeypatch.setattr(mounts, "user_namespace", lambda _: os.open("/", os.O_PATH))
    wanted = (Mount("vol_1", "/data", "books"), Mount("vol_1", "/more", "films"))
    claim = Claim("usr", Workspace("a" * 64), limits, NetworkPolicy(), "crun", 1, keeps_files=False, mounts=wanted)
    with pytest.raises(NotFound):
        await world.claiming._equip(world.instance, claim, is_new=True)
    assert volumes.known == [["books", "films"]]
