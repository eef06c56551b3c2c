"""Calls of a runtime's program, each with an end, and waiting for processes that are not our children."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CALL_WITHIN = 15.0
WORDS = 600  # characters of a runtime's own message that we pass on


def last_words(log: Path) -> str:
    """The last message of a runtime's log (JSON lines), or the end of what is not that; empty when there is none."""
    try:
        # runsc ends none of its lines.
        lines = log.read_text(errors="replace")[-65536:].strip().replace("}{", "}\n{").splitlines()
    except FileNotFoundError:
        return ""
    for line in reversed(lines):
        try:
            entry = json.loads(line)
            return str(entry["msg"])[:WORDS]
        except (ValueError, KeyError, TypeError):
            continue
    return " ".join(lines)[-WORDS:]


async def run(command: Sequence[str], within: float, *, stdin: int = -3, stderr: int = -3) -> int | None:
    """Its exit code, or None when it took longer than `within` seconds and was killed. -3 is DEVNULL."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=stdin,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=stderr,
        start_new_session=True,  # an interrupt from our terminal is not for it
        env={"PATH": os.environ.get("PATH", os.defpath)},
    )
    try:
        return await asyncio.wait_for(process.wait(), within)
    except TimeoutError:
        await end(process)
        return None
    except BaseException:
        await end(process)
        raise


async def end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
        await asyncio.shield(process.wait())


def open_pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


async def has_ended(pidfd: int, within: float) -> bool:
    """Waits for a process to end, whosever child it is."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(pidfd, ended.set)
    try:
        await asyncio.wait_for(ended.wait(), within)
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(pidfd)
    return True


async def read_json(command: Sequence[str]) -> Any:
    """What it prints as JSON (an empty list for `null`), or None when it fails."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), CALL_WITHIN)
    except BaseException:
        await end(process)
        raise
    return (json.loads(output) or []) if process.returncode == 0 else None
