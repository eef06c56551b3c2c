"""Hosts in memory, named after what goes wrong on them."""

from __future__ import annotations

from dovecote.control.fleet import Claim, Placed
from dovecote.errors import Failed, NoCapacity, StorageFailed
from tests.unit.memory_host import Clock, MemoryHost


class SlowStart(MemoryHost):
    """Claims take until `let_go("claim")`."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.hold("claim")


class NeverReady(MemoryHost):
    """Servers go on, but their port never opens."""

    does_open = False


class DiesOnStart(MemoryHost):
    """Servers end as soon as they are started, with last words."""

    does_last = False


class DiesLater(MemoryHost):
    """The first `deaths` instances die after they were claimed, before whoever claimed them hears of it."""

    def __init__(self, clock: Clock, deaths: int = 1) -> None:
        super().__init__(clock)
        self.deaths = deaths

    async def claim(self, claim: Claim) -> Placed:
        placed = await super().claim(claim)
        if self.deaths:
            self.deaths -= 1
            await self.die(claim.owner)
        return placed


class FailsSave(MemoryHost):
    """The store takes nothing until `mend_store`."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        full = StorageFailed("no space left", code="disk_full")
        self.refuse("save", full)
        self.refuse("save_leftover", full)

    def mend_store(self) -> None:
        self.mend("save")
        self.mend("save_leftover")


class Corrupt(MemoryHost):
    """Files that were saved cannot be verified when they are to be restored."""

    async def claim(self, claim: Claim) -> Placed:
        if claim.workspace.tree is not None:
            self.claims.append(claim)
            raise StorageFailed(f"{claim.workspace.tree} does not match its digest", code="corrupt")
        return await super().claim(claim)


class FreezeFails(MemoryHost):
    """The cgroup cannot be frozen."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.refuse("freeze", Failed("cannot write freezer.state", code="freeze_failed"))


class NoMemory(MemoryHost):
    """Refuses every claim until `mend("claim")`."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.refuse("claim", NoCapacity("1 MiB of memory left", code="no_memory", retry_after=5))
