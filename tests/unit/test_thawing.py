"""The guard that thaws what was paused when the server ends."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from dovecote.errors import DeadlineExceeded
from dovecote.host.runtime import Cgroups, Pauses, thawing

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


class NeverAtRest:
    """Groups that do not come to rest."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def thaw_file(self, name: str) -> tuple[Path, str]:
        return self.file, "THAWED"

    async def freeze(self, name: str, *, within: float) -> None:
        raise DeadlineExceeded("it did not freeze", code="freeze_timeout")

    async def thaw(self, name: str) -> None: ...


@pytest.mark.anyio
async def test_what_could_not_be_paused_is_not_thawed_when_the_server_ends(tmp_path: Path) -> None:
    file = tmp_path / "state"
    file.write_text("FROZEN")
    pauses = Pauses(cast(Cgroups, NeverAtRest(file)))
    async with pauses.still("a") as is_still:
        assert not is_still
    await pauses.stop()
    assert file.read_text() == "FROZEN"
