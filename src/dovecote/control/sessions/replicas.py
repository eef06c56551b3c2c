"""Instances without files of their own, of apps and of functions whose callers share: how they begin and end."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from dovecote.control.fleet import Claim, Host, Placed
from dovecote.control.sessions.hooks import Inside
from dovecote.control.sessions.starting import ensure_started
from dovecote.errors import NotFound
from dovecote.model.records import Revision
from dovecote.model.sizes import SPECS
from dovecote.model.trees import Workspace

log = logging.getLogger(__name__)

STOP_TRIES = 5


class Admit(Protocol):
    """Held around the beginning of an instance. Raises NoCapacity (no_memory)."""

    def __call__(self, host: Host, owner: str) -> AbstractAsyncContextManager[None]: ...


async def claim_replica(host: Host, owner: str, revision: Revision, *, admit: Admit, connections: int = 0) -> Placed:
    """`connections` at once are taken from outside, 0 for no limit. Raises NoCapacity, and what claims raise."""
    async with admit(host, owner):
        return await host.claim(
            Claim(
                owner=owner,
                workspace=Workspace(revision.template, revision.tree),
                limits=SPECS[revision.spec].limits,
                network=revision.network,
                level=revision.level,
                epoch=1,
                keeps_files=False,
                allow_setuid=revision.inside.has_sudo,
                mounts=revision.mounts,
                connections=connections,
            )
        )


def inside_of(host: Host, instance_id: str, address: str, revision: Revision) -> Inside:
    """What its server and its hooks meet: nobody's session, so no variables of one."""
    env = {**revision.inside.env, **revision.env}
    return Inside(instance_id, address, host.guest(instance_id), revision, revision.start, env)


async def start_server(inside: Inside) -> int:
    """The number of its server's command; started unless it runs. May be repeated."""
    assert inside.start is not None
    template = inside.revision.inside
    return await ensure_started(inside.guest, inside.start, user=template.user, env=inside.env, cwd=template.cwd)


async def stop_replica(host: Host, instance_id: str, owner: str) -> None:
    """Tries again for a while, and never raises: whoever ends it has nobody to tell. May be repeated."""
    for attempt in range(STOP_TRIES):
        if attempt:
            await asyncio.sleep(2 ** (attempt - 1))
        try:
            return await host.stop(instance_id)
        except NotFound:
            return  # gone already
        except Exception as error:
            log.error("%s of %s could not be stopped: %s", instance_id, owner, error)
