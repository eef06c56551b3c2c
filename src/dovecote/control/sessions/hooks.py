"""Runs what a function wants done at the turns of an instance's life. What comes of it is an answer, never an error."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from time import perf_counter

from dovecote.control.fleet import Command, Guest
from dovecote.errors import DovecoteError, Failed
from dovecote.model.past import LONGEST_REASON, HookRun
from dovecote.model.records import Revision, Start
from dovecote.model.serving import Hook

log = logging.getLogger(__name__)

INITIALIZE, PRE_FREEZE, PRE_STOP = "initialize", "pre_freeze", "pre_stop"
METHODS = {INITIALIZE: "POST", PRE_FREEZE: "GET", PRE_STOP: "GET"}
MOST_ANSWER = 64 << 10  # bytes of a server's answer that are read
LONGEST_LINE = 200  # bytes of a status line
CLOSES_WITHIN = 1.0  # seconds more in which a server that has answered ends the connection
GIVES_UP_WITHIN = 5.0  # seconds more for a guest that does not come to an end


@dataclass(frozen=True)
class Inside:
    """An instance as a hook meets it. `start` is the server that a path is asked of."""

    instance_id: str
    address: str
    guest: Guest
    revision: Revision
    start: Start | None
    env: Mapping[str, str]


async def run_hook(inside: Inside, name: str) -> HookRun | None:
    """How it went, or None where the function has no such hook. Never raises.

    Takes no longer than the hook may, and a moment for its end.
    """
    hook: Hook | None = getattr(inside.revision.hooks, name)
    if hook is None:
        return None
    began, at, seconds = perf_counter(), datetime.now(UTC), hook.timeout.total_seconds()
    reason = ""
    try:
        reason = await (_ask(inside, hook, name, seconds) if hook.path else _run(inside, hook, seconds))
    except TimeoutError:
        reason = f"it did not end within {seconds:.0f} s"
    except DovecoteError as error:
        reason = error.message
    except (OSError, ValueError) as error:
        reason = f"the server could not be asked: {error}"
    reason = "".join(each if each.isprintable() else " " for each in reason)[:LONGEST_REASON]
    if reason:
        log.warning("the hook %s failed in %s: %s", name, inside.instance_id, reason)
    return HookRun(name, at, not reason, round(perf_counter() - began, 3), reason, inside.instance_id)


def failed_start(run: HookRun) -> Failed:
    """What callers are told of an instance that was not initialized."""
    return Failed(
        f"the hook {run.hook} failed: {run.reason}",
        code="hook_failed",
        hint="`dovecote session why` and `dovecote function hooks` tell how it went; the next request tries again",
    )


async def _run(inside: Inside, hook: Hook, seconds: float) -> str:
    template = inside.revision.inside
    command = Command(
        argv=("/bin/sh", "-c", hook.command),
        env={**inside.env},
        cwd=template.cwd,
        user=template.user,
        timeout=seconds,
    )
    async with asyncio.timeout(seconds + GIVES_UP_WITHIN):
        done = await inside.guest.run(command, max_output=LONGEST_REASON)
    if done.timed_out:
        return f"it did not end within {seconds:.0f} s"
    if done.exit_code == 0:
        return ""
    how = f"killed by signal {done.signal}" if done.exit_code is None else f"exit code {done.exit_code}"
    words = (done.stderr or done.stdout).decode(errors="replace").strip()
    return f"{how}: {words}" if words else how


async def _ask(inside: Inside, hook: Hook, name: str, seconds: float) -> str:
    """By hand: of an answer that is not to be trusted nothing but the status counts."""
    if inside.start is None or not inside.start.port:
        return "there is no server to ask: the function has no start with a port"
    address, port = inside.address, inside.start.port
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(seconds):
            reader, writer = await asyncio.open_connection(address, port, limit=MOST_ANSWER)
            writer.write(_request(METHODS[name], hook.path, f"{address}:{port}"))
            await writer.drain()
            line = await reader.readuntil(b"\n")
        await _closed(reader)
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        return "the server ended the connection without an answer"
    finally:
        if writer is not None:
            writer.close()
    return _judged(line)


async def _closed(reader: asyncio.StreamReader) -> None:
    """The server ends the connection, so that none of ours is in the way of freezing, unless it takes its time."""
    with contextlib.suppress(TimeoutError, OSError):
        async with asyncio.timeout(CLOSES_WITHIN):
            while await reader.read(MOST_ANSWER):
                pass


def _request(method: str, path: str, host: str) -> bytes:
    length = "Content-Length: 0\r\n" if method == "POST" else ""
    text = f"{method} {path.replace(' ', '%20')} HTTP/1.1\r\nHost: {host}\r\n{length}Connection: close\r\n\r\n"
    return text.encode("utf-8")


def _judged(line: bytes) -> str:
    words = line[:LONGEST_LINE].split()
    if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
        return "what it answered is not HTTP"
    return "" if words[1][:1] == b"2" and len(words[1]) == 3 else f"it answered {words[1].decode()}"
