"""The guard behind `Pauses`: one thread. Thaws what is paused when the other side ends, however it ends."""

from __future__ import annotations

import contextlib
import os
import socket
import sys

MAX_MESSAGE = 4096
PAUSED, GOES_ON = b"+", b"-"


def serve(control: socket.socket) -> None:
    """Messages are `+` or `-`, the value that thaws, a space, and the file to write it to. Answers `+`."""
    held: dict[bytes, bytes] = {}
    # One that is killed before it has read an answer, or before it gets one, ends the socket with an error.
    with contextlib.suppress(OSError):
        while message := control.recv(MAX_MESSAGE):
            value, _, file = message[1:].partition(b" ")
            if message[:1] == PAUSED:
                held[file] = value
                control.send(PAUSED)
            else:
                held.pop(file, None)
    for file, value in held.items():
        thaw(file, value)


def thaw(file: bytes, value: bytes) -> None:
    with contextlib.suppress(OSError):  # it is gone
        descriptor = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, value)
        finally:
            os.close(descriptor)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
