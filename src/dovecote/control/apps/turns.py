"""How one instance of an app begins and ends."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from dovecote.control.apps.running import AppInstance, RunningApp
from dovecote.control.fleet import Fleet, Host
from dovecote.control.functions import Functions
from dovecote.control.sessions import HookRuns, claim_replica, inside_of, start_server, stop_replica, wait_for_port
from dovecote.control.sessions.hooks import INITIALIZE, PRE_STOP, Inside, failed_start
from dovecote.control.sessions.replicas import Admit
from dovecote.model.records import Revision

log = logging.getLogger(__name__)

DRAIN_WITHIN = 10.0  # seconds that requests in flight may take when an instance leaves


class AppTurns:
    """`tell` says to the gateway who serves by now."""

    def __init__(
        self,
        fleet: Fleet,
        functions: Functions,
        *,
        start_timeout: float,
        admit: Admit,
        hooks: HookRuns,
        tell: Callable[[], Awaitable[None]],
    ) -> None:
        self._fleet = fleet
        self._functions = functions
        self._start_timeout = start_timeout
        self._admit = admit
        self._hooks = hooks
        self._tell = tell

    async def bring(self, there: RunningApp, instance: AppInstance, revision: Revision) -> None:
        """Claims an instance and runs the app's start in it; returns when its port is open, or when it is to leave."""
        assert revision.start is not None
        host = self._fleet.host(self._fleet.place(prefer=None))
        placed = await claim_replica(host, instance.owner, revision, admit=self._admit)
        instance.host, instance.instance_id, instance.pid = host, placed.instance_id, placed.pid
        instance.address = f"{placed.address}:{revision.start.port}"
        if instance.is_leaving:
            return
        server = await start_server(_inside(instance, host, revision))
        await self._opened(instance, host, revision.start.port, server)
        if instance.is_leaving:
            return
        # Once its port is open, before its first request.
        run = await self._hooks.run(_inside(instance, host, revision), INITIALIZE)
        if run is not None and not run.is_ok:
            raise failed_start(run)
        instance.is_ready, instance.ready_at = True, time.monotonic()
        there.failed, there.failures = None, 0 if there.failures < 2 else there.failures - 1

    async def _opened(self, instance: AppInstance, host: Host, port: int, server: int) -> None:
        """Returns when the port is open, or the instance is to leave."""
        guest = host.guest(instance.instance_id)
        opening = asyncio.ensure_future(wait_for_port(guest, port, server=server, timeout=self._start_timeout))
        leaving = asyncio.ensure_future(instance.leaving.wait())
        try:
            await asyncio.wait({opening, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            if not opening.done():
                opening.cancel()
        if not instance.is_leaving:
            await opening

    async def end(self, there: RunningApp, instance: AppInstance) -> None:
        """Out of the gateway first, then until its last request is answered (bounded), then its processes end."""
        try:
            await self._tell()
            if instance.host is not None and instance.is_ready and not instance.is_dead:
                await _drained(instance.host, instance.instance_id)
                revision = await self._functions.revision(there.app.tenant_id, instance.revision_id)
                await self._before_stop(instance, instance.host, revision)
        except Exception as error:
            log.warning("%s of app %s leaves without draining: %s", instance.instance_id, there.app.name, error)
        if instance.host is not None:
            await stop_replica(instance.host, instance.instance_id, f"app {there.app.name}")
        there.instances.remove(instance)

    async def _before_stop(self, instance: AppInstance, host: Host, revision: Revision) -> None:
        """Draining froze it: it is thawed for its hook, and nobody is sent to it any more."""
        if revision.hooks.pre_stop is not None:
            await host.thaw(instance.instance_id)
            await self._hooks.run(_inside(instance, host, revision), PRE_STOP)


def _inside(instance: AppInstance, host: Host, revision: Revision) -> Inside:
    return inside_of(host, instance.instance_id, instance.address.rpartition(":")[0], revision)


async def _drained(host: Host, instance_id: str) -> None:
    deadline = asyncio.get_running_loop().time() + DRAIN_WITHIN
    # Freezing refuses new connections and succeeds only when no request is on its way.
    while not await host.freeze(instance_id):
        if asyncio.get_running_loop().time() > deadline:
            return
        await asyncio.sleep(0.1)
