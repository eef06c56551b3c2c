"""Starts, rests and ends one shared instance."""

from __future__ import annotations

import asyncio
import contextlib

from dovecote.control.sessions.hook_runs import HookRuns
from dovecote.control.sessions.hooks import INITIALIZE, PRE_FREEZE, PRE_STOP, failed_start
from dovecote.control.sessions.replicas import Admit, claim_replica, start_server, stop_replica
from dovecote.control.sessions.seats import SharedInstance
from dovecote.control.sessions.starting import instance_dies, wait_for_port
from dovecote.errors import DovecoteError
from dovecote.model.past import HookRun

FREEZE_TRIES, FREEZE_PAUSE = 10, 0.05  # after a hook was called, whose connection may need a moment to be gone


class Bringing:
    def __init__(self, *, start_timeout: float, admit: Admit, hooks: HookRuns) -> None:
        self._start_timeout = start_timeout
        self._admit = admit
        self._hooks = hooks

    async def bring(self, instance: SharedInstance) -> None:
        """Returns when it takes requests. What claims, starts and hooks raise; then nothing of it is left."""
        try:
            await self._bring(instance)
        except Exception:
            await self.stop(instance)
            raise
        if instance.is_dead:
            raise instance_dies()
        instance.is_ready = True
        instance.touch()

    async def _bring(self, instance: SharedInstance) -> None:
        revision = instance.revision
        placed = await claim_replica(
            instance.host, instance.owner, revision, admit=self._admit, connections=revision.sharing.requests
        )
        instance.instance_id, instance.address, instance.pid = placed.instance_id, placed.address, placed.pid
        await self.serve(instance)
        run = await self._run(instance, INITIALIZE)
        if run is not None and not run.is_ok:
            raise failed_start(run)

    async def _run(self, instance: SharedInstance, hook: str) -> HookRun | None:
        run = await self._hooks.run(instance.inside, hook)
        if run is not None:
            instance.past = instance.past.ran(run)
        return run

    async def serve(self, instance: SharedInstance) -> None:
        """Returns when its server takes connections, started unless it runs."""
        guest, start = instance.host.guest(instance.instance_id), instance.revision.start
        assert start is not None
        instance.is_serving = False
        if not (await guest.wait_port(start.port, 0)).is_open:
            server = await start_server(instance.inside)
            await wait_for_port(guest, start.port, server=server, timeout=self._start_timeout)
        instance.is_serving = True

    async def thaw(self, instance: SharedInstance) -> None:
        async with instance.turning:
            if instance.is_frozen:
                await instance.host.thaw(instance.instance_id)
                instance.is_frozen = False

    async def freeze(self, instance: SharedInstance) -> bool:
        """False when a request is on its way."""
        async with instance.turning:
            if instance.is_frozen:
                return True
            await self._run(instance, PRE_FREEZE)
            instance.is_frozen = await self._freeze(instance)
            return instance.is_frozen

    async def _freeze(self, instance: SharedInstance) -> bool:
        tries = FREEZE_TRIES if instance.revision.hooks.pre_freeze is not None else 1
        for _ in range(tries):
            if await instance.host.freeze(instance.instance_id):
                return True
            if tries > 1:
                await asyncio.sleep(FREEZE_PAUSE)
        return False

    async def end(self, instance: SharedInstance) -> bool:
        """Ends it unless a request is on its way. Whoever calls this has seen to it that nobody new is sent there."""
        async with instance.turning:
            if not instance.is_frozen and not await instance.host.freeze(instance.instance_id):
                return False
            instance.is_frozen = True
            if instance.revision.hooks.pre_stop is not None:
                with contextlib.suppress(DovecoteError):  # the hook itself finds out
                    await instance.host.thaw(instance.instance_id)
                await self._run(instance, PRE_STOP)
            await self.stop(instance)
            return True

    async def stop(self, instance: SharedInstance) -> None:
        """What it was claimed for has come to nothing, or is over. May be repeated."""
        if instance.instance_id and not instance.is_dead:
            await stop_replica(instance.host, instance.instance_id, instance.owner)
