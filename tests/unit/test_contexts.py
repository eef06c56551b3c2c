"""The room of code contexts: which program is asked, and what becomes of it."""

from __future__ import annotations

import asyncio
from signal import SIGKILL

import pytest

from dovecote.control.sandboxes import Accepted, Contexts, Ended, Fault, Happening, Result, contexts
from dovecote.control.sandboxes.programs import FILES, context_command, parse_language
from dovecote.errors import DovecoteError, Invalid, NotFound
from dovecote.host.guest import Command
from dovecote.model.ids import new_id
from tests.unit.context_guest import ContextGuest, Line, Program, contexts_of

pytestmark = pytest.mark.anyio
T, S = new_id("ten"), new_id("ses")


@pytest.fixture
def guest() -> ContextGuest:
    return ContextGuest()


@pytest.fixture
def room(guest: ContextGuest) -> Contexts:
    return contexts_of(guest)


async def run(room: Contexts, code: str, **arguments: object) -> list[Happening]:
    return [each async for each in room.execute(T, S, code, **arguments)]  # type: ignore[arg-type]


async def refused(room: Contexts, **arguments: object) -> str:
    with pytest.raises(DovecoteError) as caught:
        await run(room, str(arguments.pop("code", "1")), **arguments)
    return caught.value.code


async def test_the_default_context_is_made_once_for_all_who_ask(room: Contexts, guest: ContextGuest) -> None:
    found = await asyncio.gather(*(run(room, f"{number}") for number in range(5)))
    assert len(guest.programs) == 1
    assert [each[2] for each in found] == [Result({"text/plain": f"{number}"}, True) for number in range(5)]
    assert all(isinstance(each[0], Accepted) and isinstance(each[-1], Ended) for each in found)
    assert {each[0].execution_id for each in found if isinstance(each[0], Accepted)} == {
        request["id"] for request in guest.programs[0].requests
    }


async def test_each_language_has_a_default_of_its_own(room: Contexts, guest: ContextGuest) -> None:
    for language in ("python", "js", "javascript", "node", "py", "ts"):
        await run(room, "1", language=language)
    assert [each.language for each in await room.list(T, S)] == ["python", "javascript", "typescript"]


async def test_the_programs_are_put_inside_once(room: Contexts, guest: ContextGuest) -> None:
    await room.create(T, S)
    written = {path for path in guest.files if path.rsplit("/", 1)[1] in FILES}
    assert {path.rsplit("/", 1)[1] for path in written} == set(FILES)
    before = {path: guest.files[path] for path in written}
    marks = dict.fromkeys(written, b"untouched")
    guest.files.update(marks)
    await room.create(T, S)
    assert {path: guest.files[path] for path in written} == marks != before


async def test_a_context_runs_as_it_was_asked_to_and_is_so_again_after_a_restart(
    room: Contexts, guest: ContextGuest
) -> None:
    made = await room.create(T, S, cwd="work", env={"A": "1"}, user="root")
    again = await room.restart(T, S, made.id)
    assert (again.id, again.number) == (made.id, 2)
    for program in guest.programs:
        command = program.command
        assert (command.cwd, command.user, command.env) == ("/home/user/work", "root", {"LANG": "C.UTF-8", "A": "1"})
    assert [each.number for each in await room.list(T, S)] == [2]
    assert guest.released == [1]


async def test_another_server_finds_the_contexts_again(room: Contexts, guest: ContextGuest) -> None:
    made = await room.create(T, S, cwd="/srv", env={"A": "1"})
    await run(room, "x", context_id=made.id)
    other = contexts_of(guest)
    assert await other.get(T, S, made.id) == made
    found = await run(other, "y", context_id=made.id)
    assert found[2:] == [Result({"text/plain": "y"}, True), Ended("ok", 2)]


async def test_a_stubborn_program_is_killed(
    room: Contexts, guest: ContextGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contexts, "STOPPED_WITHIN", 0.05)
    made = await room.create(T, S)
    guest.programs[0].is_stubborn = True
    await room.remove(T, S, made.id)
    assert guest.signals == [SIGKILL]
    assert await room.list(T, S) == []
    assert not any(made.id in path for path in guest.files)


async def test_a_template_without_a_kernel_says_so(room: Contexts, guest: ContextGuest) -> None:
    guest.begin = lambda program: program.end(97)
    assert await refused(room) == "no_kernel"
    with pytest.raises(NotFound) as caught:
        await room.create(T, S, language="r")
    assert (caught.value.code, "r" in caught.value.message, bool(caught.value.hint)) == ("no_kernel", True, True)

    def fail(program: Program) -> None:
        program.say(type="failed", code="kernel_failed", message="zmq is broken")
        program.end(1)

    guest.begin = fail
    assert await refused(room) == "kernel_failed"
    assert set(guest.released) == {1, 2, 3}


