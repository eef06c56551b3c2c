"""What the program of a kernel says to Dovecote: a JSON object a line, bounded."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import queue
import threading
from typing import Any

MOST_RESULT = 6 << 20  # bytes of one result
PIECE = 64 << 10  # characters of output in one event


class Wire:
    """Lines to Dovecote, written by a thread: a slow reader must not keep the kernel's messages waiting."""

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)
        self._descriptor = descriptor
        self._lines: queue.Queue[bytes] = queue.Queue()
        self._went = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.pending = 0
        threading.Thread(target=self._write, daemon=True).start()

    def send(self, **event: Any) -> None:
        line = json.dumps(event, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace") + b"\n"
        self.pending += len(line)
        self._lines.put(line)

    def _write(self) -> None:
        while True:
            line = self._lines.get()
            view = memoryview(line)
            while view:
                try:
                    view = view[os.write(self._descriptor, view) :]
                except OSError:
                    os._exit(1)  # nobody is left who could want the kernel
            self.pending -= len(line)
            self._loop.call_soon_threadsafe(self._went.set)

    async def drained(self, most: int = 0) -> None:
        while self.pending > most:
            self._went.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._went.wait(), 0.05)


class Output:
    """What one execution may say: beyond its bytes all is dropped, and it is said that it was."""

    def __init__(self, wire: Wire, execution: str, most: int) -> None:
        self._wire = wire
        self._id = execution
        self._room = most
        self.dropped = 0

    def stream(self, name: str, text: str) -> None:
        for at in range(0, len(text), PIECE):
            piece = text[at : at + PIECE]
            size = len(piece.encode("utf-8", "replace"))
            kept = min(size, self._room)
            if kept < size:
                piece = piece.encode("utf-8", "replace")[:kept].decode("utf-8", "ignore")
            if piece:
                self._wire.send(type=name, id=self._id, text=piece)
            self._room -= kept
            self._drop(size - kept)

    def result(self, data: dict[str, Any], *, is_main: bool) -> None:
        kept: dict[str, Any] = {}
        omitted, dropped = [], 0
        most = min(self._room, MOST_RESULT)
        for mime, value, size in sorted(_sized(data), key=lambda item: item[2]):
            if size > most:
                omitted.append(mime)
                dropped += size
            else:
                kept[mime] = value
                most -= size
                self._room -= size
        self._wire.send(type="result", id=self._id, data=kept, is_main=is_main, omitted=omitted)
        self._drop(dropped)

    def error(self, name: str, value: str, traceback: list[str]) -> None:
        lines = [line[:PIECE] for line in traceback[-200:]]
        while sum(map(len, lines)) > 16 * PIECE:
            lines.pop(0)
        self._wire.send(type="error", id=self._id, name=name[:200], value=value[:PIECE], traceback=lines)

    def _drop(self, size: int) -> None:
        if size and not self.dropped:
            self._wire.send(type="truncated", id=self._id)
        self.dropped += size


def _sized(data: dict[str, Any]) -> list[tuple[str, Any, int]]:
    """MIME types, values and bytes as JSON; what is none is left out."""
    found = []
    for mime, value in data.items():
        with contextlib.suppress(ValueError, TypeError):
            size = len(json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace"))
            found.append((mime, value, size + len(mime)))
    return found
