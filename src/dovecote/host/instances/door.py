"""The door of an instance that is given no listener: a small directory in which its guest binds a socket itself."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path

from dovecote.errors import Failed
from dovecote.host.guest import Guest
from dovecote.host.guest.connection import connect_to
from dovecote.host.storage import mounts

PROGRAM, SOCKET = "guest", "sock"
MOST_BYTES = 1 << 20  # in memory, whatever somebody inside writes while it is open
LOOK_EVERY = 0.002  # seconds


@dataclass(frozen=True)
class Door:
    """At `path` of the host. Open: it belongs to the instance's root, and the guest binds its socket as soon as it can.

    Shut: it belongs to the host, so nobody inside can take the socket away or put another one there.
    """

    path: Path
    owner: int

    @property
    def socket(self) -> Path:
        return self.path / SOCKET

    def make(self, program: Path) -> None:
        mounts.mount_at(mounts.tmpfs(max_bytes=MOST_BYTES, owner=0), self.path)
        shutil.copyfile(program, self.path / PROGRAM)
        (self.path / PROGRAM).chmod(0o755)  # gVisor reads what it runs, as the instance's root

    async def let_bind(self, within: float) -> None:
        """Returns when the guest answers, with the door shut behind it. May be repeated. Raises Failed."""
        if not self._listens():
            self.forget_socket()
        os.chown(self.path, self.owner, self.owner)
        try:
            await _answered(Guest(self.socket), within)
        finally:
            os.chown(self.path, 0, 0)

    def forget_socket(self) -> None:
        """Of a guest that has closed it: it would be in the way of the next."""
        self.socket.unlink(missing_ok=True)

    def _listens(self) -> bool:
        """Does not wait: whoever is inside may have bound it, and take no call."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as caller:
            try:
                connect_to(caller, self.socket)
            except OSError:
                return False
            return True


async def _answered(guest: Guest, within: float) -> None:
    deadline = asyncio.get_running_loop().time() + within
    while True:
        try:
            await guest.hello(timeout=within)
        except Failed as error:
            if error.code != "guest_unreachable" or asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(LOOK_EVERY)
        else:
            return
