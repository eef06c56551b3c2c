"""What E2B's wire is made of: messages, envelopes, forms and signatures, and bytes that are none of them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import string
import zlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers, QueryParams

from dovecote import errors
from dovecote.api.e2b import connect
from dovecote.api.e2b.connect import END, HEAD, MAX_MESSAGE, Frames, code_of, envelope, parse_pace, read_messages
from dovecote.api.e2b.files import decoded, parse_range
from dovecote.api.e2b.messages import Message
from dovecote.api.e2b.multipart import Multipart, parse_boundary
from dovecote.api.e2b.signing import parse_signed, signature
from dovecote.errors import DovecoteError, Invalid, Unauthenticated

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
NAMES = st.text(string.ascii_letters + string.digits + "/ ._-%\"'\\äé漢", min_size=1, max_size=30)


def receiver(pieces: Sequence[bytes]) -> Any:
    """A request's body as a server gives it."""
    events = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    events.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> Any:
        return events.pop(0)

    return receive


async def source(pieces: Sequence[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


def cut(data: bytes, at: list[int]) -> list[bytes]:
    places = sorted({min(each, len(data)) for each in at})
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]


# -- envelopes


@given(st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=50)), max_size=5), st.lists(st.integers(0, 300)))
def test_envelopes_are_the_same_however_they_are_cut(frames: list[tuple[int, bytes]], at: list[int]) -> None:
    data = b"".join(HEAD.pack(flags, len(payload)) + payload for flags, payload in frames)
    reader = Frames()
    found = [frame for piece in cut(data, at) for frame in reader.feed(piece)]
    reader.end()
    assert found == frames


@given(st.binary(max_size=200))
def test_any_bytes_are_messages_or_an_invalid_request(data: bytes) -> None:
    async def read() -> list[Message]:
        return [each async for each in read_messages(receiver([data]), Headers({"connect-content-encoding": "gzip"}))]

    with contextlib.suppress(Invalid):
        asyncio.run(read())


def test_a_length_that_is_too_large_is_refused_before_its_bytes_come() -> None:
    with pytest.raises(Invalid, match="more than"):
        Frames().feed(HEAD.pack(0, MAX_MESSAGE + 1))


def test_a_stream_that_ends_in_a_message_is_refused() -> None:
    reader = Frames()
    assert reader.feed(envelope({"a": 1})[:-1]) == []
    with pytest.raises(Invalid, match="ends in the middle"):
        reader.end()


def test_a_compressed_message_is_bounded_by_what_it_unpacks_to() -> None:
    bomb = zlib.compress(bytes(MAX_MESSAGE + 1), wbits=31)

    async def read() -> None:
        headers = Headers({"connect-content-encoding": "gzip"})
        async for _ in read_messages(receiver([HEAD.pack(1, len(bomb)) + bomb]), headers):
            pass

    with pytest.raises(Invalid, match="more than"):
        asyncio.run(read())


def test_compressed_and_plain_messages_may_follow_each_other() -> None:
    packed = gzip.compress(b'{"pid": 7}')
    body = HEAD.pack(1, len(packed)) + packed + envelope({"pid": 8})

    async def read() -> list[int]:
        headers = Headers({"connect-content-encoding": "gzip"})
        return [each.number("pid") async for each in read_messages(receiver([body]), headers)]

    assert asyncio.run(read()) == [7, 8]


# -- messages


@given(JSON)
def test_any_json_is_a_message_or_an_invalid_request(value: Any) -> None:
    body = dict.fromkeys(("text", "number", "flag", "data", "inner", "texts", "textMap", "choice"), value)
    message = Message.parse(orjson.dumps(body, option=orjson.OPT_PASSTHROUGH_DATACLASS) if _fits(value) else b"{}")
    for read in (
        lambda: message.text("text"),
        lambda: message.number("number"),
        lambda: message.flag("flag"),
        lambda: message.data("data"),
        lambda: message.message("inner").text("x"),
        lambda: message.texts("texts"),
        lambda: message.text_map("text_map"),
        lambda: message.choice("choice", {"A": 1}),
    ):
        with contextlib.suppress(Invalid):
            read()


