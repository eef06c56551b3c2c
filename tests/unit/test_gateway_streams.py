"""What Envoy tells of streams, and who is told."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovecote.gateway.streams import MOST_LINE, REASONS, Streams, parse_line

pytestmark = pytest.mark.anyio
BOUND = 10.0


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("DownstreamPeriodic 200 ses_a -", ("ses_a", None)),
        ("DownstreamPeriodic 0 ses_a stream", ("ses_a", None)),
        ("DownstreamEnd 200 ses_a stream", ("ses_a", REASONS["stream"])),
        ("DownstreamEnd 0 ses_a stream", ("ses_a", REASONS["stream"])),
        ("DownstreamEnd 204 ses_a delete", ("ses_a", REASONS["delete"])),
        ("DownstreamEnd 404 ses_a delete", ("ses_a", REASONS["delete"])),
        ("DownstreamEnd 405 ses_a delete", None),
        ("DownstreamEnd 502 ses_a delete", None),
        ("DownstreamEnd 200 - stream", None),
        ("DownstreamEnd 200 ses_a -", None),
        ("", None),
    ],
)
def test_a_line_says_that_a_session_is_used_or_over(line: str, found: tuple[str, str | None] | None) -> None:
    assert parse_line(line) == found


@given(st.text(max_size=300))
def test_no_line_is_more_than_nothing(line: str) -> None:
    parse_line(line)


async def test_lines_in_any_pieces_reach_who_is_told_and_a_failure_stops_nothing(tmp_path: Path) -> None:
    touched: list[str] = []
    ended: asyncio.Queue[tuple[str, str]] = asyncio.Queue()

    async def touch(session_id: str) -> None:
        touched.append(session_id)
        raise RuntimeError("the store is away")

    async def end(session_id: str, reason: str) -> None:
        ended.put_nowait((session_id, reason))

    streams = Streams(tmp_path / "streams", touch=touch, end=end)
    (tmp_path / "streams").write_text("not a pipe")
    streams.open()
    mode = (tmp_path / "streams").stat().st_mode
    assert (stat.S_ISFIFO(mode), stat.S_IMODE(mode)) == (True, 0o600)
    writer = os.open(tmp_path / "streams", os.O_WRONLY)
    try:
        os.write(writer, b"DownstreamPeriodic 200 ses_a -\n" + b"x" * 3 * MOST_LINE)
        await asyncio.sleep(0)
        for piece in (b"\nDownstreamEnd 200 s", b"es_b str", b"eam\n"):
            os.write(writer, piece)
            await asyncio.sleep(0)
        assert await asyncio.wait_for(ended.get(), BOUND) == ("ses_b", REASONS["stream"])
        assert touched == ["ses_a"]
    finally:
        os.close(writer)
        await streams.close()


async def test_the_pipe_of_before_is_kept(tmp_path: Path) -> None:
    async def ignore(*_: str) -> None:
        pass

    first, second = [Streams(tmp_path / "streams", touch=ignore, end=ignore) for _ in range(2)]
    first.open()
    inode = (tmp_path / "streams").stat().st_ino
    await first.close()
    second.open()
    assert (tmp_path / "streams").stat().st_ino == inode
    await second.close()
