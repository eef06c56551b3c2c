"""Commands, files and watches as E2B's wire tells them, over a sandbox that does what a test says."""

from __future__ import annotations

import asyncio
import base64
import posixpath
from collections.abc import AsyncGenerator, AsyncIterator
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from starlette.datastructures import Headers

from dovecote.api.e2b import filesystem
from dovecote.api.e2b.call import Call, absolute, check_user, identity, parse_user
from dovecote.api.e2b.connect import Pace
from dovecote.api.e2b.filesystem import Filesystem, permissions, render_entry
from dovecote.api.e2b.messages import Json, Message
from dovecote.api.e2b.process import Processes
from dovecote.api.e2b.watching import Watching
from dovecote.control.sandboxes import CommandStatus, Event, Exited, FileChange, Output, Started, Stat
from dovecote.errors import (
    Conflict,
    DeadlineExceeded,
    DovecoteError,
    Failed,
    Forbidden,
    Invalid,
    NoCapacity,
    NotFound,
    Unauthenticated,
)
from tests.unit.test_e2b_ports import session

pytestmark = pytest.mark.anyio

BEGAN = datetime(2026, 11, 1, tzinfo=UTC)
OUTPUT = Output("stdout", 0, b"out")


class Watchers:
    def __init__(self) -> None:
        self.changes: list[FileChange] = []

    async def create(self, *_: object, **__: object) -> str:
        return "wat_1"

    def take(self, *_: object) -> list[FileChange]:
        taken, self.changes = self.changes, []
        return taken


class Sandbox:
    """Files are bytes by path, directories None. `refusals` are what the next calls of a user other than root raise."""

    def __init__(self) -> None:
        self.files: dict[str, bytes | None] = {"/": None, "/home": None, "/home/user": None}
        self.refusals: list[DovecoteError] = []
        self.reads_ahead = 0  # chunks of a body that are taken before it is refused
        self.given: list[str] = []
        self.calls: list[tuple[Any, ...]] = []
        self.statuses: list[CommandStatus] = []
        self.events: list[Event] = []
        self.watchers = Watchers()

    async def home(self, *_: object, user: str | None = None) -> str:
        return "/root" if user == "root" else "/home/user"

    async def user(self, *_: object) -> str:
        return "user"

    def _enter(self, user: str | None) -> None:
        if user != "root" and self.refusals:
            raise self.refusals.pop(0)

    async def stat(self, _: str, __: str, path: str, *, user: str | None = None, follow: bool = True) -> Stat:
        if self.files.get(posixpath.dirname(path)) is not None:
            raise Invalid(path, code="not_a_directory")
        if path not in self.files:
            raise NotFound(path, code="file_not_found")
        content = self.files[path]
        return Stat("directory" if content is None else "file", 0o644, 0, 0, len(content or b""), 0, "")

    async def write_file(
        self, _: str, __: str, path: str, chunks: AsyncIterator[bytes], *, user: str | None = None, metadata: Any = None
    ) -> None:
        for _taken in range(self.reads_ahead if user != "root" else 0):
            await anext(chunks)
        self._enter(user)
        self.files[path] = b"".join([chunk async for chunk in chunks])
        self.calls.append(("write", path, user, metadata))

    async def make_dir(self, _: str, __: str, path: str, *, user: str | None = None) -> bool:
        self._enter(user)
        is_new = path not in self.files
        self.files[path] = None
        return is_new

    async def remove(self, _: str, __: str, path: str, *, recursive: bool, user: str | None = None) -> None:
        self._enter(user)
        if path not in self.files:
            raise NotFound(path, code="file_not_found")
        del self.files[path]

    async def run(self, *_: object, argv: list[str], user: str) -> None:
        assert (argv[:4], user) == (["chown", "-h", "user:", "--"], "root")
        self.given += argv[4:]

    async def commands(self, *_: object) -> list[CommandStatus]:
        return self.statuses

    async def stream(self, *_: object, **asked: Any) -> AsyncGenerator[Event, None]:
        self.calls.append(("stream", asked))
        yield Started(1, 7, BEGAN)
        for event in self.events:
            yield event

    async def read_file(self, _: str, __: str, path: str, **___: object) -> AsyncGenerator[bytes, None]:
        """Of /proc only: a name with everything in it that could mislead, and no terminal."""
        yield {"cmdline": b"/bin/sleep\x00600\x00", "stat": b"7 (a) S 9) S 1 7 7 0 -1 4194304"}[path.rpartition("/")[2]]

    async def attach(self, _: str, __: str, number: int, *, offset: int = 0) -> AsyncGenerator[Event, None]:
        self.calls.append(("attach", number, offset))
        for event in self.events:
            yield event

    async def release(self, _: str, __: str, number: int) -> None:
        self.calls.append(("release", number))

    async def signal(self, _: str, __: str, number: int, signo: int) -> None:
        self.calls.append(("signal", number, signo))

    async def write_stdin(self, _: str, __: str, number: int, data: bytes) -> None:
        self.calls.append(("stdin", number, data))


