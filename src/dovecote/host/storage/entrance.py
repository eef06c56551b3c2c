"""A small process that enters instances' mount namespaces on our behalf.

The server has threads, and a process with threads cannot change its mount namespace. So a helper with one thread and
an empty environment is kept (`inside`). What goes in where a user's processes run is a fork that ends after one act.
"""

from __future__ import annotations

import array
import asyncio
import errno
import json
import os
import socket
import subprocess
import sys
import time
from typing import Any

from dovecote.errors import DeadlineExceeded, DovecoteError, StorageFailed
from dovecote.host.storage import inside, mounts

MARGIN = 5.0  # seconds, for a helper that hangs: it ends an act that takes too long by itself


class Entrance:
    """Acts inside running instances. One for a host; `start` and `stop` may be repeated.

    If the helper dies, what was under way raises StorageFailed with code `entrance_died` and the next request starts it
    again. A request that takes longer than `timeout` seconds is killed, a swap of roots with the helper, and raises
    DeadlineExceeded.
    """

    def __init__(self, *, timeout: float = 10.0) -> None:
        self._timeout = timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._next = 0
        self._starting = asyncio.Lock()

    async def start(self) -> None:
        async with self._starting:
            if self._socket is None or self._process is None or self._process.poll() is not None:
                await self.stop()
                self._spawn()

    def _spawn(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", inside.__name__, str(theirs.fileno())],
                env={"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
                cwd="/",
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._socket = ours
        asyncio.get_running_loop().add_reader(ours.fileno(), self._read, ours)

    async def stop(self) -> None:
        if self._socket:
            self._lost(self._socket)
        if self._process:
            self._process.kill()
            await asyncio.to_thread(self._process.wait, 10)
            self._process = None

    async def swap_root(self, pid: int, root: int, *, id_base: int, run_bytes: int = 64 << 20) -> None:
        """Makes the detached mount `root` the root of the instance whose PID 1 is `pid`.

        /proc, /dev and /sys come along with their masks, /run is a fresh tmpfs of at most `run_bytes`. The stub root
        must have a directory /new. `root` stays the caller's to close. Not repeatable.
        """
        await self._ask(pid, root, {"act": "swap_root", "id_base": id_base, "run_bytes": run_bytes})

    async def attach(self, pid: int, mount: int, path: str, *, owner: int | None = None) -> None:
        """Attaches a detached mount at a directory inside. No symlink is followed on the way.

        With `owner`, a host id, missing directories are made for it. Raises StorageFailed where the path is a trick.
        """
        await self._ask(pid, mount, {"act": "attach", "path": path, "owner": owner})

    async def detach(self, pid: int, mount_id: int, *, lazy: bool = False) -> None:
        """Unmounts what was attached, found by its `mounts.mount_id`. May be repeated.

        Raises StorageFailed (busy) when something inside uses it; `lazy` takes it away all the same, and whoever has a
        file of it open keeps that file.
        """
        await self._ask(pid, None, {"act": "detach", "mount_id": mount_id, "lazy": lazy})

    async def _ask(self, pid: int, mount: int | None, request: dict[str, Any]) -> None:
        await self.start()
        with mounts.reported(f"finding process {pid}"):
            pidfd = os.pidfd_open(pid)
        try:
            self._next += 1
            number = self._next
            message = json.dumps({**request, "number": number, "timeout": self._timeout}).encode()
            answer = asyncio.get_running_loop().create_future()
            self._waiting[number] = answer
            deadline = time.monotonic() + self._timeout
            while not _sent(self._socket, message, [pidfd] if mount is None else [pidfd, mount]):
                if time.monotonic() > deadline:
                    raise DeadlineExceeded("the helper that enters instances does not read", code="entrance_timeout")
                await asyncio.sleep(0.005)
            reply = await asyncio.wait_for(answer, self._timeout + MARGIN)
        except TimeoutError as error:
            await self.stop()
            raise DeadlineExceeded("the helper that enters instances hangs", code="entrance_timeout") from error
        finally:
            self._waiting.pop(number, None)
            os.close(pidfd)
        if reply.get("timeout"):
            raise DeadlineExceeded(f"{request['act']} in process {pid} took too long", code="entrance_timeout")
        if reply.get("errno") == errno.EBUSY and request["act"] == "detach":
            raise StorageFailed(
                "something inside uses the mount", code="busy", hint="end what uses it, or unmount it by force"
            )
        if reply.get("errno") is not None:
            raise mounts.failure(f"{request['act']} in process {pid}: {reply['step']}", reply["errno"])

    def _read(self, ours: socket.socket) -> None:
        while True:
            try:
                message = ours.recv(inside.MAX_MESSAGE)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                message = b""
            if not message:
                self._lost(ours)
                return
            reply = json.loads(message)
            waiter = self._waiting.get(reply["number"])
            if waiter and not waiter.done():
                waiter.set_result(reply)

    def _lost(self, ours: socket.socket) -> None:
        if self._socket is not ours:
            return
        asyncio.get_running_loop().remove_reader(ours.fileno())
        ours.close()
        self._socket = None
        if self._process:
            self._process.kill()
        error: DovecoteError = StorageFailed(
            "the helper that enters instances died", code="entrance_died", hint="it is started again by itself"
        )
        for waiter in self._waiting.values():
            if not waiter.done():
                waiter.set_exception(error)


def _sent(ours: socket.socket | None, message: bytes, descriptors: list[int]) -> bool:
    try:
        if ours is None:
            raise BrokenPipeError
        ours.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))])
    except BlockingIOError:
        return False
    except OSError as error:
        raise StorageFailed("the helper that enters instances died", code="entrance_died") from error
    return True
