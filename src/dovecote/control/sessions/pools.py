"""The shared instances that there are, of each function. No I/O."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

from dovecote.control.fleet import Host, Observed
from dovecote.control.sessions.seats import SharedInstance
from dovecote.model.ids import random_text
from dovecote.model.records import Function, Revision

OWNER = "fun_"  # how the owners of shared instances begin


@dataclass(eq=False)
class Pool:
    """The shared instances of one function, of all its revisions."""

    function: Function
    instances: list[SharedInstance] = field(default_factory=list)
    first: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False)  # of those who look for a place, in order

    def current(self, revision: Revision) -> list[SharedInstance]:
        return [each for each in self.instances if each.is_open and each.revision.id == revision.id]

    def has_room(self, revision: Revision) -> bool:
        """Whether one more instance may be started. Those that leave count until they are gone."""
        return not revision.sharing.instances or len(self.instances) < revision.sharing.instances

    def empty_outdated(self, revision_id: str) -> list[SharedInstance]:
        """Those of another revision that nobody holds a seat in any more."""
        others = [each for each in self.instances if each.revision.id != revision_id]
        return [each for each in others if each.is_ready and each.is_open and not each.seats and not each.places]


class Pools:
    """Every instance's owner is `{function}:{revision}:{random}`, and begins with OWNER.

    A pool is there as long as it has an instance, or somebody looks for a place in it.
    """

    def __init__(self) -> None:
        self._pools: WeakValueDictionary[str, Pool] = WeakValueDictionary()  # by function
        self._held: set[Pool] = set()  # those that have instances

    def of(self, function: Function) -> Pool:
        """Made where there is none; it knows the function as it was last read."""
        pool = self._pools.setdefault(function.id, Pool(function))
        if function.generation >= pool.function.generation:
            pool.function = function
        return pool

    def around(self, instance: SharedInstance) -> Pool | None:
        return self._pools.get(instance.owner.partition(":")[0])

    def add(self, pool: Pool, revision: Revision, host: Host) -> SharedInstance:
        """One that is to come."""
        instance = SharedInstance(f"{pool.function.id}:{revision.id}:{random_text(10)}", revision, host)
        self.take(pool, instance)
        return instance

    def take(self, pool: Pool, instance: SharedInstance) -> None:
        pool.instances.append(instance)
        self._held.add(pool)

    def remove(self, instance: SharedInstance) -> None:
        """May be repeated."""
        pool = self.around(instance)
        if pool is not None and instance in pool.instances:
            pool.instances.remove(instance)
            if not pool.instances:
                self._held.discard(pool)

    def strays(self, observed: Iterable[Observed]) -> list[Observed]:
        """Of what a host has, those that nobody knows: ending them or taking them over has failed."""
        known = {instance.owner for instance in self.all()}
        return [seen for seen in observed if seen.owner.startswith(OWNER) and seen.owner not in known]

    def all(self) -> list[SharedInstance]:
        return [instance for pool in self._held for instance in pool.instances]
