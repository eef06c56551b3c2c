"""Files on this host that no instance uses: of each owner the ones to go on from, and orphans."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from weakref import WeakValueDictionary

from dovecote.errors import Conflict, NotFound
from dovecote.host.instances.instance import Leftover
from dovecote.host.instances.saving import Saving
from dovecote.model.trees import Saved


class Leftovers:
    """At most one of an owner counts. Orphans are never used again, and go when their owner is erased."""

    def __init__(self, saving: Saving, *, release: Callable[[int], None]) -> None:
        """`release` gets the id range of each disk that was deleted."""
        self._saving = saving
        self._release = release
        self._left: dict[str, Leftover] = {}
        self._orphans: dict[str, set[str]] = {}  # disks by owner
        self._moving: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def adopt(self, left: dict[str, Leftover], orphans: dict[str, set[str]]) -> None:
        """What lay on the disks when the host started."""
        self._left.update(left)
        self._orphans.update(orphans)

    def get(self, owner: str) -> Leftover | None:
        return self._left.get(owner)

    def list(self) -> list[Leftover]:
        return list(self._left.values())

    def orphaned(self) -> frozenset[str]:
        """Owners that have orphans here."""
        return frozenset(self._orphans)

    async def keep(self, owner: str, disk: str) -> None:
        """An instance of the owner is gone and its disk stays."""
        record = await self._saving.read(disk)
        self._left[owner] = Leftover(owner, disk, record.generation, record.epoch)

    def take(self, owner: str) -> None:
        """An instance goes on with it."""
        del self._left[owner]

    async def save(self, owner: str) -> Saved:
        """It stays, also as an orphan. Raises NotFound (no_leftover), StorageFailed."""
        left = self._left.get(owner)
        if left is None:
            raise NotFound(f"nothing of {owner} is left on this host", code="no_leftover")
        try:
            saved = await self._saving.save(left.disk)
        except Conflict as error:
            if error.code != "sealed":
                raise
            await self.orphan(owner)
            raise NotFound(f"{owner} went on elsewhere since", code="no_leftover") from error
        if self._left.get(owner) is left:
            self._left[owner] = replace(left, generation=saved.generation)
        return saved

    async def orphan(self, owner: str) -> None:
        """The owner went on elsewhere: what is here can only be looked at. May be repeated."""
        async with self._alone(owner):
            left = self._left.get(owner)
            if left is None:
                return
            self._orphans.setdefault(owner, set()).add(left.disk)
            await self._saving.orphan(left.disk)
            self._left.pop(owner, None)

    async def discard(self, owner: str) -> None:
        """Deletes the one that counts. May be repeated."""
        async with self._alone(owner):
            left = self._left.pop(owner, None)
            if left is not None:
                await self._delete(left.disk)

    async def erase(self, owner: str) -> None:
        """Deletes all that the owner has here. May be repeated."""
        await self.discard(owner)
        async with self._alone(owner):
            disks = self._orphans.get(owner, set())
            while disks:
                disk = next(iter(disks))
                await self._delete(disk)
                disks.discard(disk)
            self._orphans.pop(owner, None)

    async def _delete(self, disk: str) -> None:
        base = await self._saving.forget(disk)
        if base is not None:
            self._release(base)

    def _alone(self, owner: str) -> asyncio.Lock:
        return self._moving.setdefault(owner, asyncio.Lock())
