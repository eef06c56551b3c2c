"""Saves what runs while it runs: looks for instances that were written to, and brings their logs up to now."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from functools import partial

from dovecote.background import Background
from dovecote.errors import Conflict, DovecoteError
from dovecote.host.instances.instance import Instance
from dovecote.host.instances.metrics import CHECKPOINT_SECONDS, CHECKPOINTS, FAILING, OLDEST, UNSAVED
from dovecote.host.instances.saving import Saving
from dovecote.host.storage.pool import Disks
from dovecote.model.trees import Lag, LagState

log = logging.getLogger(__name__)

LOOK_EVERY = 0.2  # seconds
DEBOUNCE = 0.2  # seconds between the first write that is seen and its checkpoint, so that a burst is one
SHARE = 0.1  # of the time that checkpoints of one instance may take
LONGEST_REST = 12.0  # seconds between the checkpoints of a burst: with the checkpoint itself the lag stays below 15
BURST_FILES = 500  # that were made since the last checkpoint: an install, a checkout
BURST_ENDS = 0.6  # seconds without a new file
LONGEST_BURST = 9.0  # seconds that its first file waits for the end: with the checkpoint itself the lag stays below 15
RETRY = 1.0  # seconds after a failure, doubled with each one up to LONGEST_REST
AT_ONCE = 2
MOST_PENDING = 10_000  # files counted for a person
UNFORESEEN = "internal"  # the code of a failure that is none of ours


@dataclass(frozen=True)
class Progress:
    """How far behind the store the files of an instance are. Times are `time.monotonic()`."""

    saved_at: float | None = None
    dirty_since: float | None = None
    rested_since: float = 0.0
    took: float = 0.0
    failures: int = 0
    error_code: str = ""
    newest_inode: int = 0
    new_files: int = 0  # since the last checkpoint
    grew_at: float = 0.0

    def grown(self, inodes: Sequence[int], *, now: float) -> Progress:
        """With these, made since the last look. Of the first look nobody knows what is new."""
        if not inodes:
            return self
        new_files = self.new_files + len(inodes) if self.newest_inode else 0
        return replace(self, newest_inode=inodes[-1], new_files=new_files, grew_at=now)


def is_due(saved: Progress, *, now: float, recovery_point: float) -> bool:
    """Half of the recovery point is rest, unless checkpoints take so long that they must rest longer.

    A burst of new files is saved at its end: before that many are half written, and would be saved twice.
    """
    if saved.dirty_since is None or now - saved.dirty_since < DEBOUNCE:
        return False
    is_burst = saved.new_files >= BURST_FILES and now - saved.grew_at < BURST_ENDS
    if is_burst and now - saved.dirty_since < LONGEST_BURST:
        return False
    if saved.failures:
        rest = min(RETRY * 2.0 ** min(saved.failures - 1, 10), LONGEST_REST)
    else:
        rest = min(max(recovery_point / 2 - DEBOUNCE, saved.took / SHARE), LONGEST_REST)
    return now - saved.rested_since >= rest


def lag_of(saved: Progress, pending: int | None, *, now: float, recovery_point: float) -> Lag:
    """For a person: "last saved 0.8 s ago, 3 files pending"."""
    state = LagState.SAVED if pending == 0 else LagState.PENDING
    return Lag(
        LagState.FAILING if saved.failures else state,
        saved_ago=None if saved.saved_at is None else now - saved.saved_at,
        behind=0.0 if saved.dirty_since is None else now - saved.dirty_since,
        pending=pending,
        recovery_point=recovery_point,
        error_code=saved.error_code,
    )


class Checkpoints:
    """`live` are the instances that run now; `on_sealed` is told of one whose session goes on elsewhere.

    `still` stops an instance's processes for the moment that is saved.
    """

    def __init__(
        self,
        saving: Saving,
        disks: Disks,
        *,
        live: Callable[[], Iterable[Instance]],
        on_sealed: Callable[[str], None],
        still: Callable[[Instance], AbstractAsyncContextManager[object]],
    ) -> None:
        self._saving = saving
        self._disks = disks
        self._live = live
        self._on_sealed = on_sealed
        self._still = still
        self._saved: dict[str, Progress] = {}
        self._busy: set[str] = set()
        self._background = Background()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.ensure_future(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        await self._background.stop()

    async def lag(self, instance: Instance) -> Lag:
        """Raises NotFound when its disk is gone."""
        assert instance.claim is not None
        is_changed = await self._disks.is_changed(instance.disk, untouched=instance.untouched)
        changed = await self._disks.changed(instance.disk, most=MOST_PENDING) if is_changed else ()
        return lag_of(
            self._saved.get(instance.id, Progress()),
            # Files that were written to a moment ago may not be countable yet.
            None if changed is None else max(len(changed), int(is_changed)),
            now=time.monotonic(),
            recovery_point=instance.claim.recovery_point,
        )

    async def _run(self) -> None:
        while True:
            try:
                await self._look()
            except Exception:
                log.exception("a look for what must be saved failed, the next one is in %s s", LOOK_EVERY)
            await asyncio.sleep(LOOK_EVERY)

    async def _look(self) -> None:
        instances = {i.id: i for i in self._live() if i.claim is not None and i.claim.keeps_files and not i.is_dead}
        for gone in self._saved.keys() - instances.keys():
            del self._saved[gone]
        free = [each for each in instances.values() if each.id not in self._busy]
        clean = [each for each in free if self._saved.get(each.id, Progress()).dirty_since is None]
        changed = await self._disks.which_changed({each.disk: each.untouched for each in clean}) if clean else ()
        for instance in free:
            saved = self._saved.get(instance.id, Progress())
            if saved.dirty_since is None and instance.disk in changed:
                saved = replace(saved, dirty_since=time.monotonic())
            if saved.dirty_since is not None:
                saved = saved.grown(await self._new_inodes(instance, saved), now=time.monotonic())
                self._saved[instance.id] = saved
            assert instance.claim is not None
            due = is_due(saved, now=time.monotonic(), recovery_point=instance.claim.recovery_point)
            if due and len(self._busy) < AT_ONCE:
                self._busy.add(instance.id)
                self._background.run(self._save(instance), f"saving {instance.id}")
        self._count(time.monotonic())

    def _count(self, now: float) -> None:
        since = [saved.dirty_since for saved in self._saved.values() if saved.dirty_since is not None]
        UNSAVED.set(len(since))
        FAILING.set(sum(1 for saved in self._saved.values() if saved.failures))
        OLDEST.set(now - min(since, default=now))

    async def _new_inodes(self, instance: Instance, saved: Progress) -> Sequence[int]:
        try:
            return await self._disks.new_inodes(instance.disk, above=saved.newest_inode)
        except DovecoteError:
            return ()  # it is being taken apart

    async def _save(self, instance: Instance) -> None:
        saved = self._saved.get(instance.id, Progress())
        began = time.monotonic()
        try:
            await self._saving.checkpoint(instance.disk, still=partial(self._still, instance))
        except Exception as error:
            if isinstance(error, Conflict) and error.code == "sealed":
                self._on_sealed(instance.id)
            elif instance.is_dead:
                log.debug("%s ended while it was saved: %s", instance.id, error)
            else:
                expected = isinstance(error, (DovecoteError, OSError))
                log.warning("%s could not be saved, tried again: %s", instance.id, error, exc_info=not expected)
            code = error.code if isinstance(error, DovecoteError) else UNFORESEEN
            CHECKPOINTS.labels(code).inc()
            saved = replace(saved, failures=saved.failures + 1, error_code=code)
        else:
            # Written to meanwhile or not: the next look will see.
            took = time.monotonic() - began
            saved = Progress(saved_at=began, took=took, newest_inode=saved.newest_inode)
            CHECKPOINTS.labels("saved").inc()
            CHECKPOINT_SECONDS.observe(saved.took)
        finally:
            self._busy.discard(instance.id)
        self._saved[instance.id] = replace(saved, rested_since=time.monotonic())
