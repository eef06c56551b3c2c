"""Stands between the kernel and a JuiceFS process: it keeps the mount when that one dies, and makes its ids mappable.

A program of its own, run by path with nothing but the standard library, so that it is small and outlives the server.
Mapped ids (FUSE_ALLOW_IDMAP) mean for a file system: requests that make something name its owner, all others come
without a user, and the kernel has checked them. JuiceFS does not know of that, so such requests reach it as root's.
"""

from __future__ import annotations

import array
import contextlib
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

BUFFER = 1 << 20  # a request is at most 128 KiB of data and its header
HANDED_OVER_WITHIN = 30.0
ENDS_WITHIN = 15.0
LONGEST_PAUSE = 5.0
LARGEST_LOG = 4 << 20
STEADY = 10.0  # seconds after which a life counts as a good one
NOBODY = 0xFFFFFFFF
_HEADER = struct.Struct("<IIQQIIII")  # length, opcode, unique, node, uid, gid, pid, padding
_REPLY = struct.Struct("<IiQ")
_RESEND = 7  # FUSE_NOTIFY_RESEND, Linux 6.9: what was read and not answered is asked again


def as_root(request: bytearray) -> bytearray:
    """A request without a user becomes root's."""
    uid, gid = struct.unpack_from("<II", request, 24)
    if uid == NOBODY and gid == NOBODY:
        struct.pack_into("<II", request, 24, 0, 0)
    return request


class Relay:
    """Runs `command` as long as the mount behind `device` is there. `place` is a private directory."""

    def __init__(self, device: int, settings: bytes, place: str, command: list[str]) -> None:
        self._device = device
        self._settings = settings
        self._place = place
        self._command = command
        self._stopping = False

    def run(self) -> None:
        os.set_blocking(self._device, False)
        pause, is_first = 0.1, True
        while not self._stopping:
            began = time.monotonic()
            if not self._live(resend=not is_first):
                return
            is_first = False
            pause = 0.1 if time.monotonic() - began > STEADY else min(LONGEST_PAUSE, pause * 2)
            time.sleep(pause)

    def stop(self, *_: object) -> None:
        self._stopping = True

    def _live(self, *, resend: bool) -> bool:
        """One life of the process. False when the mount is gone."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (ours, theirs):
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                end.setsockopt(socket.SOL_SOCKET, option, BUFFER)
        with contextlib.closing(ours), self._listening() as listener:
            child = self._spawn()
            try:
                try:
                    given = self._hand_over(listener, theirs)
                finally:
                    theirs.close()
                if not given:
                    return True
                # It connects again, to give back what it was given.
                threading.Thread(target=_drain, args=(listener,), daemon=True).start()
                if resend:
                    with contextlib.suppress(OSError):
                        os.write(self._device, _REPLY.pack(_REPLY.size, _RESEND, 0))
                return self._forward(ours)
            finally:
                with contextlib.suppress(OSError):
                    ours.shutdown(socket.SHUT_RDWR)
                _end(child)

    def _spawn(self) -> subprocess.Popen[bytes]:
        environ = {**os.environ, "_FUSE_FD_COMM": f"{self._place}/handover", "JFS_SUPERVISOR": str(os.getpid())}
        # Never SIGTERM: JuiceFS takes that for a wish to unmount, and the mount is not its own.
        command = ["setpriv", "--pdeathsig", "KILL", "--", *self._command]
        child = subprocess.Popen(
            command, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        threading.Thread(target=_keep_words, args=(child, f"{self._place}/juicefs.log"), daemon=True).start()
        return child

    @contextlib.contextmanager
    def _listening(self) -> Iterator[socket.socket]:
        path = f"{self._place}/handover"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen(8)
            listener.settimeout(HANDED_OVER_WITHIN)
            yield listener

    def _hand_over(self, listener: socket.socket, theirs: socket.socket) -> bool:
        """Gives it the settings of the mount and an end of our socket, as an earlier process of its own would."""
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return False
            with connection:
                null = os.open("/dev/null", os.O_RDONLY)
                try:
                    given = array.array("i", [null, theirs.fileno()])
                    connection.settimeout(HANDED_OVER_WITHIN)
                    connection.sendmsg([self._settings], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, given)])
                    answer = connection.recv(200)
                except OSError:
                    return False
                finally:
                    os.close(null)
            if answer.startswith(b"CLOSE") or answer == b"":
                return True

    def _forward(self, peer: socket.socket) -> bool:
        """Carries requests and replies. False when the mount is gone, True when the process is."""
        with selectors.DefaultSelector() as ready:
            ready.register(self._device, selectors.EVENT_READ)
            ready.register(peer, selectors.EVENT_READ)
            request = bytearray(BUFFER)
            while not self._stopping:
                for key, _ in ready.select(1.0):
                    if key.fileobj is peer:
                        try:
                            reply = peer.recv(BUFFER)
                        except OSError:
                            reply = b""
                        if not reply:
                            return True
                        with contextlib.suppress(OSError):  # nobody waits for it any more
                            os.write(self._device, reply)
                    else:
                        try:
                            size = os.readv(self._device, [request])
                        except (BlockingIOError, InterruptedError, FileNotFoundError):
                            continue
                        except OSError:
                            return False
                        try:
                            peer.send(memoryview(as_root(request))[:size])
                        except OSError:
                            return True
        return False


def _keep_words(child: subprocess.Popen[bytes], path: str) -> None:
    """Its output goes to a file and one former file, so that no fault of a store fills the disk."""
    assert child.stdout is not None
    while words := child.stdout.read1(65536):  # type: ignore[attr-defined]
        with contextlib.suppress(OSError):
            with open(path, "ab") as log:
                log.write(words)
                size = log.tell()
            if size > LARGEST_LOG:
                os.replace(path, f"{path}.1")


def _drain(listener: socket.socket) -> None:
    listener.settimeout(None)
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection:
            connection.settimeout(HANDED_OVER_WITHIN)
            with contextlib.suppress(OSError):
                null = os.open("/dev/null", os.O_RDONLY)
                given = array.array("i", [null])
                connection.sendmsg([b"FUSE"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, given)])
                os.close(null)
                connection.recv(200)


def _end(child: subprocess.Popen[bytes]) -> None:
    """It writes out what it has and ends when its socket does."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(ENDS_WITHIN)
    if child.poll() is None:
        child.kill()
        child.wait()


def main() -> None:
    device, settings, place, *command = sys.argv[1:]
    relay = Relay(int(device), bytes.fromhex(settings), place, command)
    signal.signal(signal.SIGTERM, relay.stop)
    relay.run()


if __name__ == "__main__":
    main()
