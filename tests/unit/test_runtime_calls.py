"""Programs that are called: each comes to an end, and none is left behind."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from dovecote.host.runtime import calls
from dovecote.host.runtime.calls import read_json, run

pytestmark = pytest.mark.anyio

LONG = 600.0
TELLS = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); os.rename(sys.argv[1], sys.argv[2])"


def is_there(pid: int) -> bool:
    """A child that has ended and was not waited for counts too."""
    return Path(f"/proc/{pid}").exists()


async def told(file: Path) -> int:
    async with asyncio.timeout(30):
        while not file.exists():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return int(file.read_text())


def hanging(directory: Path) -> list[str]:
    names = [str(directory / name) for name in ("part", "pid")]
    return [sys.executable, "-c", f"{TELLS}; time.sleep({LONG})", *names]


@pytest.mark.parametrize("code", [0, 3])
async def test_the_exit_code_is_answered(code: int) -> None:
    assert await run(["sh", "-c", f"exit {code}"], LONG) == code


async def test_it_sees_nothing_of_our_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOVECOTE_MODEL_API_KEY", "secret")
    with (tmp_path / "errors").open("wb") as errors:
        assert await run(["sh", "-c", "env >&2"], LONG, stderr=errors.fileno()) == 0
    assert b"PATH=" in (tmp_path / "errors").read_bytes()
    assert b"DOVECOTE" not in (tmp_path / "errors").read_bytes()


async def test_one_that_takes_too_long_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(pidfd: int, within: float) -> bool:
        await told(tmp_path / "pid")
        return False

    monkeypatch.setattr(calls, "has_ended", never)
    assert await run(hanging(tmp_path), LONG) is None
    assert not is_there(await told(tmp_path / "pid"))


async def test_one_whose_caller_leaves_is_killed(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    running = asyncio.ensure_future(run(hanging(tmp_path), LONG))
    pid = await told(tmp_path / "pid")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not is_there(pid)
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_program_that_is_not_there_is_an_error() -> None:
    with pytest.raises(FileNotFoundError):
        await run(["dovecote-has-no-such-program"], LONG)


async def test_what_a_program_prints_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await read_json(["echo", '{"pid": 1}']) == {"pid": 1}
    assert await read_json(["echo", "null"]) == []
    assert await read_json(["false"]) is None
    monkeypatch.setattr(calls, "CALL_WITHIN", 0.1)
    with pytest.raises(TimeoutError):
        await read_json(["sleep", "600"])
