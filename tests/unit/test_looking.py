"""How often guests are asked what runs in them, and what comes of the answers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dovecote.host.instances import looking
from dovecote.host.instances.instance import Claim, Instance
from dovecote.host.instances.looking import ASK_EVERY, Looking
from dovecote.model.sizes import Limits, NetworkPolicy
from dovecote.model.states import InstanceState
from dovecote.model.trees import Workspace

pytestmark = pytest.mark.anyio

CLAIM = Claim("ses_1", Workspace("template"), Limits(), NetworkPolicy(), "crun", 1)
RUNNING = SimpleNamespace(is_running=True, tag="")


class Guest:
    def __init__(self) -> None:
        self.asked = 0
        self.commands: list[Any] = []

    async def list_commands(self) -> list[Any]:
        self.asked += 1
        return self.commands


class Quiet:
    """A network in which nothing happens."""

    async def activity(self) -> dict[str, float]:
        return {}

    sent = activity

    async def flows_to(self, addresses: list[str]) -> dict[str, int]:
        return {}


@dataclass
class Asked(Instance):
    its_guest: Guest = field(default_factory=Guest)

    @property
    def guest(self) -> Any:
        return self.its_guest


class World:
    def __init__(self, directory: Path) -> None:
        self.now = 1000.0
        self.instance = Asked(
            "ins_1", directory, InstanceState.READY, "crun", True, "10.0.0.1", directory, 1, 1 << 21, "ins_1", 1, 1,
            claim=replace(CLAIM), quiet_since=self.now,
        )  # fmt: skip
        self.guest = self.instance.its_guest
        present = SimpleNamespace(all=lambda: [self.instance], get=lambda _: self.instance)
        self._looking = Looking(cast(Any, SimpleNamespace(network=Quiet())), cast(Any, present))

    async def look(self, *, later: float) -> float:
        """How long it has been quiet, after so many seconds."""
        self.now += later
        return (await self._looking.observe())[0].quiet_for

    async def look_closely(self) -> int:
        return (await self._looking.look("ins_1")).commands


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    world = World(tmp_path)
    monkeypatch.setattr(looking, "time", SimpleNamespace(monotonic=lambda: world.now))
    return world


async def test_a_guest_that_nobody_calls_is_asked_once_in_a_while(world: World) -> None:
    for _ in range(10):
        await world.look(later=ASK_EVERY / 4)
    assert world.guest.asked == 3


async def test_one_that_was_called_is_asked_at_the_next_look(world: World) -> None:
    await world.look(later=1)
    world.guest.commands = [RUNNING]
    world.instance.asked_at = 0.0  # as `Instances.guest` leaves it
    assert await world.look(later=ASK_EVERY / 10) == 0.0
    assert world.instance.commands == 1


async def test_whoever_asks_for_one_instance_hears_what_runs_now(world: World) -> None:
    await world.look(later=1)
    world.guest.commands = [RUNNING]
    assert await world.look_closely() == 1


async def test_it_is_quiet_from_the_look_on_that_found_the_end_of_a_command(world: World) -> None:
    world.guest.commands = [RUNNING]
    assert await world.look(later=5) == 0.0
    world.guest.commands = []
    assert await world.look(later=ASK_EVERY) == 0.0
    assert await world.look(later=ASK_EVERY * 2) == ASK_EVERY * 2
