"""Which addresses are free. No clock, no I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network

from dovecote.errors import NoCapacity


class Addresses:
    """Gives out the numbers 1 to n of a range: never-used ones first, then those that have rested the longest.

    Times are seconds of one clock, passed in. An address that was released rests: whoever learned it before must have
    forgotten it when it comes to belong to somebody else.
    """

    def __init__(self, network: IPv4Network, rest: float) -> None:
        self._network = network
        self.rest = rest  # seconds
        self._last = network.num_addresses - 2
        self._next = 1
        self._used: set[int] = set()
        self._resting: dict[int, float] = {}
        self._order: deque[int] = deque()

    def take(self, now: float) -> int:
        """Raises NoCapacity with code `no_addresses`, and how long to wait where waiting helps."""
        while self._next <= self._last and (self._next in self._used or self._next in self._resting):
            self._next += 1
        if self._next <= self._last:
            index = self._next
            self._next += 1
        else:
            index = self._take_rested(now)
        self._used.add(index)
        return index

    def _take_rested(self, now: float) -> int:
        if not self._order:
            raise NoCapacity(
                f"all {self._last} addresses of {self._network} are in use",
                code="no_addresses",
                hint="set DOVECOTE_NETWORK to a larger range",
            )
        wait = self._resting[self._order[0]] + self.rest - now
        if wait > 0:
            raise NoCapacity(
                f"no address of {self._network} has rested long enough",
                code="no_addresses",
                hint="set DOVECOTE_NETWORK to a larger range",
                retry_after=wait,
            )
        index = self._order.popleft()
        del self._resting[index]
        return index

    def hold(self, index: int) -> None:
        """It belongs to an instance that was there before us."""
        self._used.add(index)
        if self._resting.pop(index, None) is not None:
            self._order.remove(index)

    def release(self, index: int, now: float) -> None:
        """From now on it rests. Nothing happens when it is not in use."""
        if index in self._used:
            self._used.remove(index)
            self._resting[index] = now
            self._order.append(index)

    def resume(self, released: Mapping[int, float]) -> None:
        """What an earlier process released, number to time."""
        for index in sorted(released, key=released.__getitem__):
            if 0 < index <= self._last:
                self.hold(index)
                self.release(index, released[index])

    def resting(self, now: float) -> dict[int, float]:
        return {index: at for index, at in self._resting.items() if now - at < self.rest}

    def is_used(self, index: int) -> bool:
        return index in self._used

    def address(self, index: int) -> IPv4Address:
        return self._network[index]

    def index(self, address: str) -> int:
        """The number of an address of the range. Raises ValueError for others."""
        index = int(IPv4Address(address)) - int(self._network.network_address)
        if not 0 < index <= self._last:
            raise ValueError(f"{address} is not an address of {self._network}")
        return index
