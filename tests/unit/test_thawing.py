"""The guard that thaws what was paused when the server ends."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dovecote.host.runtime import thawing

BOUND = 10.0


class Guarded:
    """A guard in a thread, and the end of its socket that a server has. Groups are files."""

    def __init__(self, directory: Path) -> None:
        self.ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ours.settimeout(BOUND)
        self.directory = directory
        self._guard = threading.Thread(target=self._serve, args=(theirs,), daemon=True)
        self._guard.start()

    def _serve(self, theirs: socket.socket) -> None:
        with theirs:
            thawing.serve(theirs)

    def say(self, what: bytes, name: str) -> None:
        file = self.directory / name
        file.touch()
        self.ours.send(what + b"THAWED " + bytes(file))

    def heard(self) -> None:
        assert self.ours.recv(1) == thawing.PAUSED

    def die(self) -> None:
        self.ours.close()
        self._guard.join(BOUND)
        assert not self._guard.is_alive()

    def thawed(self) -> set[str]:
        return {file.name for file in self.directory.iterdir() if file.read_bytes() == b"THAWED"}


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Guarded]:
    guarded = Guarded(tmp_path)
    yield guarded
    guarded.ours.close()


def test_what_is_paused_goes_on_when_the_server_dies_and_nothing_else_is_touched(guarded: Guarded) -> None:
    for name in ("a", "b"):
        guarded.say(thawing.PAUSED, name)
        guarded.heard()
    guarded.say(thawing.GOES_ON, "a")
    guarded.die()
    assert guarded.thawed() == {"b"}


def test_what_is_paused_goes_on_when_the_server_dies_with_an_answer_unread(guarded: Guarded) -> None:
    guarded.say(thawing.PAUSED, "a")
    guarded.heard()
    guarded.say(thawing.PAUSED, "b")
    assert guarded.ours.recv(1, socket.MSG_PEEK) == thawing.PAUSED
    guarded.die()
    assert guarded.thawed() == {"a", "b"}
