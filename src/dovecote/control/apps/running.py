"""The instances of one app, and what is known of its load."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from math import inf

from dovecote.control.fleet import Host
from dovecote.control.scaling import Load, Scale
from dovecote.errors import DovecoteError
from dovecote.model.records import App, Revision

FRESH, LONGEST_FRESH = 1.0, 30.0  # seconds for which a failed start answers other visitors too
RETRY_AFTER = 5.0
LONGEST_RETRY = 300.0
STABLE_WINDOW = 6.0  # seconds: scaling in waits for so long a lull


@dataclass(eq=False)
class AppInstance:
    """`address` is `ip:port` once it has one; `is_ready` when its port was seen open."""

    owner: str
    revision_id: str
    host: Host | None = None
    instance_id: str = ""
    address: str = ""
    pid: int = 0
    is_ready: bool = False
    is_dead: bool = False
    ready_at: float = 0.0
    leaving: asyncio.Event = field(default_factory=asyncio.Event)
    life: asyncio.Task[None] | None = None

    @property
    def is_leaving(self) -> bool:
        return self.leaving.is_set()


@dataclass(eq=False)
class RunningApp:
    app: App
    revision: Revision
    instances: list[AppInstance] = field(default_factory=list)
    waiting: int = 0
    last_request: float = -inf
    total: int | None = None  # None until the gateway was first asked
    failed: DovecoteError | None = None
    failures: int = 0  # starts in a row that came to nothing
    failed_at: float = 0.0
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    _peaks: deque[tuple[float, int]] = field(default_factory=deque)

    def scale(self) -> Scale:
        app = self.app
        return Scale(app.minimum, app.maximum, app.target_concurrency, app.idle_after.total_seconds())

    def see(self, *, active: int, total: int, now: float) -> Load:
        """Takes in one look at the gateway's counters: requests in flight, and since the gateway started."""
        in_flight = max(active, self.waiting)
        # Requests that came and went between two looks count as one at least. A count that fell began anew.
        came = self.total is not None and total > self.total
        if in_flight or came:
            self.last_request = now
        seen = max(in_flight, int(came))
        self.total = total
        self._peaks.append((now, seen))
        while self._peaks[0][0] < now - STABLE_WINDOW:
            self._peaks.popleft()
        return Load(in_flight, max(peak for _, peak in self._peaks), now - self.last_request)

    def fail(self, error: DovecoteError, now: float) -> None:
        """A start came to nothing, or what started did not last."""
        self.failed, self.failed_at = error, now
        self.failures += 1

    def retry_at(self) -> float:
        """When another start may be tried without a visitor: later after each failure in a row."""
        return self.failed_at + self._pause(RETRY_AFTER, LONGEST_RETRY)

    def is_failure_fresh(self, now: float) -> bool:
        """Whether a visitor is told of the last failure, rather than that his visit starts another instance."""
        return self.failed is not None and now < self.failed_at + self._pause(FRESH, LONGEST_FRESH)

    def _pause(self, first: float, longest: float) -> float:
        return min(longest, first * 2.0 ** min(self.failures - 1, 10)) if self.failures else 0.0

    def current(self) -> list[AppInstance]:
        """Those of the current revision that are to stay, ready or on their way."""
        return [i for i in self.instances if i.revision_id == self.revision.id and not i.is_leaving]

    def serving(self) -> list[AppInstance]:
        """Those that take requests: of the current revision, else of the one before until the new one is ready."""
        ready = [i for i in self.instances if i.is_ready and not i.is_leaving]
        return [i for i in ready if i.revision_id == self.revision.id] or ready

    def outdated(self) -> list[AppInstance]:
        """Those of an older revision that nobody needs any more."""
        serving = self.serving()
        if any(i.revision_id != self.revision.id for i in serving):
            return []
        return [i for i in self.instances if i.revision_id != self.revision.id and not i.is_leaving]

    async def tell(self) -> None:
        async with self.changed:
            self.changed.notify_all()