async def test_a_kernel_that_never_starts_is_ended(
    room: Contexts, guest: ContextGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contexts, "READY_WITHIN", 0.05)
    guest.begin = lambda program: None
    assert await refused(room) == "context_silent"
    assert guest.released == [1]


async def test_contexts_are_bounded(room: Contexts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contexts, "MOST_CONTEXTS", 2)
    for _ in range(2):
        await room.create(T, S)
    assert await refused(room) == "too_many"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"timeout": 0}, "invalid"),
        ({"timeout": 1e9}, "invalid"),
        ({"max_output": 1 << 40}, "invalid"),
        ({"language": "a/b"}, "invalid"),
        ({"language": ""}, "invalid"),
        ({"language": "x:y"}, "invalid"),
        ({"context_id": new_id("ctx")}, "no_such_context"),
    ],
)
async def test_what_makes_no_sense_is_refused(room: Contexts, arguments: dict[str, object], code: str) -> None:
    assert await refused(room, **arguments) == code
    assert await refused(room, code="x" * (1 << 20)) == "too_large"


async def test_a_command_that_only_calls_itself_a_context_is_none(room: Contexts, guest: ContextGuest) -> None:
    for tag in ("context", "context:../../etc/passwd:python:", "context:ctx_x:python:default", "start"):
        await guest.start(Command(argv=("true",), env={}, cwd="/", user="user", tag=tag))
    assert await room.list(T, S) == []


async def test_a_record_that_was_spoiled_inside_harms_nobody(room: Contexts, guest: ContextGuest) -> None:
    made = await room.create(T, S, cwd="/srv")
    for spoiled in (b"", b"[]", b'{"env": 3}', b"\xff"):
        guest.files[f"/run/dovecote/contexts/{made.id}.json"] = spoiled
        assert (await room.get(T, S, made.id)).cwd == "/home/user"


async def test_interrupting_names_the_execution(room: Contexts, guest: ContextGuest) -> None:
    made = await room.create(T, S)
    execution = new_id("exe")
    await room.interrupt(T, S, made.id, execution)
    await room.interrupt(T, S, made.id)
    assert [(each["op"], each["execution"]) for each in guest.programs[0].requests] == [
        ("interrupt", execution),
        ("interrupt", None),
    ]


async def test_an_execution_is_followed_after_its_reader_has_gone(room: Contexts, guest: ContextGuest) -> None:
    def slow(program: Program, request: Line) -> None:
        name = request["id"]
        if request["op"] == "execute":
            program.say(type="queued", id=name)
            program.say(type="began", id=name)
            program.say(type="stdout", id=name, text="so far")
        else:
            program.say(type="answer", id=name, is_there=True)
            program.say(type="done", id=request["execution"], status="ok", count=1, dropped=0)

    guest.script = slow
    made = await room.create(T, S)
    leaving = room.execute(T, S, "long", context_id=made.id)
    first = await anext(leaving)
    assert isinstance(first, Accepted)
    await leaving.aclose()

    found = [each async for each in room.follow(T, S, made.id, first.execution_id)]
    assert [type(each).__name__ for each in found] == ["Accepted", "Began", "Printed", "Ended"]


async def test_following_what_is_not_there_says_so(room: Contexts) -> None:
    made = await room.create(T, S)
    with pytest.raises(NotFound) as caught:
        async for _ in room.follow(T, S, made.id, new_id("exe")):
            pass
    assert caught.value.code == "no_such_execution"


async def test_a_program_that_ends_in_the_middle_is_told_and_made_anew(room: Contexts, guest: ContextGuest) -> None:
    guest.script = lambda program, request: program.end(None, 9)
    found = await run(room, "import os; os.abort()")
    assert isinstance(found[-2], Fault)
    assert found[-1] == Ended("died", None)
    await room.create(T, S)
    assert [each.number for each in await room.list(T, S)] == [2]


def test_a_language_has_one_name() -> None:
    assert [parse_language(text) for text in ("PY", " js ", "C++", "ts")] == [
        "python",
        "javascript",
        "c++",
        "typescript",
    ]
    with pytest.raises(Invalid):
        parse_language("$(reboot)")


def test_a_language_is_an_argument_and_never_part_of_a_script() -> None:
    for language in ("python", "javascript"):
        command = context_command("/run/x", language)
        assert command[:2] == ("/bin/sh", "-c")
        assert command[4:] == ("/run/x", language)
        assert "/run/x" not in command[2]
