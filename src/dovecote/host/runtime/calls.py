"""Calls of a runtime's program, each with an end, and waiting for processes that are not our children."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import Sequence
from functools import partial
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


async def run(
    command: Sequence[str], within: float, *, stdin: int = subprocess.DEVNULL, stderr: int = subprocess.DEVNULL
) -> int | None:
    """Its exit code, or None when it took longer than `within` seconds and was killed."""
    process = _begin(command, stdin, stderr)
    pidfd = os.pidfd_open(process.pid)
    try:
        return process.wait() if await has_ended(pidfd, within) else None
    finally:
        os.close(pidfd)
        if process.returncode is None:
            process.kill()
            await asyncio.shield(asyncio.to_thread(process.wait))


def _begin(command: Sequence[str], stdin: int, stderr: int) -> subprocess.Popen[bytes]:
    """Without the event loop: uvloop forks, which copies the page tables of a large server and holds everybody up."""
    return subprocess.Popen(
        command,
        stdin=stdin,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        start_new_session=True,  # an interrupt from our terminal is not for it
        env={"PATH": os.environ.get("PATH", os.defpath)},
    )


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
    quiet = {"stdin": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    try:
        done = await asyncio.to_thread(
            partial(subprocess.run, command, stdout=subprocess.PIPE, timeout=CALL_WITHIN, check=False, **quiet)
        )
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"{command[0]} took longer than {CALL_WITHIN:g} s") from error
    return (json.loads(done.stdout) or []) if done.returncode == 0 else None