def _fits(value: Any) -> bool:
    try:
        orjson.dumps(value)
    except TypeError:
        return False
    return True


@given(st.binary(max_size=100), st.booleans(), st.booleans())
def test_bytes_come_in_either_alphabet_with_or_without_padding(data: bytes, is_url: bool, is_padded: bool) -> None:
    text = (base64.urlsafe_b64encode if is_url else base64.b64encode)(data).decode()
    assert Message({"stdin": text if is_padded else text.rstrip("=")}).data("stdin") == data


def test_fields_have_two_names_and_defaults() -> None:
    message = Message.parse(b'{"watcherId": "w", "include_entry": true, "pid": "12", "tag": null}')
    assert message.text("watcher_id") == "w"
    assert message.flag("include_entry")
    assert message.number("pid") == 12
    assert not message.has("tag")
    assert message.text("tag") == ""
    assert message.texts("args") == []
    assert message.text_map("envs") == {}


def test_an_enumeration_is_read_by_name_and_by_number() -> None:
    values = {"SIGNAL_SIGTERM": 15, "SIGNAL_SIGKILL": 9}
    assert Message({"signal": "SIGNAL_SIGKILL"}).choice("signal", values) == 9
    assert Message({"signal": 15}).choice("signal", values) == 15
    with pytest.raises(Invalid):
        Message({"signal": "SIGNAL_SIGHUP"}).choice("signal", values)


# -- errors and time


def test_each_of_our_errors_has_a_code_of_the_protocol_and_a_status() -> None:
    for kind in (each for each in vars(errors).values() if isinstance(each, type)):
        if issubclass(kind, DovecoteError):
            assert code_of(kind("no")) in connect.STATUS
    assert set(connect.CODE_OF_CODE.values()) <= set(connect.STATUS)
    assert code_of(errors.NotFound("no", code="no_such_user")) == "unauthenticated"


@pytest.mark.parametrize("text", ["-1", "1.5", "abc", "1" * 11, "٣"])
def test_a_timeout_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        parse_pace(Headers(raw=[(b"connect-timeout-ms", text.encode())]))


def test_a_timeout_of_nothing_is_no_timeout() -> None:
    assert parse_pace(Headers({"connect-timeout-ms": "0"})).timeout is None
    assert parse_pace(Headers({"connect-timeout-ms": "1500"})).timeout == 1.5
    assert parse_pace(Headers({"keepalive-ping-interval": "50"})).keepalive == 50
    assert parse_pace(Headers({"keepalive-ping-interval": "0"})).keepalive == 1


async def _sent(messages: Any, *, every: float = 60.0) -> list[dict[str, Any]]:
    """What a client gets, envelope by envelope; the flags of the last one are checked."""
    out = bytearray()
    forever = asyncio.Event()

    async def send(message: Any) -> None:
        out.extend(message.get("body", b""))

    async def receive() -> Any:
        await forever.wait()

    await connect.answer_stream(receive, send, messages, ping={"keepalive": {}}, every=every)
    frames = Frames().feed(bytes(out))
    assert [flags for flags, _ in frames] == [0] * (len(frames) - 1) + [END]
    return [orjson.loads(payload) for _, payload in frames]


async def _failing() -> AsyncIterator[dict[str, int]]:
    yield {"n": 1}
    raise errors.NotFound("gone", code="file_not_found")


def test_an_error_of_a_stream_is_in_its_last_envelope() -> None:
    assert asyncio.run(_sent(_failing())) == [{"n": 1}, {"error": {"code": "not_found", "message": "gone"}}]


