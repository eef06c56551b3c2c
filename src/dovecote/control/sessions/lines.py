"""Lines in front of instances that take so many requests at once and refuse more."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field

from dovecote.control.fleet import Host
from dovecote.errors import NoCapacity, NotFound

LOOK_EVERY = 0.004  # seconds, while somebody waits
ARRIVES_WITHIN = 0.05  # seconds from being let go on until the connection is there to be counted
RETRY_AFTER = 2.0


@dataclass
class Sent:
    """Requests that were let go on a moment ago, whose connection may not be there yet to be counted."""

    _at: deque[float] = field(default_factory=deque)

    def note(self) -> None:
        self._at.append(time.monotonic())

    def lately(self) -> int:
        while self._at and self._at[0] + ARRIVES_WITHIN < time.monotonic():
            self._at.popleft()
        return len(self._at)


@dataclass
class _Line:
    first: asyncio.Lock = field(default_factory=asyncio.Lock)  # whoever holds it is first, and those behind in order
    waiting: int = 0
    sent: Sent = field(default_factory=Sent)


class Lines:
    """Lets waiting requests go on, in the order in which they came, as room is seen. The instance itself refuses
    what is too much, so that a wrong guess here costs another turn and never one too many inside."""

    def __init__(self, *, longest: float) -> None:
        self._longest = longest
        self._lines: dict[str, _Line] = {}

    def waiting(self, instance_id: str) -> int:
        line = self._lines.get(instance_id)
        return line.waiting if line else 0

    async def wait(self, host: Host, instance_id: str, limit: int) -> bool:
        """True when there is room for the caller, False when the instance is gone. Raises NoCapacity."""
        line = self._lines.setdefault(instance_id, _Line())
        line.waiting += 1
        try:
            async with asyncio.timeout(self._longest), line.first:
                while True:
                    if await self._has_room(line, host, instance_id, limit):
                        line.sent.note()
                        return True
                    await asyncio.sleep(LOOK_EVERY)
        except NotFound:
            return False
        except TimeoutError:
            raise instance_full(self._longest) from None
        finally:
            line.waiting -= 1
            if not line.waiting:
                self._lines.pop(instance_id, None)

    async def _has_room(self, line: _Line, host: Host, instance_id: str, limit: int) -> bool:
        return await host.connections(instance_id) + line.sent.lately() < limit


def instance_full(seconds: float) -> NoCapacity:
    return NoCapacity(
        f"its instance took no further request for {seconds:.0f} s",
        code="instance_full",
        hint="raise the function's requests per instance, or send fewer at once",
        retry_after=RETRY_AFTER,
    )


def no_instances(most: int) -> NoCapacity:
    return NoCapacity(
        f"all {most} instances of the function are full",
        code="no_instances",
        hint="try again when a session has ended, or raise the function's number of instances",
        retry_after=RETRY_AFTER,
    )
