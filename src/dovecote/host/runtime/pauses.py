"""Stops all processes of an instance for a moment, and lets them go on even if this server is killed meanwhile."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from dovecote.errors import DovecoteError, Failed
from dovecote.host.runtime import thawing
from dovecote.host.runtime.cgroups import Cgroups

log = logging.getLogger(__name__)

PAUSED_WITHIN = 0.2  # seconds that processes may take to come to rest
GUARD_ANSWERS_WITHIN = 2.0


class Pauses:
    """One for a host; `start` and `stop` may be repeated.

    A guard, a process of its own, is told of each pause ahead of it. It thaws what is paused when we end, however that
    comes: an instance must not stand still because its server died.
    """

    def __init__(self, cgroups: Cgroups) -> None:
        self._cgroups = cgroups
        self._guard: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._asking = asyncio.Lock()

    @asynccontextmanager
    async def still(self, name: str) -> AsyncIterator[bool]:
        """No process of the group runs inside the block. False where they could not be stopped: then they run."""
        is_still = await self._pause(name)
        try:
            yield is_still
        finally:
            if is_still:
                await self._go_on(name)

    async def stop(self) -> None:
        """What is paused goes on."""
        control, guard, self._control, self._guard = self._control, self._guard, None, None
        if control is not None:
            control.close()
        if guard is not None:
            try:
                await asyncio.to_thread(guard.wait, GUARD_ANSWERS_WITHIN)
            except subprocess.TimeoutExpired:
                guard.kill()
                await asyncio.to_thread(guard.wait, GUARD_ANSWERS_WITHIN)

    async def _pause(self, name: str) -> bool:
        try:
            await self._tell(thawing.PAUSED, name)
        except (DovecoteError, OSError) as error:
            log.info("%s is not stopped for a moment: %s", name, error)
            return False
        try:
            await self._cgroups.freeze(name, within=PAUSED_WITHIN)
        except BaseException as error:
            # The guard must not thaw it some day, when it may be frozen for another reason.
            await self._go_on(name)
            if not isinstance(error, (DovecoteError, OSError)):
                raise
            log.info("%s is not stopped for a moment: %s", name, error)
            return False
        return True

    async def _go_on(self, name: str) -> None:
        try:
            await self._cgroups.thaw(name)
            await self._tell(thawing.GOES_ON, name)
        except (DovecoteError, OSError) as error:
            log.info("%s ended while it stood still: %s", name, error)

    async def _tell(self, what: bytes, name: str) -> None:
        """Raises Failed when the guard does not listen."""
        file, value = self._cgroups.thaw_file(name)
        async with self._asking:
            control = self._listening()
            loop = asyncio.get_running_loop()
            try:
                async with asyncio.timeout(GUARD_ANSWERS_WITHIN):
                    await loop.sock_sendall(control, what + value.encode() + b" " + os.fsencode(file))
                    if what == thawing.PAUSED and await loop.sock_recv(control, 1) != what:
                        raise BrokenPipeError("the guard of pauses ended")
            except (OSError, TimeoutError) as error:
                await self.stop()
                raise Failed("the guard of pauses does not answer", code="guard_died") from error

    def _listening(self) -> socket.socket:
        if self._control is None or self._guard is None or self._guard.poll() is not None:
            if self._control is not None:
                self._control.close()
            self._control, self._guard = self._spawn()
        return self._control

    def _spawn(self) -> tuple[socket.socket, subprocess.Popen[bytes]]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs:
            guard = subprocess.Popen(
                guard_command(theirs.fileno()),
                env={},
                cwd="/",
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        return ours, guard


def guard_command(control: int) -> list[str]:
    """argv. Run as a file, isolated: it needs nothing of ours and nothing of the environment."""
    return [sys.executable, "-I", "-S", thawing.__file__, str(control)]
