"""The place where a guest binds its socket, when something else in the sandbox was there first."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from dovecote.host.instances.door import Door


def test_a_listener_that_takes_no_call_keeps_nobody_waiting(tmp_path: Path) -> None:
    door = Door(tmp_path, os.getuid())
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as waiting:
        listener.bind(str(door.socket))
        listener.listen(0)
        waiting.connect(str(door.socket))
        found: list[bool] = []
        looking = threading.Thread(target=lambda: found.append(door._listens()), daemon=True)
        looking.start()
        looking.join(10)
        assert found == [True]


@pytest.mark.parametrize("what", ["nothing", "file", "link", "closed"])
def test_what_is_no_listener_is_told_from_one(tmp_path: Path, what: str) -> None:
    inside = tmp_path / "door"
    inside.mkdir()
    door = Door(inside, os.getuid())
    with socket.socket(socket.AF_UNIX) as listener:
        if what == "file":
            door.socket.touch()
        elif what == "link":
            listener.bind(str(tmp_path / "elsewhere"))
            listener.listen()
            door.socket.symlink_to(tmp_path / "elsewhere")
        elif what == "closed":
            listener.bind(str(door.socket))
        assert not door._listens()
