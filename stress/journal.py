"""What a program inside says that it has done, noted outside as it says it."""

from __future__ import annotations

import json
import threading
from contextlib import closing

import httpx

from dovecote.sdk import Command, DovecoteError
from dovecote.sdk import Output as Text


class Journal:
    """`done` counts steps from the session's first one on. Times are the machine's monotonic clock."""

    def __init__(self, command: Command, *, first: int) -> None:
        self.command = command
        self.first = first
        self.done = first
        self.stamps: dict[int, float] = {}
        self.installs: dict[int, str] = {}  # step -> digest of the installed tree
        self.failed_installs: list[str] = []
        self.is_over = False
        self.broken: list[str] = []
        self._thread: threading.Thread | None = None
        self.follow()

    def follow(self) -> None:
        """Reads on, from the beginning of what is still kept: after the server came back."""
        self.join()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def join(self) -> None:
        if self._thread is not None:
            self._thread.join(30)

    def _read(self) -> None:
        text, errors = "", ""
        try:
            with closing(self.command.output()) as events:
                for event in events:
                    if not isinstance(event, Text):
                        continue
                    if event.stream == "stderr":
                        errors += event.data
                        continue
                    *lines, text = (text + event.data).split("\n")
                    for line in lines:
                        self._note(line)
        except (DovecoteError, httpx.HTTPError, OSError):
            return  # it, or what stands between, was killed: that is what this is about
        if errors:
            self.broken.append(errors[-1500:])

    def _note(self, line: str) -> None:
        try:
            words = json.loads(line)
        except ValueError:
            return  # the first line that is still kept may be half of one
        match words:
            case ["end"]:
                self.is_over = True
            case ["npm", str(), str(digest)]:
                self.installs[self.done] = digest
            case ["npm-failed", str(why)]:
                self.failed_installs.append(why)
            case [int(number), float(at)]:
                self.done = max(self.done, self.first + number + 1)
                self.stamps.setdefault(self.first + number, at)
