"""Templates: what revisions pin of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from dovecote.control.functions import Functions
from dovecote.model.ids import new_id
from dovecote.model.trees import Inside, Template
from tests.unit.control_world import BASE, World, world_on
from tests.unit.memory_host import Clock, MemoryHost

pytestmark = pytest.mark.anyio


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    async with world_on(MemoryHost(Clock()), tmp_path, monkeypatch) as world:
        yield world


async def test_a_session_runs_as_its_revision_says_whatever_the_template_has_become(world: World) -> None:
    session = await world.sessions.create(world.tenant)
    changed = Template("base", "digest-of-another", Inside("root", "/root", False, {"LANG": "de_DE"}))
    world.functions._templates = {"base": changed}
    live = await world.sessions.awake(session)
    assert world.sessions.default_user(live) == ("user", "/home/user")
    assert world.sessions.environment(live) == {"LANG": "C.UTF-8"}


async def test_a_revision_of_an_earlier_version_is_read_as_one_of_base(world: World) -> None:
    function = await world.functions.get(world.tenant, "sandbox")
    revision = await world.functions.revision(world.tenant, function.revision_id)
    old = replace(revision, id=new_id("rev"), number=2, pinned=None)
    await world.store.tenant(world.tenant).revisions.insert(old)
    functions = Functions(world.store, templates={"base": BASE}, level="crun", levels=frozenset({"crun"}))
    assert (await functions.revision(world.tenant, old.id)).inside == BASE.inside