@pytest.fixture
def sandbox() -> Sandbox:
    return Sandbox()


@pytest.fixture
def processes(sandbox: Sandbox) -> Processes:
    return Processes(cast(Any, sandbox))


@pytest.fixture
def files(sandbox: Sandbox) -> Filesystem:
    return Filesystem(cast(Any, sandbox))


CALL = Call(session(), None, Pace(None, 90))
START = {"process": {"cmd": "/bin/bash", "args": ["-l"], "envs": {"A": "b"}, "cwd": "~/x"}, "tag": "t"}


def running(pid: int = 7, tag: str = "") -> CommandStatus:
    return CommandStatus(1, tag, pid, True, None, None, False, BEGAN, 3)


async def told(messages: AsyncIterator[Json]) -> list[Json]:
    return [message["event"] async for message in messages]


# -- commands


@pytest.mark.parametrize(
    ("exited", "end"),
    [
        (Exited(0, None, False, 3), {"exitCode": 0, "exited": True, "status": "exit status 0"}),
        (
            Exited(3, None, False, 3),
            {"exitCode": 3, "exited": True, "status": "exit status 3", "error": "exit status 3"},
        ),
        (
            Exited(None, 9, False, 3),
            {"exitCode": -1, "exited": False, "status": "signal: killed", "error": "signal: killed"},
        ),
    ],
)
async def test_a_command_is_told_from_its_start_to_its_end(
    sandbox: Sandbox, processes: Processes, exited: Exited, end: Json
) -> None:
    sandbox.events = [OUTPUT, Output("stderr", 3, b"err"), exited]
    assert await told(processes.start(CALL, Message(START))) == [
        {"start": {"pid": 7}},
        {"data": {"stdout": base64.b64encode(b"out").decode()}},
        {"data": {"stderr": base64.b64encode(b"err").decode()}},
        {"end": end},
    ]
    asked = sandbox.calls[0][1]
    assert (asked["argv"], asked["cwd"]) == (("/bin/bash", "-l"), "/home/user/x")
    assert asked["env"] == {**identity(CALL.session), "A": "b"}
    assert (asked["stdin"], asked["pty"], asked["tag"]) == (True, None, "t")
    assert sandbox.calls[1:] == [("release", 1)]


async def test_the_output_of_a_terminal_is_its_own(sandbox: Sandbox, processes: Processes) -> None:
    sandbox.events = [OUTPUT, Exited(0, None, False, 3)]
    asked = Message({**START, "pty": {"size": {"cols": 81, "rows": 20}}, "stdin": False})
    assert {"data": {"pty": base64.b64encode(b"out").decode()}} in await told(processes.start(CALL, asked))
    assert (sandbox.calls[0][1]["pty"], sandbox.calls[0][1]["stdin"]) == ((20, 81), False)


async def test_a_timeout_ends_the_stream_with_an_error(sandbox: Sandbox, processes: Processes) -> None:
    sandbox.events = [Exited(None, 9, True, 0)]
    with pytest.raises(DeadlineExceeded):
        await told(processes.start(Call(session(), None, Pace(5.0, 90)), Message(START)))
    assert sandbox.calls[0][1]["timeout"] == 5.0


async def test_a_stream_that_is_left_ends_nothing_and_forgets_nothing(sandbox: Sandbox, processes: Processes) -> None:
    sandbox.events = [OUTPUT, OUTPUT]
    messages = processes.start(CALL, Message(START))
    await anext(messages)
    await anext(messages)
    await messages.aclose()
    assert [call[0] for call in sandbox.calls] == ["stream"]


async def test_an_ended_command_is_kept_for_others_that_read_it(sandbox: Sandbox, processes: Processes) -> None:
    sandbox.events = [OUTPUT, Exited(0, None, False, 3)]
    sandbox.statuses = [running()]
    other = processes.connect(CALL, Message({"process": {"pid": 7}}))
    assert await anext(other) == {"event": {"start": {"pid": 7}}}
    await anext(other)
    await told(processes.start(CALL, Message(START)))
    assert ("release", 1) not in sandbox.calls
    await told(other)
    assert sandbox.calls[-1] == ("release", 1)


