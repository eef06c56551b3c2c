"""Containers as boxes: started, frozen, limited and ended by drivers of one contract."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Protocol

from dovecote.errors import Unsupported
from dovecote.host.runtime.box import DOOR, Box, Capabilities, cannot_hibernate, ensure_stub
from dovecote.host.runtime.cgroups import Cgroups, Usage
from dovecote.host.runtime.gvisor import NAME as GVISOR
from dovecote.host.runtime.gvisor import GVisorRuntime, missing_tools
from dovecote.host.runtime.oci import FLAVORS, OCIRuntime, find_oci
from dovecote.host.runtime.pauses import Pauses
from dovecote.host.runtime.probe import probe_cgroups

SHARING = tuple(FLAVORS)  # the machine's kernel
LEVELS = (*SHARING, GVISOR)


class Runtime(Protocol):
    """Starts and ends boxes at one isolation level. Drivers: crun and runc (OCIRuntime), runsc (GVisorRuntime).

    tests/contract/test_runtime.py says the rest.
    """

    @property
    def name(self) -> str: ...

    @property
    def capabilities(self) -> Capabilities: ...

    async def start(self, box: Box) -> int:
        """The host's pid of PID 1, which runs now and goes on running when we end.

        Its cgroup exists. Nothing is left of a start that fails. Raises Conflict `exists`, and Failed `runtime_failed`
        with the runtime's own last words.
        """

    async def kill(self, box_id: str, signal: int = signal.SIGKILL) -> None:
        """Sends a signal to PID 1; nothing happens when it has ended. Not waited for. May be repeated."""

    async def delete(self, box_id: str) -> None:
        """Ends it if it runs; returns when its processes are gone and nothing is known of it. May be repeated.

        A frozen box must be thawed or its cgroup killed before. Its cgroup and directory stay: they are the caller's.
        """

    async def list(self) -> dict[str, int]:
        """Box id -> host's pid of PID 1, of those still known; 0 where it has ended and was not deleted yet."""

    async def pause(self, box_id: str) -> None:
        """Nothing inside runs from now on until `resume`, but its memory can be saved. Raises Failed.

        This and the next two where `can_hibernate`; elsewhere they raise Unsupported `cannot_hibernate`.
        """

    async def resume(self, box_id: str) -> None: ...

    async def save_memory(self, box_id: str, into: Path) -> None:
        """Writes processes and their memory into a directory, for `Box.memory`. The box stays as it is.

        First it is paused, and its door shut: an open socket at it cannot be saved. Raises Failed.
        """


def find_runtime(level: str, state: Path, cgroups: Cgroups) -> Runtime:
    """The runtime of an isolation level, which keeps its state below `state`.

    Raises Unsupported: `no_level` for a level that we do not have, `missing_tool` for a program to install.
    """
    if level in FLAVORS:
        return find_oci(level, state, cgroups)
    if level != GVISOR:
        raise Unsupported(f"no isolation level {level!r}", code="no_level", hint=f"use one of {', '.join(LEVELS)}")
    for tool in missing_tools():
        hint = "deploy/install.sh gvisor" if tool == GVISOR else "apt-get install util-linux mount"
        raise Unsupported(f"{tool} is not installed", code="missing_tool", hint=hint)
    binary = shutil.which(GVISOR)
    assert binary
    return GVisorRuntime(binary, state / GVISOR, cgroups)


__all__ = [
    "DOOR",
    "LEVELS",
    "SHARING",
    "Box",
    "Capabilities",
    "Cgroups",
    "GVisorRuntime",
    "OCIRuntime",
    "Pauses",
    "Runtime",
    "Usage",
    "cannot_hibernate",
    "ensure_stub",
    "find_runtime",
    "probe_cgroups",
]
