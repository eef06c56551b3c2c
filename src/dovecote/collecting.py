"""Collects garbage of the store: on the server once a day, or when its operator asks."""

from __future__ import annotations

import asyncio
import logging
import threading
from datetime import timedelta

from dovecote.config import Settings
from dovecote.control.references import living_trees, records_identity
from dovecote.errors import Conflict
from dovecote.host.assembly import LocalHost, open_objects, recorded_templates
from dovecote.host.storage.bucket import Bucket
from dovecote.host.storage.garbage import Collected, collect_garbage
from dovecote.host.storage.marking import References
from dovecote.store import Store

log = logging.getLogger(__name__)

LOOK_EVERY = 300.0  # seconds; whether a run is due is asked of the store, so that a restart delays none
_RECORDS_TIMEOUT = 600.0  # seconds that reading the records of all tenants may take


async def collect(
    store: Store,
    bucket: Bucket,
    settings: Settings,
    *,
    every: timedelta = timedelta(0),
    dry_run: bool = False,
    stopping: threading.Event | None = None,
) -> Collected | None:
    """One run, in a thread. Raises what `collect_garbage` raises."""
    loop = asyncio.get_running_loop()
    templates = frozenset(recorded_templates(settings).values())
    stop = stopping or threading.Event()

    async def read() -> References:
        trees, ended = await living_trees(store)
        return References(trees | templates, ended)

    def references() -> References:
        return asyncio.run_coroutine_threadsafe(read(), loop).result(_RECORDS_TIMEOUT)

    identity = await records_identity(store)
    try:
        return await asyncio.to_thread(
            collect_garbage,
            bucket,
            references,
            records=identity,
            every=every,
            stopped=stop.is_set,
            dry_run=dry_run,
        )
    except asyncio.CancelledError:
        stop.set()
        raise


async def collect_now(store: Store, settings: Settings, *, dry_run: bool) -> Collected:
    """For the operator, beside a server that runs or not."""
    done = await collect(store, open_objects(settings), settings, dry_run=dry_run)
    assert done is not None  # only a run that waits for its time is none
    return done


async def pin_and_collect(store: Store, host: LocalHost, settings: Settings) -> None:
    """For the server, every LOOK_EVERY: says what its host needs, and collects and forgets when it is time."""
    await host.pin()
    await host.forget_lost()
    if not settings.gc_every:
        return
    try:
        done = await collect(store, host.bucket, settings, every=timedelta(seconds=settings.gc_every))
    except Conflict as error:
        if error.code != "collecting":  # another server is at it
            raise
        return
    if done is not None:
        log.info("garbage: %s", told(done))


def told(done: Collected) -> str:
    freed, condemned = done.deleted, done.condemned
    more = "" if done.is_whole else "; there is more to do for the next run"
    return (
        f"{freed.count} names deleted ({freed.bytes} bytes), {condemned.count} condemned ({condemned.bytes} bytes), "
        f"{done.spared} spared, {done.slots} slots of logs deleted, "
        f"{done.repacked.count} packs rewritten ({done.repacked.bytes} bytes to come back), "
        f"{done.kept.count} kept ({done.kept.bytes} bytes){more}"
    )
