"""The instances that are here: found by id and by owner, watched, and buried when they have ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable

from dovecote.background import Background
from dovecote.errors import DovecoteError, Failed, NotFound
from dovecote.host.instances.instance import Death, Instance
from dovecote.host.instances.leftovers import Leftovers
from dovecote.host.instances.preparing import Parts, Preparing
from dovecote.host.instances.warm import WarmPool
from dovecote.model.states import InstanceState

log = logging.getLogger(__name__)

BURIED_WITHIN = 30.0


class Present:
    def __init__(
        self,
        parts: Parts,
        preparing: Preparing,
        warm: WarmPool,
        leftovers: Leftovers,
        *,
        background: Background,
        on_death: Callable[[Death], None],
    ) -> None:
        self._parts = parts
        self._preparing = preparing
        self._warm = warm
        self._leftovers = leftovers
        self._background = background
        self._on_death = on_death
        self._live: dict[str, Instance] = {}
        self._by_owner: dict[str, Instance] = {}

    def all(self) -> list[Instance]:
        return list(self._live.values())

    def find(self, instance_id: str) -> Instance | None:
        return self._live.get(instance_id)

    def of(self, owner: str) -> Instance | None:
        """Also one that has just died, until it is buried."""
        return self._by_owner.get(owner)

    async def burial(self, owner: str) -> None:
        """What dies now becomes a leftover first: this waits for that. Raises Failed (kill_timeout)."""
        dying = self._by_owner.get(owner)
        if dying is not None and dying.is_dead:
            await _buried(dying)

    def get(self, instance_id: str) -> Instance:
        try:
            return self._live[instance_id]
        except KeyError:
            raise NotFound(f"no instance {instance_id} on this host", code="no_such_instance") from None

    def keep(self, instance: Instance) -> None:
        assert instance.claim is not None
        self._live[instance.id] = instance
        self._by_owner[instance.claim.owner] = instance
        if instance.pidfd < 0:
            self.watch(instance)

    def watch(self, instance: Instance) -> None:
        if not instance.pid:
            return  # a claim starts its first process
        try:
            instance.pidfd = os.pidfd_open(instance.pid)
        except ProcessLookupError:
            asyncio.get_running_loop().call_soon(self._died, instance)
            return
        asyncio.get_running_loop().add_reader(instance.pidfd, self._died, instance)

    def unwatch(self, instance: Instance) -> None:
        if instance.pidfd >= 0:
            asyncio.get_running_loop().remove_reader(instance.pidfd)
            os.close(instance.pidfd)
            instance.pidfd = -1

    def _died(self, instance: Instance) -> None:
        self.unwatch(instance)
        instance.is_dead = True
        if self._warm.drop(instance) or instance.id in self._live:
            self._background.run(self._after_death(instance), f"burying {instance.id}")

    async def _after_death(self, instance: Instance) -> None:
        async with instance.lock:
            if instance.claim is None:
                await self._preparing.unmake(instance, keep_disk=False)
                return
            if instance.id not in self._live:
                return
            reason, is_own_doing = "its processes were killed", False
            with contextlib.suppress(DovecoteError, OSError):
                if self._parts.cgroups.usage(instance.id).oom_kills:
                    reason, is_own_doing = "it ran out of memory", True
            log.warning("%s of %s died: %s", instance.id, instance.claim.owner, reason)
            try:
                self._on_death(Death(instance.id, instance.claim.owner, reason, is_own_doing))
            finally:
                await self.bury(instance)

    async def bury(self, instance: Instance) -> None:
        """After its last process: frees what it used; files that are kept become a leftover."""
        claim = instance.claim
        assert claim is not None
        self._live.pop(instance.id, None)
        instance.become(InstanceState.GONE)
        try:
            await self._preparing.unmake(instance, keep_disk=claim.keeps_files)
            if claim.keeps_files:
                await self._leftovers.keep(claim.owner, instance.disk)
        except Exception:
            # Its files are not offered to anybody now: something of it may still write to them.
            log.exception("%s of %s is not gone, it is looked at again at the next start", instance.id, claim.owner)
        finally:
            for connection in list(instance.connections):
                connection.cut()  # what came of its end before that is still received
            # Last: whoever waits for it finds the leftover.
            if self._by_owner.get(claim.owner) is instance:
                del self._by_owner[claim.owner]
            instance.buried.set()


async def _buried(instance: Instance) -> None:
    try:
        await asyncio.wait_for(instance.buried.wait(), BURIED_WITHIN)
    except TimeoutError as error:
        hint = "look for processes in D state"
        raise Failed(f"{instance.id} does not end", code="kill_timeout", hint=hint) from error
