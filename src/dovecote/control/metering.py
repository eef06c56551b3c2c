"""What sandboxes have used, sample by sample, for as long as this process remembers."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from dovecote.control.sessions import Live, Sessions
from dovecote.errors import DovecoteError
from dovecote.model.sizes import SPECS, Limits

log = logging.getLogger(__name__)

SAMPLE_EVERY = 10.0  # seconds
APART = 1.0  # seconds between two samples of one session, however often somebody asks
MOST = 360  # samples of one session: an hour


@dataclass(frozen=True)
class Sample:
    """`cpu_percent` is of all its CPUs, since the sample before. `memory_bytes` includes `cache_bytes`."""

    at: datetime
    cpu_percent: float
    memory_bytes: int
    cache_bytes: int
    disk_bytes: int
    limits: Limits


@dataclass(frozen=True)
class _Last:
    """Of which instance, when, and how much CPU it had had by then."""

    instance_id: str
    at: float
    cpu_seconds: float


class Metering:
    """`tick` is called every SAMPLE_EVERY seconds. A session that rests has no samples of that time."""

    def __init__(self, sessions: Sessions, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._sessions = sessions
        self._clock = clock
        self._samples: dict[str, deque[Sample]] = {}
        self._last: dict[str, _Last] = {}

    async def tick(self) -> None:
        lives = self._sessions.live.all()
        for live in lives:
            try:
                await self._take(live)
            except DovecoteError as error:
                log.debug("no sample of %s: %s", live.session.id, error)
        self._forget({live.session.id for live in lives})

    async def history(
        self, tenant_id: str, session_id: str, *, since: datetime | None = None, until: datetime | None = None
    ) -> Sequence[Sample]:
        """Oldest first; up to now, where it is awake. Raises NotFound."""
        await self._sessions.get(tenant_id, session_id)
        live = self._sessions.live.get(session_id)
        if live is not None:
            await self._take(live)
        return [
            each
            for each in self._samples.get(session_id, ())
            if (since is None or each.at >= since) and (until is None or each.at <= until)
        ]

    async def _take(self, live: Live) -> None:
        session_id, now = live.session.id, self._clock()
        last = self._last.get(session_id)
        if not live.is_ready or (last is not None and now < last.at + APART):
            return
        usage = await live.host.usage(live.instance_id)
        cpu_seconds = float(usage.get("cpu_seconds", 0))
        limits = SPECS[live.revision.spec].limits
        percent = 0.0
        if last is not None and last.instance_id == live.instance_id and now > last.at:
            percent = 100 * max(0.0, cpu_seconds - last.cpu_seconds) / (now - last.at) / limits.cpus
        self._last[session_id] = _Last(live.instance_id, now, cpu_seconds)
        self._samples.setdefault(session_id, deque(maxlen=MOST)).append(
            Sample(
                datetime.now(UTC),
                round(percent, 2),
                int(usage.get("memory_bytes", 0)),
                int(usage.get("cache_bytes", 0)),
                int(usage.get("disk_bytes", 0)),
                limits,
            )
        )

    def _forget(self, living: set[str]) -> None:
        oldest = datetime.now(UTC) - timedelta(seconds=SAMPLE_EVERY * MOST)
        for session_id in self._samples.keys() - living:
            if self._samples[session_id][-1].at < oldest:
                del self._samples[session_id]
                self._last.pop(session_id, None)
