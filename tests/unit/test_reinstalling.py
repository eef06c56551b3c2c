"""Dependencies that rules left out are brought back before a restored session is ready, and the result is told."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from dovecote.control.fleet import Placed
from dovecote.control.sessions.reinstalling import Step, install_command, steps, to_bring_back
from dovecote.errors import Invalid, StorageFailed
from dovecote.model.records import Session
from dovecote.model.rules import Reinstall, ReinstallState, SaveRules
from dovecote.model.states import SessionState
from tests.unit.control_world import START, World, until

MODULES = "/home/user/app/node_modules"


@pytest.mark.parametrize(
    ("name", "beside", "command"),
    [
        ("node_modules", {"package.json", "package-lock.json"}, "npm ci"),
        ("node_modules", {"package.json", "pnpm-lock.yaml"}, "pnpm install --frozen-lockfile"),
        ("node_modules", {"package.json", "yarn.lock"}, "yarn install --frozen-lockfile"),
        ("node_modules", {"package.json"}, "npm install"),
        ("node_modules", {"requirements.txt"}, None),
        (".venv", {"uv.lock", "pyproject.toml"}, "uv sync --frozen"),
        ("venv", {"uv.lock"}, None),
        ("venv", {"requirements.txt"}, "python3 -m venv venv && venv/bin/pip install --no-input -r requirements.txt"),
        (".venv", {"pyproject.toml"}, "python3 -m venv .venv && .venv/bin/pip install --no-input -e ."),
        ("build", {"package-lock.json", "requirements.txt"}, None),
    ],
)
def test_what_installs_follows_from_the_lock_file(name: str, beside: set[str], command: str | None) -> None:
    assert install_command(name, beside) == command


def test_parts_of_a_workspace_are_installed_by_its_root() -> None:
    lock, plain = {"package.json", "package-lock.json"}, {"package.json"}
    directories = {"/h/a/packages/x/node_modules": plain, "/h/a/node_modules": lock, "/h/b/node_modules": plain}
    assert steps(directories) == ([Step("npm ci", "/h/a"), Step("npm install", "/h/b")], [])
    assert steps({"/h/a/node_modules": set(), "/h/b/.venv": {"uv.lock"}}) == (
        [Step("uv sync --frozen", "/h/b")],
        ["/h/a/node_modules"],
    )


def test_only_what_was_restored_or_cut_short_is_brought_back() -> None:
    placed = Placed("ins_1", "", 1, "survivor")
    before = Reinstall(ReinstallState.RUNNING, (MODULES,))
    assert to_bring_back(before, placed) == (MODULES,)
    assert to_bring_back(replace(before, state=ReinstallState.FAILED), placed) == ()
    assert to_bring_back(None, replace(placed, left_out=("/x",))) == ("/x",)


async def restored(world: World, *, rules: SaveRules | None = None) -> Session:
    await world.functions.create(world.tenant, "node", rules=rules or SaveRules(("node_modules/",)))
    session = await world.sessions.create(world.tenant, function="node")
    await world.write(session, b"{}", "/home/user/app/package-lock.json")
    await world.sessions.park(world.tenant, session.id)
    world.host.left_out = (MODULES,)
    return await world.sessions.wake(world.tenant, session.id)


def commands(world: World, session: Session) -> list[str]:
    instance = world.host.of(session.id)
    assert instance is not None
    return [running.command.argv[-1] for running in instance.commands if running.command.tag == "reinstall"]


@pytest.mark.anyio
async def test_a_restored_session_is_ready_with_its_dependencies(world: World) -> None:
    session = await restored(world)
    assert session.state is SessionState.READY
    assert commands(world, session) == ["cd /home/user/app && npm ci"]
    instance = world.host.of(session.id)
    assert instance is not None
    assert instance.commands[0].command.user == "user"
    done = (await world.record(session)).reinstall
    assert done == Reinstall(ReinstallState.DONE, (MODULES,), "npm ci", 0, "installed\n")


@pytest.mark.anyio
async def test_a_failure_is_told_and_keeps_nobody_out(world: World) -> None:
    world.host.installs = (1, b"x" * 9000 + b"npm error ENOTFOUND")
    session = await restored(world)
    assert session.state is SessionState.READY
    assert session.reinstall is not None
    assert (session.reinstall.state, session.reinstall.exit_code) == (ReinstallState.FAILED, 1)
    assert session.reinstall.output.endswith("xnpm error ENOTFOUND")
    assert len(session.reinstall.output) == 2000
    await world.write(session, b"works")


@pytest.mark.anyio
async def test_what_takes_too_long_is_given_up(world: World) -> None:
    world.host.installs = (None, b"")
    world.sessions._reinstalling._timeout = -4.99
    session = await restored(world)
    assert session.reinstall is not None
    assert session.reinstall.state is ReinstallState.FAILED
    assert "took too long" in session.reinstall.output


@pytest.mark.anyio
async def test_the_functions_own_command_takes_the_place_of_all_others(world: World) -> None:
    session = await restored(world, rules=SaveRules(("node_modules/",), (), "make deps"))
    assert commands(world, session) == ["cd /home/user && make deps"]


@pytest.mark.anyio
async def test_without_a_lock_file_it_is_said_that_nothing_says_how(world: World) -> None:
    world.host.left_out = ("/home/user/other/node_modules", "/home/user/build")
    session = await world.sessions.create(world.tenant)
    await world.sessions.park(world.tenant, session.id)
    session = await world.sessions.wake(world.tenant, session.id)
    assert session.reinstall is not None
    assert session.reinstall.state is ReinstallState.FAILED
    assert session.reinstall.output == "nothing beside /home/user/other/node_modules says how it is installed"


@pytest.mark.anyio
async def test_a_directory_that_is_nobodys_dependency_needs_nothing(world: World) -> None:
    world.host.left_out = ("/home/user/build",)
    session = await world.sessions.create(world.tenant)
    await world.sessions.park(world.tenant, session.id)
    session = await world.sessions.wake(world.tenant, session.id)
    assert session.reinstall is None


@pytest.mark.anyio
async def test_a_survivor_needs_no_reinstalling_and_the_last_result_stays(world: World) -> None:
    session = await restored(world)
    await world.host.die(session.id)
    await world.becomes(session, SessionState.LOST)
    session = await world.sessions.wake(world.tenant, session.id)
    assert commands(world, session) == []
    assert session.reinstall is not None
    assert session.reinstall.state is ReinstallState.DONE


@pytest.mark.anyio
async def test_what_a_restart_or_a_death_cut_short_is_done_again(world: World) -> None:
    session = await restored(world)
    running = Reinstall(ReinstallState.RUNNING, (MODULES,))
    await world.rewrite(session, reinstall=running, state=SessionState.STARTING)
    await world.restart()

    async def is_done() -> bool:
        found = (await world.record(session)).reinstall
        return found is not None and found.state is ReinstallState.DONE

    await until(is_done)
    assert len(commands(world, session)) == 2
    await world.rewrite(session, reinstall=running)
    await world.host.die(session.id)
    await world.becomes(session, SessionState.LOST)
    session = await world.sessions.wake(world.tenant, session.id)
    assert len(commands(world, session)) == 1
    assert await is_done()


@pytest.mark.anyio
async def test_an_app_gets_the_files_that_rules_leave_out(world: World) -> None:
    session = await restored(world)
    app = await world.apps.publish(world.tenant, session.id, start=START)
    revision = await world.functions.revision(world.tenant, app.revision_id)
    record = await world.record(session)
    assert revision.tree is not None
    assert record.tree is not None
    assert (revision.tree.endswith("-whole"), record.tree.endswith("-whole")) == (True, False)


@pytest.mark.anyio
async def test_rules_are_checked_and_kept_on_the_revision(world: World) -> None:
    rules = SaveRules(("node_modules/",), ("keep.log",), "make deps")
    function = await world.functions.create(world.tenant, "f", rules=rules)
    assert (await world.store.tenant(world.tenant).revisions.get(function.revision_id)).rules == rules
    session = await world.sessions.create(world.tenant, function="f")
    assert (world.host.claims[-1].rules, world.host.claims[-1].home) == (rules, "/home/user")
    with pytest.raises(Invalid):
        await world.functions.create(world.tenant, "g", rules=SaveRules(("/usr",)))
    assert session.reinstall is None


@pytest.mark.anyio
async def test_a_session_that_dies_while_it_installs_is_ready_for_another_try(world: World) -> None:
    world.host.installs = (None, b"")
    waking = asyncio.ensure_future(restored(world))

    async def is_installing() -> bool:
        return any(r.command.tag == "reinstall" for i in world.host.instances.values() for r in i.commands)

    await until(is_installing)
    (instance,) = world.host.instances.values()
    for running in instance.commands:
        running.exit_code = -9
    await world.host.die(instance.claim.owner)
    session = await waking
    assert session.reinstall is not None
    assert session.reinstall.state is ReinstallState.FAILED
    await world.tick()
    await world.becomes(session, SessionState.LOST)
    world.host.refuse("claim", StorageFailed("no store", code="store_unreachable"), times=1)
    with pytest.raises(StorageFailed):
        await world.sessions.wake(world.tenant, session.id)
    assert (await world.sessions.wake(world.tenant, session.id)).state is SessionState.READY
