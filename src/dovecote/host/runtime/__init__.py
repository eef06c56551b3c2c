"""Containers as boxes: started, frozen, limited and ended by drivers of one contract."""

from __future__ import annotations

import signal
from typing import Protocol

from dovecote.host.runtime.box import Box, Capabilities, ensure_stub
from dovecote.host.runtime.cgroups import Cgroups, Usage
from dovecote.host.runtime.oci import FLAVORS, OCIRuntime, find_runtime
from dovecote.host.runtime.pauses import Pauses
from dovecote.host.runtime.probe import probe_cgroups

LEVELS = tuple(FLAVORS)


class Runtime(Protocol):
    """Starts and ends boxes at one isolation level. Drivers: crun and runc (OCIRuntime).

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


__all__ = [
    "LEVELS",
    "Box",
    "Capabilities",
    "Cgroups",
    "OCIRuntime",
    "Pauses",
    "Runtime",
    "Usage",
    "ensure_stub",
    "find_runtime",
    "probe_cgroups",
]
