"""What comes in at standard input, and the terminal behind it."""

from __future__ import annotations

import asyncio
import os
import select
import sys
import termios
import tty
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager, suppress

PIECE = 1 << 16
DEFAULT_SIZE = (24, 80)


def is_terminal() -> bool:
    return os.isatty(0)


async def typed() -> AsyncGenerator[bytes, None]:
    """Pieces of standard input until its end. No thread waits for it, so nothing has to be torn away at the end."""
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    try:
        loop.add_reader(0, ready.set)
    except (PermissionError, OSError):  # a file: it never makes anybody wait
        while piece := os.read(0, PIECE):
            yield piece
        return
    try:
        while True:
            await ready.wait()
            ready.clear()
            if not select.select([0], [], [], 0)[0]:
                continue  # said before the last piece was taken
            piece = os.read(0, PIECE)
            if not piece:
                return
            yield piece
    finally:
        loop.remove_reader(0)


def size() -> tuple[int, int]:
    """Rows and columns of the terminal."""
    with suppress(OSError):
        found = os.get_terminal_size(0)
        if found.lines > 0 and found.columns > 0:
            return min(found.lines, 1000), min(found.columns, 1000)
    return DEFAULT_SIZE


@contextmanager
def raw() -> Iterator[None]:
    """Each key comes as it is, Ctrl-C too. The terminal is as before when this ends, however it ends."""
    before = termios.tcgetattr(0)
    tty.setraw(0, termios.TCSADRAIN)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def show(data: bytes, stream: str = "stdout") -> None:
    file = sys.stderr if stream == "stderr" else sys.stdout
    file.buffer.write(data)
    file.buffer.flush()


class Escape:
    """Finds `Enter ~ .` among what is typed, as ssh does; `~~` after Enter is one `~`."""

    def __init__(self) -> None:
        self._is_at_start = True
        self._is_open = False
        self.was_used = False

    def pass_on(self, data: bytes) -> bytes:
        """What the program is to get of it."""
        passed = bytearray()
        for byte in data:
            if self._is_open:
                self._is_open = False
                if byte == ord("."):
                    self.was_used = True
                    break
                if byte != ord("~"):
                    passed += b"~"
                passed.append(byte)
            elif self._is_at_start and byte == ord("~"):
                self._is_open = True
                continue
            else:
                passed.append(byte)
            self._is_at_start = byte in b"\r\n"
        return bytes(passed)
