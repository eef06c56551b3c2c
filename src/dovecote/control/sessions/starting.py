"""Runs the recorded start of a session or an app inside its instance, and holds callers until the port opens."""

from __future__ import annotations

import asyncio
import posixpath
from collections.abc import Mapping
from dataclasses import replace

from dovecote.control.fleet import SERVER_TAG, Command, Guest, Output
from dovecote.errors import DeadlineExceeded, Failed
from dovecote.model.records import Start

LOOK_EVERY = 1.0  # seconds between looks at whether the server still lives
LAST_WORDS = 600  # characters of its output that an error shows
INSTANCE_IS_GONE = frozenset({"no_such_instance", "guest_unreachable", "guest_protocol"})  # codes of errors


def instance_dies() -> Failed:
    """What callers are told when one instance after the other died before it could answer."""
    return Failed("its instances die as they start", code="instance_dies", hint="look at its memory limit")


async def ensure_started(guest: Guest, start: Start, *, user: str, env: Mapping[str, str], cwd: str) -> int:
    """The number of the server's command; started unless it runs. May be repeated."""
    for command in await guest.list_commands():
        if command.tag == SERVER_TAG and command.is_running:
            return command.number
    started = await guest.start(
        Command(
            argv=start.argv or ("/bin/sh", "-c", start.command),
            env={**env, "PORT": str(start.port), **start.env},
            cwd=posixpath.join(cwd, start.cwd) if start.cwd else cwd,
            user=user,
            tag=SERVER_TAG,
        )
    )
    return started.number


async def wait_for_port(guest: Guest, port: int, *, server: int | None, timeout: float) -> None:
    """Returns when the port takes connections from outside.

    Raises Failed: `port_closed` (nothing is to come), `port_is_local` (bound to 127.0.0.1), `start_failed` (the server
    ended); DeadlineExceeded: `start_timeout`.
    """
    deadline = asyncio.get_running_loop().time() + timeout
    while True:
        left = deadline - asyncio.get_running_loop().time()
        answer = await guest.wait_port(port, max(0.0, min(LOOK_EVERY, left)) if server is not None else 0.0)
        if answer.is_open:
            return
        if server is None:
            raise _closed(port, loopback=answer.loopback)
        await _check_server(guest, server, port)
        if left <= 0:
            if answer.loopback:
                raise _closed(port, loopback=True)
            raise DeadlineExceeded(
                f"port {port} did not open within {timeout:.0f} s",
                code="start_timeout",
                hint="the start command runs, but does not listen: look at its output with `dovecote sandbox logs`",
            )


async def wait_until_ready(guest: Guest, check: Command, *, timeout: float) -> None:
    """Returns when the check ends with 0; it is repeated until then. Raises DeadlineExceeded (not_ready)."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    while True:
        left = deadline - loop.time()
        done = await guest.run(replace(check, timeout=max(1.0, left)), max_output=LAST_WORDS)
        if done.exit_code == 0:
            return
        if loop.time() + LOOK_EVERY > deadline:
            words = (done.stdout + done.stderr).decode(errors="replace").strip()
            raise DeadlineExceeded(
                f"the check was not met within {timeout:.0f} s", code="not_ready", hint=f"its last words: {words}"
            )
        await asyncio.sleep(LOOK_EVERY)


def _closed(port: int, *, loopback: bool) -> Failed:
    if loopback:
        return Failed(
            f"port {port} is open on 127.0.0.1 only",
            code="port_is_local",
            hint="let the server listen on 0.0.0.0, or forward the port",
        )
    return Failed(
        f"nothing listens on port {port}",
        code="port_closed",
        hint="start a server there, or record a start (command and port) so that waking runs it",
    )


async def _check_server(guest: Guest, server: int, port: int) -> None:
    for command in await guest.list_commands():
        if command.number == server and command.is_running:
            return
    words = bytearray()
    async for event in guest.attach(server):
        if isinstance(event, Output):
            words = (words + event.data)[-LAST_WORDS:]
    text = bytes(words).decode(errors="replace").strip()
    raise Failed(
        f"the start command ended before port {port} opened",
        code="start_failed",
        hint=f"its last words: {text}" if text else "it printed nothing",
    )