def test_silence_is_filled_with_keepalives() -> None:
    async def play() -> list[dict[str, Any]]:
        gate = asyncio.Event()

        async def quiet() -> AsyncIterator[dict[str, int]]:
            await gate.wait()
            yield {"n": 1}

        asyncio.get_running_loop().call_later(0.2, gate.set)
        return await _sent(quiet(), every=0.01)

    got = asyncio.run(play())
    assert got[0] == {"keepalive": {}}
    assert got[-2:] == [{"n": 1}, {}]


def test_a_client_that_leaves_ends_what_it_was_sent() -> None:
    async def play() -> None:
        ended = asyncio.Event()

        async def endless() -> AsyncIterator[dict[str, int]]:
            try:
                yield {"n": 1}
                await asyncio.Event().wait()
            finally:
                ended.set()

        async def send(message: Any) -> None:
            pass

        async def receive() -> Any:
            return {"type": "http.disconnect"}

        await connect.answer_stream(receive, send, endless(), ping=None, every=60)  # type: ignore[arg-type]
        async with asyncio.timeout(5):
            await ended.wait()

    asyncio.run(play())


# -- forms


def form(files: list[tuple[str, bytes]], boundary: bytes = b"bound") -> bytes:
    parts = b""
    for name, content in files:
        shown = name.replace("\\", "\\\\").replace('"', "%22").encode()
        parts += b'--%s\r\nContent-Disposition: form-data; name="file"; filename="%s"\r\n' % (boundary, shown)
        parts += b"Content-Type: application/octet-stream\r\n\r\n" + content + b"\r\n"
    return parts + b"--" + boundary + b"--\r\n"


async def _read_form(pieces: Sequence[bytes], boundary: bytes = b"bound") -> list[tuple[str | None, bytes]]:
    reader = Multipart(boundary, source(pieces))
    found = []
    while (part := await reader.next_part()) is not None:
        found.append((part.filename, b"".join([piece async for piece in reader.content()])))
    return found


@given(
    st.lists(st.tuples(NAMES, st.binary(max_size=60) | st.just(b"\r\n--boun") | st.just(b"\r\n--")), max_size=4),
    st.lists(st.integers(0, 600), max_size=20),
)
def test_a_form_gives_its_files_however_it_is_cut(files: list[tuple[str, bytes]], at: list[int]) -> None:
    wanted = [(name.replace("%22", '"').replace("%0D", "\r").replace("%0A", "\n"), data) for name, data in files]
    assert asyncio.run(_read_form(cut(form(files), at))) == wanted


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=8))
def test_any_bytes_are_a_form_or_an_invalid_request(data: bytes, at: list[int]) -> None:
    with contextlib.suppress(Invalid):
        asyncio.run(_read_form(cut(b"--bound" + data, at)))


@given(st.integers(0, 200))
def test_a_form_that_is_cut_short_is_refused(size: int) -> None:
    data = form([("a", b"x" * 30), ("b", b"y" * 30)])
    with pytest.raises(Invalid):
        asyncio.run(_read_form([data[: min(size, len(data) - 4)]]))


def test_what_is_left_of_a_part_is_skipped() -> None:
    async def names() -> list[str | None]:
        reader = Multipart(b"bound", source([form([("a", b"x" * 1000), ("b", b"y")])]))
        found = []
        while (part := await reader.next_part()) is not None:
            found.append(part.filename)
        return found

    assert asyncio.run(names()) == ["a", "b"]


def test_headers_without_end_are_refused() -> None:
    with pytest.raises(Invalid, match="not a form"):
        asyncio.run(_read_form([b"--bound\r\n", *[b"x" * 4096] * 10]))


@pytest.mark.parametrize(
    ("kind", "boundary"),
    [
        ("multipart/form-data; boundary=abc", b"abc"),
        ('multipart/form-data; charset=utf-8; boundary="a b"', b"a b"),
        ("multipart/form-data;boundary=----WebKit1", b"----WebKit1"),
    ],
)
def test_the_boundary_of_a_form(kind: str, boundary: bytes) -> None:
    assert parse_boundary(kind) == boundary