async def test_commands_are_named_by_pid_or_tag_while_they_run(sandbox: Sandbox, processes: Processes) -> None:
    sandbox.statuses = [running(tag="mine"), CommandStatus(2, "", 9, False, 0, None, False, BEGAN, 0)]
    kill = {"signal": "SIGNAL_SIGKILL"}
    for name in ({"pid": 7}, {"tag": "mine"}):
        await processes.send_signal(CALL, Message({"process": name, **kill}))
    assert sandbox.calls == [("signal", 1, 9)] * 2
    for name in ({"pid": 9}, {"pid": 8}, {"tag": "other"}):
        with pytest.raises(NotFound):
            await processes.send_signal(CALL, Message({"process": name, **kill}))
    with pytest.raises(Invalid):
        await processes.send_signal(CALL, Message({"process": {}, **kill}))


async def test_input_follows_the_message_that_names_its_command(sandbox: Sandbox, processes: Processes) -> None:
    sandbox.statuses = [running()]

    async def messages(*bodies: Json) -> AsyncIterator[Message]:
        for body in bodies:
            yield Message(body)

    start, data = {"start": {"process": {"pid": 7}}}, {"data": {"input": {"stdin": "YQ=="}}}
    await processes.stream_input(CALL, messages(start, data, {"keepalive": {}}, data))
    assert sandbox.calls == [("stdin", 1, b"a")] * 2
    with pytest.raises(Invalid):
        await processes.stream_input(CALL, messages(data))


async def test_a_command_that_somebody_else_started_is_told_as_its_proc_shows_it(
    sandbox: Sandbox, processes: Processes
) -> None:
    sandbox.statuses = [running(tag="t\udcff")]
    assert await processes.running(CALL, Message({})) == {
        "processes": [{"config": {"cmd": "/bin/sleep", "args": ("600",), "envs": {}}, "pid": 7, "tag": "t\ufffd"}]
    }


def test_a_program_learns_in_which_sandbox_it_is() -> None:
    known = identity(session())
    assert (known["E2B_SANDBOX"], known["E2B_SANDBOX_ID"]) == ("true", session().slug)
    assert "E2B_SANDBOX_ID" not in identity(session(env={"E2B_SANDBOX_ID": "mine"}))


# -- users and paths


@pytest.mark.parametrize("name", ["a:b", "root:", "a\0b", "x" * 65])
def test_names_that_are_more_than_a_name_are_nobodys(name: str) -> None:
    with pytest.raises(Unauthenticated):
        check_user(name)


def test_the_user_is_the_name_of_basic_authorization() -> None:
    def named(value: str) -> str | None:
        return parse_user(Headers({"authorization": value}))

    assert named("Basic " + base64.b64encode(b"root:").decode()) == "root"
    assert named("Basic " + base64.b64encode(b":").decode()) is None
    assert named("Bearer x") is None
    with pytest.raises(Unauthenticated):
        named("Basic %%%")


@pytest.mark.parametrize(
    ("path", "user", "found"),
    [
        ("a", None, "/home/user/a"),
        ("a", "root", "/root/a"),
        ("", None, "/home/user"),
        ("~", "root", "/root"),
        ("~/a", None, "/home/user/a"),
        ("/a/../../b/./c/", None, "/b/c"),
        ("//a", None, "/a"),
        ("../../../..", None, "/"),
    ],
)
async def test_a_path_is_made_plain(sandbox: Sandbox, path: str, user: str | None, found: str) -> None:
    assert await absolute(cast(Any, sandbox), CALL, path, user) == found


# -- files


async def test_below_a_file_there_is_nothing(sandbox: Sandbox, files: Filesystem) -> None:
    sandbox.files["/a"] = b""
    with pytest.raises(NotFound):
        await files.stat(CALL, Message({"path": "/a/b"}))


