"""Templates: what revisions pin of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from dovecote.control.fleet import Claim
from dovecote.control.functions import Functions
from dovecote.control.templates import Done, Event, Printed, Step, progress
from dovecote.control.templates.progress import Telling
from dovecote.errors import Conflict, DovecoteError, Failed, NoCapacity, NotFound
from dovecote.model.ids import new_id
from dovecote.model.records import Start, Template
from dovecote.model.sizes import Limits, NetworkPolicy
from dovecote.model.states import TemplateState
from dovecote.model.trees import Inside, Workspace
from dovecote.model.trees import Template as OwnTemplate
from tests.unit.control_world import BASE, World, until
from tests.unit.memory_images import ALPINE
from tests.unit.test_layers import file, tar

pytestmark = pytest.mark.anyio


async def test_a_session_runs_as_its_revision_says_whatever_the_template_has_become(world: World) -> None:
    session = await world.sessions.create(world.tenant)
    changed = OwnTemplate("base", "digest-of-another", Inside("root", "/root", False, {"LANG": "de_DE"}))
    world.functions.bases._own = {"base": changed}
    live = await world.sessions.awake(session)
    assert live.default_user == ("user", "/home/user")
    assert live.environment == {"LANG": "C.UTF-8"}


async def test_a_revision_of_an_earlier_version_is_read_as_one_of_base(world: World) -> None:
    function = await world.functions.get(world.tenant, "sandbox")
    revision = await world.functions.revision(world.tenant, function.revision_id)
    old = replace(revision, id=new_id("rev"), number=2, pinned=None)
    await world.store.tenant(world.tenant).revisions.insert(old)
    functions = Functions(world.store, templates={"base": BASE}, level="crun", levels=frozenset({"crun"}))
    assert (await functions.revision(world.tenant, old.id)).inside == BASE.inside


# -- templates of tenants


async def made(events: AsyncIterator[Event]) -> Template:
    told = [event async for event in events]
    assert isinstance(told[-1], Done)
    return told[-1].template


async def test_a_function_starts_from_what_the_template_is_when_it_is_defined(world: World) -> None:
    first = await made(await world.templates.pull(world.tenant, "alpine", "alpine:3"))
    assert (first.state, first.start) == (
        TemplateState.READY,
        Start("/app/run --now", 9000, argv=("/app/run", "--now")),
    )
    await world.functions.create(world.tenant, "early", template="alpine")
    world.host.kept_images.made = replace(ALPINE, digest="digest-of-newer")
    await made(await world.templates.pull(world.tenant, "alpine", "alpine:4"))
    session = await world.sessions.create(world.tenant, function="early")
    live = await world.sessions.awake(session)
    assert world.host.claims[-1].workspace.template == "digest-of-alpine"
    assert (live.revision.start, live.default_user) == (first.start, ("root", "/app"))
    (server,) = world.host.starts()
    assert (server.argv, server.cwd, server.user) == (("/app/run", "--now"), "/app", "root")


async def test_nobody_learns_of_another_tenants_templates(world: World) -> None:
    await made(await world.templates.pull(world.tenant, "alpine", "alpine:3"))
    assert await world.templates.list(world.other) == []
    with pytest.raises(NotFound):
        await world.templates.get(world.other, "alpine")
    with pytest.raises(NotFound):
        await world.functions.create(world.other, "mine", template="alpine")
    assert (await made(await world.templates.pull(world.other, "alpine", "x"))).tenant_id == world.other
    assert world.host.kept_images.scopes == [world.tenant, world.other]


async def test_a_failure_is_told_and_recorded_and_leaves_what_was_there(world: World) -> None:
    await made(await world.templates.pull(world.tenant, "alpine", "alpine:3"))
    world.host.kept_images.refuse = Failed("no such image", code="image_unreachable")
    with pytest.raises(Failed):
        await made(await world.templates.pull(world.tenant, "alpine", "alpine:4"))
    template = await world.templates.get(world.tenant, "alpine")
    assert (template.state, template.error_code, template.reason) == (
        TemplateState.FAILED,
        "image_unreachable",
        "no such image",
    )
    await world.functions.create(world.tenant, "still", template="alpine")
    with pytest.raises(Failed):
        await made(await world.templates.pull(world.tenant, "new", "alpine:4"))
    with pytest.raises(Conflict) as early:
        await world.functions.create(world.tenant, "f", template="new")
    assert early.value.code == "template_not_ready"


async def test_a_name_is_made_by_one_and_a_tenant_makes_few_at_once(world: World) -> None:
    world.host.kept_images.gate = asyncio.Event()
    first = await world.templates.pull(world.tenant, "one", "x")
    with pytest.raises(Conflict) as busy:
        await world.templates.pull(world.tenant, "one", "x")
    assert busy.value.code == "building"
    second = await world.templates.pull(world.tenant, "two", "x")
    with pytest.raises(NoCapacity):
        await world.templates.pull(world.tenant, "three", "x")
    world.host.kept_images.gate.set()
    assert [(await made(each)).name for each in (first, second)] == ["one", "two"]


async def test_removing_one_ends_making_it(world: World) -> None:
    world.host.kept_images.gate = asyncio.Event()
    events = await world.templates.pull(world.tenant, "one", "x")
    assert isinstance(await anext(events), Step)
    await world.templates.delete(world.tenant, "one")
    with pytest.raises(DovecoteError) as ended:
        await made(events)
    assert ended.value.code == "interrupted"
    with pytest.raises(NotFound):
        await world.templates.get(world.tenant, "one")
    world.host.kept_images.gate = None
    assert (await made(await world.templates.pull(world.tenant, "one", "x"))).digest


async def test_what_was_being_made_when_the_server_stopped_has_failed_and_can_be_made_again(world: World) -> None:
    world.host.kept_images.gate = asyncio.Event()
    await world.templates.pull(world.tenant, "one", "x")
    await world.restart()
    template = await world.templates.get(world.tenant, "one")
    assert (template.state, template.error_code) == (TemplateState.FAILED, "interrupted")
    world.host.kept_images.gate = None
    assert (await made(await world.templates.pull(world.tenant, "one", "x"))).state is TemplateState.READY


async def test_what_functions_start_from_is_made_ready_when_the_server_starts(world: World) -> None:
    await made(await world.templates.pull(world.tenant, "alpine", "x"))
    world.host.kept_images.made = replace(ALPINE, digest="digest-of-unused")
    await made(await world.templates.pull(world.tenant, "unused", "x"))
    await world.functions.create(world.tenant, "f", template="alpine")
    await world.functions.get(world.tenant, "sandbox")
    await world.templates.delete(world.tenant, "alpine")  # functions keep what they pinned
    await world.restart()
    await until(lambda: world.host.kept_images.made_ready == ["digest-of-alpine"])


async def test_a_slow_listener_loses_steps_and_never_the_end(world: World) -> None:
    telling = Telling()
    for number in range(3 * progress.MOST):
        telling.step(f"step {number}")

    async def end() -> Template:
        return await made(await world.templates.pull(world.tenant, "alpine", "x"))

    told = [event async for event in telling.events(asyncio.ensure_future(end()), Done)]
    assert len(told) <= progress.MOST + 1
    assert isinstance(told[-1], Done)


async def test_output_that_nobody_reads_is_dropped_and_steps_are_not(world: World) -> None:
    telling = Telling()
    telling.step("the step")
    for _ in range(4):
        telling.say("x" * (progress.MOST_TEXT // 2))

    async def end() -> Template:
        return await made(await world.templates.pull(world.tenant, "alpine", "x"))

    told = [event async for event in telling.events(asyncio.ensure_future(end()), Done)]
    assert told[0] == Step("the step")
    assert Printed("[output was dropped]\n") in told
    assert sum(len(event.text) for event in told if isinstance(event, Printed)) < 1.1 * progress.MOST_TEXT


async def test_a_build_that_is_not_one_is_refused_and_leaves_nothing(world: World) -> None:
    async def sent() -> AsyncIterator[bytes]:
        yield tar(file("Dovecotefile", b"FROM base\nADD x y\n"))

    with pytest.raises(DovecoteError) as refused:
        await made(await world.templates.build(world.tenant, "one", sent()))
    assert refused.value.code == "bad_dovecotefile"
    assert list(world.builds.iterdir()) == []


async def test_a_restart_ends_what_a_build_left_running_and_its_files(world: World) -> None:
    claim = Claim("tpl_x-1", Workspace("digest"), Limits(), NetworkPolicy(), "crun", 1, keeps_files=False)
    await world.host.claim(claim)
    (world.builds / "build-x").mkdir(parents=True)
    await world.restart()
    assert world.host.of("tpl_x-1") is None
    assert not world.builds.exists()


@pytest.mark.parametrize("name", ["base", "base:x", "a:", "a/b", "", "-x"])
async def test_a_name_that_is_none_or_the_installations_own_is_refused(world: World, name: str) -> None:
    with pytest.raises(DovecoteError):
        await world.templates.pull(world.tenant, name, "x")