@pytest.mark.parametrize("kind", ["multipart/form-data", "multipart/form-data; boundary=", "text/plain; x=boundary=a"])
def test_a_form_without_boundary_is_refused(kind: str) -> None:
    with pytest.raises(Invalid):
        parse_boundary(kind)


# -- contents


@given(st.binary(max_size=5000), st.lists(st.integers(0, 5000), max_size=8))
def test_a_gzip_body_is_unpacked_however_it_is_cut(data: bytes, at: list[int]) -> None:
    async def read() -> bytes:
        return b"".join([each async for each in decoded(source(cut(gzip.compress(data), at)), "gzip")])

    assert asyncio.run(read()) == data


def test_a_gzip_body_is_unpacked_in_bounded_pieces_and_refused_when_cut_short() -> None:
    packed = gzip.compress(bytes(50 << 20))

    async def largest(body: bytes) -> int:
        return max([len(each) async for each in decoded(source([body]), "gzip")])

    assert asyncio.run(largest(packed)) <= 1 << 20
    with pytest.raises(Invalid, match="not all of"):
        asyncio.run(largest(packed[:-9]))


@pytest.mark.parametrize(
    ("text", "size", "span"),
    [
        ("", 10, (0, 10, False)),
        ("bytes=0-", 10, (0, 10, True)),
        ("bytes=2-4", 10, (2, 3, True)),
        ("bytes=8-100", 10, (8, 2, True)),
        ("bytes=-3", 10, (7, 3, True)),
        ("bytes=-30", 10, (0, 10, True)),
        ("bytes=5-2", 10, (0, 10, False)),
        ("bytes=0-1,3-4", 10, (0, 10, False)),
        ("lines=1-2", 10, (0, 10, False)),
        ("bytes=10-", 10, None),
        ("bytes=-0", 10, None),
        ("bytes=0-", 0, None),
    ],
)
def test_a_range_of_a_file(text: str, size: int, span: tuple[int, int, bool] | None) -> None:
    found = parse_range(text, size)
    assert (found and (found.offset, found.length, found.is_part)) == span


# -- signatures


def test_a_signature_is_the_one_that_clients_compute() -> None:
    """Computed once with the client's own function."""
    assert signature("/a b.txt", "read", "user", "token") == "v1_8AItkuCMohf9l0RTSvXnX3GVXyA1N6tXMrcJsEI5GZk"


@given(st.text(max_size=20), st.text(max_size=8), st.text(max_size=20), st.text(max_size=20))
def test_a_signature_proves_one_path_one_user_and_one_operation(path: str, user: str, token: str, other: str) -> None:
    query = QueryParams({"path": path, "username": user, "signature": signature(path, "read", user, token)})
    signed = parse_signed(query, "GET")
    assert signed is not None
    assert signed.is_of(token)
    assert signed.is_of(other) == (other == token)
    written = parse_signed(query, "POST")
    assert written is not None
    assert not written.is_of(token)


@given(st.text(max_size=60))
def test_any_text_as_a_signature_proves_nothing(text: str) -> None:
    signed = parse_signed(QueryParams({"path": "a", "signature": text}), "GET")
    assert signed is not None
    assert not signed.is_of("token")


def test_a_signature_ends_with_its_time_which_cannot_be_changed() -> None:
    def signed(expires: str, claimed: str) -> Any:
        proof = signature("a", "write", "", "token", expires)
        return parse_signed(QueryParams({"path": "a", "signature": proof, "signature_expiration": claimed}), "POST")

    assert signed("100", "100").is_of("token")
    assert not signed("100", "200").is_of("token")
    signed("100", "100").check_time(now=99)
    for odd in ("100", "x", "1e9", "9" * 13):
        with pytest.raises(Unauthenticated):
            signed(odd, odd).check_time(now=101)
