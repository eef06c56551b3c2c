"""Calls under way: how many each key has, and how a client of the older protocol takes one back.

There are no protocol sessions. A client that asks for one (`initialize`) is given an id that nobody remembers: it only
tells its calls from those of other clients that use the same key and the same numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import anyio

from dovecote.errors import NoCapacity

MOST = 256  # at once, of all keys
MOST_OF_A_KEY = 64


@dataclass(frozen=True)
class CallName:
    key: str  # that it was made with
    session: str
    number: str  # as JSON: "1" is not 1


class Calls:
    def __init__(self) -> None:
        self._of_keys: Counter[str] = Counter()
        self._by_name: dict[CallName, anyio.CancelScope] = {}

    @contextmanager
    def counted(self, key: str) -> Iterator[None]:
        """Raises NoCapacity (too_many)."""
        if self._of_keys.total() >= MOST or self._of_keys[key] >= MOST_OF_A_KEY:
            raise NoCapacity(
                "too many calls of tools at once", code="too_many", hint="wait for some to end", retry_after=1.0
            )
        self._of_keys[key] += 1
        try:
            yield
        finally:
            self._of_keys[key] -= 1
            if not self._of_keys[key]:
                del self._of_keys[key]

    @contextmanager
    def cancellable(self, name: CallName | None) -> Iterator[anyio.CancelScope]:
        with anyio.CancelScope() as scope:
            if name is None:
                yield scope
                return
            self._by_name[name] = scope
            try:
                yield scope
            finally:
                if self._by_name.get(name) is scope:
                    del self._by_name[name]

    def cancel(self, name: CallName) -> None:
        """One that has ended, or never was, is no error."""
        if scope := self._by_name.get(name):
            scope.cancel()
