"""What a context's program says is read whatever it says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovecote.control.sandboxes import (
    Accepted,
    Began,
    Ended,
    Fault,
    Happening,
    Printed,
    Result,
    Truncated,
    executions,
)
from dovecote.control.sandboxes.executions import Lines, Reading
from dovecote.errors import DovecoteError
from dovecote.host.guest import Dropped, Exited, Output

pytestmark = pytest.mark.anyio
ME = "exe_me"
Said = dict[str, Any] | bytes | Dropped | Exited
QUEUED: Said = {"type": "queued", "id": ME}
BEGAN: Said = {"type": "began", "id": ME}
DONE: Said = {"type": "done", "id": ME, "status": "ok", "count": 3, "dropped": 0}


async def stream(said: Sequence[Said]) -> AsyncIterator[Output | Dropped | Exited]:
    for each in said:
        if isinstance(each, dict):
            yield Output("stdout", 0, json.dumps(each).encode() + b"\n")
        elif isinstance(each, bytes):
            yield Output("stdout", 0, each)
        else:
            yield each
    await asyncio.sleep(60)


async def read(*said: Said, most_bytes: int = 10_000, timeout: float = 60) -> list[Happening]:
    reading = Reading(ME, "ctx_here", timeout, most_bytes=most_bytes)
    return [each async for each in reading.events(stream(said))]


async def test_an_execution_is_told_apart_from_others_of_its_context() -> None:
    other = {"type": "stdout", "id": "exe_other", "text": "not mine"}
    mine = {"type": "stdout", "id": ME, "text": "mine"}
    found = await read(QUEUED, other, BEGAN, other, mine, {**DONE, "id": "exe_other"}, DONE)  # type: ignore[dict-item]
    assert found == [Accepted(ME, "ctx_here"), Began(), Printed("stdout", "mine"), Ended("ok", 3)]


async def test_all_that_is_shown_comes_through() -> None:
    shown = {"type": "result", "id": ME, "data": {"text/html": "<b>"}, "is_main": False, "omitted": ["image/png"]}
    error = {"type": "error", "id": ME, "name": "ValueError", "value": "no", "traceback": ["a", "b"]}
    found = await read(QUEUED, BEGAN, shown, error, {"type": "truncated", "id": ME}, {**DONE, "status": "error"})  # type: ignore[dict-item]
    assert found[2:] == [
        Result({"text/html": "<b>"}, False, ("image/png",)),
        Fault("ValueError", "no", ("a", "b")),
        Truncated(),
        Ended("error", 3),
    ]


async def test_what_passes_the_program_by_counts_as_stderr_while_it_runs() -> None:
    past = Output("stderr", 0, b"from a child")

    async def output() -> AsyncIterator[Output | Dropped | Exited]:
        yield past
        async for each in stream([QUEUED, BEGAN]):
            yield each
            if b"began" in each.data:  # type: ignore[union-attr]
                break
        yield past
        yield Output("stdout", 0, json.dumps(DONE).encode() + b"\n")

    found = [each async for each in Reading(ME, "c", 9, most_bytes=99).events(output())]
    assert found[2:] == [Printed("stderr", "from a child"), Ended("ok", 3)]


async def test_a_line_that_was_begun_before_we_listened_is_no_line_of_ours() -> None:
    assert (await read(b'xt": "cut"}\n', QUEUED, BEGAN, DONE))[-1] == Ended("ok", 3)


async def test_lost_output_is_marked_and_the_rest_is_read() -> None:
    found = await read(QUEUED, BEGAN, b'{"type":"stdout","id":"exe', Dropped(5000), b'_me"}\n', DONE)
    assert found[2:] == [Truncated(), Ended("ok", 3)]


async def test_the_end_of_the_program_ends_the_execution() -> None:
    found = await read(QUEUED, BEGAN, Exited(None, 9, False, 0))
    assert isinstance(found[2], Fault)
    assert "signal 9" in found[2].value
    assert found[3] == Ended("died", None)


async def test_more_than_it_may_say_is_cut_off_here_too() -> None:
    much: Said = {"type": "stdout", "id": ME, "text": "x" * 600}
    found = await read(QUEUED, BEGAN, much, much, much, DONE, most_bytes=1000)
    assert found[2:] == [Printed("stdout", "x" * 600), Truncated(), Ended("ok", 3)]


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ({"type": "surprise", "id": ME}, "context_protocol"),
        ({"type": 7, "id": ME}, "context_protocol"),
        ({"type": "stdout", "id": ME, "text": 7}, "context_protocol"),
        ({"type": "result", "id": ME, "data": "x"}, "context_protocol"),
        ({"type": "done", "id": ME, "status": "splendid"}, "context_protocol"),
        ({"type": "done", "id": ME, "status": ["ok"]}, "context_protocol"),
        (b"no json\n" * 2000, "context_protocol"),
        ({"type": "refused", "id": ME}, "too_many"),
    ],
)
async def test_nonsense_costs_the_execution_only(said: Said, code: str) -> None:
    with pytest.raises(DovecoteError) as caught:
        await read(QUEUED, BEGAN, said)
    assert caught.value.code == code


async def test_silence_ends_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executions, "HEARD_WITHIN", 0.05)
    monkeypatch.setattr(executions, "ENDED_WITHIN", 0.05)
    for said in ([], [QUEUED, BEGAN]):
        with pytest.raises(DovecoteError) as caught:
            await read(*said, timeout=0.05)
        assert caught.value.code == "context_silent"


@given(st.lists(st.dictionaries(st.text(), st.text()), max_size=5), st.data())
def test_lines_are_the_same_however_they_are_cut(lines: list[dict[str, str]], data: st.DataObject) -> None:
    whole = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    parts = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    reader = Lines()
    assert [found for part in parts for found in reader.feed(part)] == lines


@given(st.lists(st.binary(max_size=60), max_size=30))
def test_any_bytes_are_held_within_bounds(parts: list[bytes]) -> None:
    reader = Lines(most=20)
    for part in parts:
        for found in reader.feed(part):
            assert isinstance(found, dict)
        assert len(reader._rest) <= 20


async def test_a_line_beyond_the_bound_is_passed_over() -> None:
    reader = Lines(most=20)
    assert list(reader.feed(b'{"a": "' + b"x" * 50)) == []
    assert list(reader.feed(b'"}\n{"b": 1}\n')) == [{"b": 1}]
