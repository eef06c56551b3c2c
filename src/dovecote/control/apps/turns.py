"""What an app's function wants done when an instance begins and ends."""

from __future__ import annotations

from dovecote.control.apps.running import AppInstance
from dovecote.control.fleet import Host
from dovecote.control.sessions.hooks import INITIALIZE, PRE_STOP, Inside, failed_start, run_hook
from dovecote.model.records import Revision


async def initialize(instance: AppInstance, host: Host, revision: Revision) -> None:
    """Once its port is open, before its first request. Raises Failed (hook_failed)."""
    run = await run_hook(_met(instance, host, revision), INITIALIZE)
    if run is not None and not run.is_ok:
        raise failed_start(run)


async def before_stop(instance: AppInstance, host: Host, revision: Revision) -> None:
    """Draining froze it: it is thawed for its hook, and nobody is sent to it any more."""
    if revision.hooks.pre_stop is not None:
        await host.thaw(instance.instance_id)
        await run_hook(_met(instance, host, revision), PRE_STOP)


def _met(instance: AppInstance, host: Host, revision: Revision) -> Inside:
    env = {**revision.inside.env, **revision.env}
    address = instance.address.rpartition(":")[0]
    return Inside(instance.instance_id, address, host.guest(instance.instance_id), revision, revision.start, env)
