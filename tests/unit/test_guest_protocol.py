"""The host believes nothing that a guest says: every byte is parsed, or is one clear error."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovecote.errors import Conflict, DovecoteError, Failed, Forbidden, Invalid, NotFound, StorageFailed
from dovecote.host.guest import Command, Guest, channel, file_calls, files, protocol
from dovecote.host.guest.build import SOURCES
from dovecote.host.guest.connection import Connection
from dovecote.host.guest.protocol import Kind, render_frame, render_start
from dovecote.host.guest.refusals import parse_refusal

PARSERS: list[Callable[[bytes], object]] = [
    protocol.parse_hello,
    protocol.parse_started,
    protocol.parse_commands,
    files.parse_entries,
    files.parse_change,
    protocol.parse_ports,
    protocol.parse_port_state,
    lambda data: protocol.parse_event(Kind.OUTPUT, data),
    lambda data: protocol.parse_event(Kind.DROPPED, data),
    lambda data: protocol.parse_event(Kind.EXITED, data),
    lambda data: parse_refusal(data, "x"),
]


@given(st.sampled_from(PARSERS), st.binary(max_size=200))
def test_a_payload_is_parsed_or_is_garbage(parse: Callable[[bytes], object], data: bytes) -> None:
    try:
        parse(data)
    except Failed as error:
        told = error.code
    else:
        told = "guest_protocol"
    assert told in ("guest_protocol", "guest_failed")


@given(st.integers(0, 255), st.binary(max_size=50))
def test_an_event_of_unknown_kind_is_garbage(kind: int, data: bytes) -> None:
    if kind in (Kind.OUTPUT, Kind.DROPPED, Kind.EXITED):
        return
    with pytest.raises(Failed) as error:
        protocol.parse_event(kind, data)
    assert error.value.code == "guest_protocol"


def test_a_count_that_lies_costs_nothing() -> None:
    for parse in (protocol.parse_commands, protocol.parse_ports):
        with pytest.raises(Failed):
            parse(b"\xff\xff\xff\xff")


def test_another_version_is_refused() -> None:
    with pytest.raises(Failed, match="version 9"):
        protocol.parse_hello(struct.pack("<HQI", 9, 0, 0) + protocol.text("id"))


words_of = st.text(st.characters())  # halves of surrogate pairs too


@given(words_of, st.lists(words_of, max_size=4), st.dictionaries(words_of, words_of, max_size=3), words_of)
def test_a_start_is_rendered_whole_or_refused(program: str, words: list[str], env: dict[str, str], cwd: str) -> None:
    try:
        frame = render_start(Command((program, *words), env=env, cwd=cwd))
    except Invalid:
        text = "".join([program, *words, *env, *env.values(), cwd])
        broken = any("\ud800" <= c <= "\udfff" or c == "\0" for c in text)
        assert broken or any(not name or "=" in name for name in env)
        return
    payload = protocol.Payload(frame[5:])
    payload.number(13)
    assert [payload.text() for _ in range(3)] == ["", "root", cwd]
    assert [payload.text() for _ in range(payload.number(2))] == [program, *words]
    assert [payload.text() for _ in range(payload.number(2))] == [f"{k}={v}" for k, v in env.items()]
    payload.end()


def test_both_sides_have_the_same_kinds_and_bounds() -> None:
    header = (SOURCES / "guest.h").read_text()
    body = re.search(r"enum kind \{(.*?)\};", header, re.S)
    assert body is not None
    value, kinds = -1, {}
    for item in re.sub(r"\s", "", body[1]).strip(",").split(","):
        name, _, given_value = item.partition("=")
        value = int(given_value) if given_value else value + 1
        kinds[name] = value
    assert kinds == {kind.name: kind.value for kind in Kind}
    for name, ours in {
        "PROTOCOL_VERSION = 2,": protocol.VERSION == 2,
        "MAX_FRAME = 1 << 20,": protocol.MAX_FRAME == 1 << 20,
        "MAX_TAG = 128,": protocol.MAX_TAG == 128,
        "RING_DEFAULT = 1 << 20,": protocol.RING_DEFAULT == 1 << 20,
        "RING_MAX = 16 << 20,": protocol.RING_MAX == 16 << 20,
        "MOST_METADATA = 64,": files.MOST_METADATA == 64,
        "MOST_METADATA_BYTES = 4096,": files.MOST_METADATA_BYTES == 4096,
    }.items():
        assert ours
        assert name in header


def test_the_reference_page_names_every_kind_and_problem() -> None:
    page = (Path(__file__).parents[2] / "docs/reference/guest-protocol.md").read_text()
    names = re.search(r"names\[\] = \{(.*?)\};", (SOURCES / "wire.c").read_text(), re.S)
    assert names is not None
    missing = [kind.name for kind in Kind if f"`{kind.name}`" not in page]
    missing += [name for name in re.findall(r'"(\w+)"', names[1]) if f"`{name}`" not in page]
    assert missing == []


@pytest.mark.parametrize(
    ("problem", "errno_name", "kind", "code"),
    [
        ("io", "ENOENT", NotFound, "file_not_found"),
        ("io", "ENOSPC", StorageFailed, "disk_full"),
        ("io", "EDQUOT", StorageFailed, "disk_full"),
        ("io", "EACCES", Forbidden, "permission_denied"),
        ("io", "EISDIR", Invalid, "is_directory"),
        ("io", "EIO", Failed, "guest_failed"),
        ("bad_executable", "ENOENT", NotFound, "command_not_found"),
        ("bad_executable", "ENOEXEC", Invalid, "not_executable"),
        ("bad_executable", "EACCES", Forbidden, "permission_denied"),
        ("bad_cwd", "EACCES", Forbidden, "permission_denied"),
        ("no_such_user", "", NotFound, "no_such_user"),
        ("still_running", "", Conflict, "still_running"),
        ("a new one", "E\u2028 <b>", Failed, "guest_failed"),
    ],
)
def test_a_refusal_becomes_an_error_that_can_be_acted_on(
    problem: str, errno_name: str, kind: type[DovecoteError], code: str
) -> None:
    error = parse_refusal(protocol.text(problem) + protocol.text(errno_name), "{x}")
    assert type(error) is kind
    assert error.code == code
    assert "\u2028" not in error.message


# -- a guest that lies


@contextlib.asynccontextmanager
async def answering(answer: bytes, *, then_close: bool = True) -> AsyncIterator[Guest]:
    """Says `answer` to whoever connects."""
    held: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)
        with contextlib.suppress(ConnectionError):
            await reader.read(1)
            writer.write(answer)
            await writer.drain()
            if then_close:
                writer.close()

    with tempfile.TemporaryDirectory(prefix="guest-") as directory:
        path = Path(directory) / "s"
        async with await asyncio.start_unix_server(serve, path):
            try:
                yield Guest(path)
            finally:
                for writer in held:
                    writer.close()


async def whole(parts: AsyncIterator[object]) -> list[object]:
    return [part async for part in parts]


CALLS: list[Callable[[Guest], Awaitable[object]]] = [
    lambda g: g.hello(timeout=2),
    lambda g: g.start(Command(("x",))),
    lambda g: g.run(Command(("x",)), stdin=b"x"),
    lambda g: whole(g.attach(1)),
    lambda g: whole(g.stream(Command(("x",)))),
    lambda g: g.list_commands(),
    lambda g: g.write_stdin(1, b"x"),
    lambda g: whole(g.read_file("/x", user="u", length=3)),
    lambda g: g.write_file("/x", b"x", user="u"),
    lambda g: g.stat("/x", user="u"),
    lambda g: g.list_dir("/x", user="u", most=2),
    lambda g: g.make_dir("/x", user="u"),
    lambda g: g.make_link("/x", "y", user="u"),
    lambda g: g.alter("/x", user="u", mode=0, metadata={"a": "b"}),
    lambda g: g.rename("/x", "/y", user="u"),
    lambda g: whole(g.watch("/x", user="u")),
    lambda g: g.ports(),
    lambda g: g.wait_port(1, 0.1),
    lambda g: g.shutdown(0),
]

STARTED = render_frame(Kind.STARTED, struct.pack("<IIQ", 1, 2, 3))
frames = st.one_of(
    st.binary(max_size=80),
    st.builds(lambda kind, data: render_frame(kind, data), st.sampled_from(Kind), st.binary(max_size=60)),
    st.builds(lambda kind: render_frame(kind), st.sampled_from(Kind)),
    st.builds(lambda length, kind: struct.pack("<IB", length, kind), st.integers(0, 2**32 - 1), st.integers(0, 255)),
    st.just(STARTED),
)


@given(st.sampled_from(CALLS), st.lists(frames, max_size=6))
def test_a_lying_guest_is_an_error_or_an_answer_and_never_anything_else(
    call: Callable[[Guest], Awaitable[object]], answer: list[bytes]
) -> None:
    async def ask() -> None:
        async with answering(b"".join(answer)) as guest, asyncio.timeout(20):
            with contextlib.suppress(DovecoteError):
                await call(guest)

    asyncio.run(ask())


@pytest.mark.anyio
async def test_a_length_over_the_bound_is_garbage_before_any_of_it_is_read() -> None:
    async with answering(struct.pack("<IB", protocol.MAX_FRAME + 1, Kind.IS_HELLO), then_close=False) as guest:
        with pytest.raises(Failed) as error:
            await guest.hello(timeout=20)
        assert error.value.code == "guest_protocol"


@pytest.mark.anyio
async def test_silence_is_an_error_after_the_timeout_also_in_the_middle_of_a_frame() -> None:
    for said in (b"", b"\x10\0", struct.pack("<IB", 20, Kind.IS_HELLO) + b"x"):
        async with answering(said, then_close=False) as guest:
            with pytest.raises(Failed) as error:
                await guest.hello(timeout=0.05)
            assert error.value.code == "guest_unreachable"


@pytest.mark.anyio
async def test_more_of_a_file_or_a_listing_than_was_asked_for_is_garbage() -> None:
    async with answering(render_frame(Kind.CONTENT, b"four") * 100, then_close=False) as guest:
        with pytest.raises(Failed, match="more of a file"):
            await whole(guest.read_file("/x", user="u", length=10))
    names = b"".join(map(protocol.text, ("x", "", "root", "root")))
    entry = struct.pack("<BIIIQq", ord("-"), 0, 0, 0, 0, 0) + names + b"\0\0"
    async with answering(render_frame(Kind.ENTRIES, entry * 5), then_close=False) as guest:
        with pytest.raises(Failed, match="more entries"):
            await guest.list_dir("/x", user="u", most=4)


@pytest.mark.anyio
async def test_a_guest_that_talks_without_end_costs_a_bounded_time_and_its_caller_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(channel, "LAST_EVENT_WITHIN", 0.05)
    monkeypatch.setattr(file_calls, "TREE_WITHIN", 0.1)
    names = b"".join(map(protocol.text, ("x", "", "", "")))
    entry = struct.pack("<BIIIQq", ord("-"), 0, 0, 0, 0, 0) + names + b"\0\0"
    output = render_frame(Kind.OUTPUT, struct.pack("<BQ", 1, 0) + b"x")
    calls: list[tuple[bytes, bytes, Callable[[Guest], Awaitable[object]]]] = [
        (STARTED, output, lambda guest: guest.run(Command(("x",), timeout=0.05))),
        (b"", render_frame(Kind.ENTRIES, entry), lambda guest: guest.list_dir("/x", user="u")),
    ]
    for first, endless, call in calls:
        with talking(first, endless * 100) as guest:
            turns = 0

            async def others() -> None:
                nonlocal turns
                while True:
                    await asyncio.sleep(0)
                    turns += 1

            counting = asyncio.ensure_future(others())
            async with asyncio.timeout(20):
                with pytest.raises(Failed) as error:
                    await call(guest)
            counting.cancel()
            assert error.value.code in ("guest_unreachable", "guest_protocol")
            assert turns > 10


@contextlib.contextmanager
def talking(first: bytes, endless: bytes) -> Iterator[Guest]:
    """Faster than we can listen: a thread that says `endless` again and again to the first who connects."""

    def talk(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            peer, _ = listener.accept()
            with peer:
                peer.sendall(first)
                while True:
                    peer.sendall(endless)

    with tempfile.TemporaryDirectory(prefix="guest-") as directory, socket.socket(socket.AF_UNIX) as listener:
        path = Path(directory) / "s"
        listener.bind(str(path))
        listener.listen(8)
        thread = threading.Thread(target=talk, args=(listener,))
        thread.start()
        try:
            yield Guest(path)
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(20)


@pytest.mark.anyio
async def test_frames_that_are_there_already_are_received_without_keeping_others_waiting() -> None:
    async with answering(render_frame(Kind.DONE) * 5000) as guest:
        connection = await Connection.open(guest._path)
        await connection.send(b"x")
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        counting = asyncio.ensure_future(others())
        for _ in range(5000):
            assert await connection.receive(20) == (Kind.DONE, b"")
        counting.cancel()
        connection.close()
        assert turns >= 5000 // 64


@pytest.mark.anyio
async def test_nobody_there_is_an_error() -> None:
    with tempfile.TemporaryDirectory(prefix="guest-") as directory:
        path = Path(directory) / "s"
        for _ in range(2):
            with pytest.raises(Failed) as error:
                await Guest(path).hello()
            assert error.value.code == "guest_unreachable"
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as left:
                left.bind(str(path))  # then a socket that nobody listens on


@pytest.mark.anyio
async def test_a_long_path_of_a_socket_works_too() -> None:
    with tempfile.TemporaryDirectory(prefix="guest-") as directory:
        deep = Path(directory) / ("x" * 100) / ("y" * 100)
        deep.mkdir(parents=True)
        with socket.socket(socket.AF_UNIX) as listener:
            short = Path(directory) / "s"
            listener.bind(str(short))
            listener.listen(1)
            (deep / "s").hardlink_to(short)
            (await Connection.open(deep / "s")).close()


@pytest.mark.anyio
async def test_a_full_backlog_is_waited_for_and_then_an_error() -> None:
    with tempfile.TemporaryDirectory(prefix="guest-") as directory, socket.socket(socket.AF_UNIX) as listener:
        path = Path(directory) / "s"
        listener.bind(str(path))
        listener.listen(0)
        first = await Connection.open(path)
        with pytest.raises(Failed, match="no connections"):
            await Connection.open(path, timeout=0.05)
        first.close()