async def body(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def test_what_the_user_may_not_write_is_written_as_root_and_given_to_the_user(
    sandbox: Sandbox, files: Filesystem
) -> None:
    sandbox.refusals = [Forbidden("no", code="permission_denied")]
    sandbox.reads_ahead = 2
    await files.write(CALL, "/srv/app/conf", body(b"a", b"b", b"c"), {"k": "v"})
    assert sandbox.files["/srv/app/conf"] == b"abc"
    assert sandbox.calls == [("write", "/srv/app/conf", "root", {"k": "v"})]
    assert sandbox.given == ["/srv", "/srv/app", "/srv/app/conf", "/srv/app/conf"]


async def test_an_upload_of_which_too_much_was_read_is_not_begun_again(
    sandbox: Sandbox, files: Filesystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filesystem, "MOST_KEPT", 3)
    sandbox.refusals = [Forbidden("no", code="permission_denied")]
    sandbox.reads_ahead = 2
    with pytest.raises(Forbidden):
        await files.write(CALL, "/srv/x", body(b"aa", b"bb", b"cc"))
    assert "/srv/x" not in sandbox.files


async def test_nobody_is_more_than_root_and_an_unknown_user_is_not_root(sandbox: Sandbox, files: Filesystem) -> None:
    sandbox.refusals = [NotFound("no such user", code="no_such_user")]
    with pytest.raises(NotFound, match="no such user"):
        await files.write(Call(session(), "nobody", Pace(None, 90)), "/a", body(b"x"))
    assert "/a" not in sandbox.files


async def test_a_sandbox_that_does_much_at_once_is_waited_for(
    sandbox: Sandbox, files: Filesystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox.refusals = [NoCapacity("busy", code="too_many")] * 3
    await files.write(CALL, "/home/user/a", body(b"x", b"y"))
    assert sandbox.files["/home/user/a"] == b"xy"
    monkeypatch.setattr(filesystem, "PATIENCE", 0.0)
    sandbox.refusals = [NoCapacity("busy", code="too_many")] * 5
    with pytest.raises(NoCapacity):
        await files.write(CALL, "/home/user/a", body(b"z"))


async def test_making_and_removing_say_what_was_there(sandbox: Sandbox, files: Filesystem) -> None:
    made = await files.make_dir(CALL, Message({"path": "d"}))
    assert made["entry"]["path"] == "/home/user/d"
    with pytest.raises(Conflict) as refused:
        await files.make_dir(CALL, Message({"path": "d"}))
    assert refused.value.code == "exists"
    sandbox.files["/home/user/f"] = b""
    with pytest.raises(Invalid):
        await files.make_dir(CALL, Message({"path": "f"}))
    for _ in range(2):
        assert await files.remove(CALL, Message({"path": "f"})) == {}


@pytest.mark.parametrize(
    ("kind", "mode", "text"),
    [
        ("file", 0o644, "-rw-r--r--"),
        ("directory", 0o755, "drwxr-xr-x"),
        ("link", 0o777, "Lrwxrwxrwx"),
        ("file", 0o4755, "urwxr-xr-x"),
        ("directory", 0o1777, "dtrwxrwxrwx"),
        ("character", 0o666, "Dcrw-rw-rw-"),
    ],
)
def test_a_mode_is_written_as_go_writes_it(kind: Any, mode: int, text: str) -> None:
    assert permissions(Stat(kind, mode, 0, 0, 0, 0, "")) == text


def test_an_entry_holds_what_json_can_hold() -> None:
    stat = Stat(
        "link", 0o777, 1000, 1000, 3, 1_700_000_000_000_000_000, "../b\udcff", owner="user", metadata={"k": "v"}
    )
    entry = render_entry("/home/a/l\udcff", stat)
    assert entry == {
        "name": "l\ufffd",
        "type": "FILE_TYPE_SYMLINK",
        "path": "/home/a/l\ufffd",
        "size": "3",
        "mode": 0o777,
        "permissions": "Lrwxrwxrwx",
        "owner": "user",
        "group": "1000",
        "modifiedTime": "2023-11-14T22:13:20Z",
        "metadata": {"k": "v"},
        "symlinkTarget": "/home/b\ufffd",
        "isSymlink": True,
    }


# -- watches


async def test_events_that_were_missed_are_told_after_those_that_were_not(sandbox: Sandbox, files: Filesystem) -> None:
    watching = Watching(cast(Any, sandbox), files)
    sandbox.files["/home/user/new"] = b"123"
    watcher = await watching.create_watcher(CALL, Message({"path": "", "includeEntry": True}))
    sandbox.watchers.changes = [FileChange("rename", "old", "new"), FileChange("chmod", "gone"), FileChange("overflow")]
    answer = await watching.get_watcher_events(CALL, Message(watcher))
    assert [(each["name"], each["type"], "entry" in each) for each in answer["events"]] == [
        ("old", "EVENT_TYPE_RENAME", False),
        ("new", "EVENT_TYPE_CREATE", True),
        ("gone", "EVENT_TYPE_CHMOD", False),
    ]
    with pytest.raises(Failed) as missed:
        await watching.get_watcher_events(CALL, Message(watcher))
    assert missed.value.code == "changes_missed"
    assert await watching.get_watcher_events(CALL, Message(watcher)) == {"events": []}
    sandbox.watchers.changes = [FileChange("overflow")]
    with pytest.raises(Failed):
        await watching.get_watcher_events(CALL, Message(watcher))


async def test_a_cancelled_stream_detaches_at_once(sandbox: Sandbox, processes: Processes) -> None:
    detached = asyncio.Event()

    async def endless(*_: object, **__: object) -> AsyncGenerator[Event, None]:
        try:
            yield Started(1, 7, BEGAN)
            await asyncio.Event().wait()
        finally:
            detached.set()

    sandbox.stream = endless  # type: ignore[method-assign]
    reading = asyncio.create_task(told(processes.start(CALL, Message(START))))
    await asyncio.sleep(0)
    reading.cancel()
    async with asyncio.timeout(5):
        await detached.wait()
