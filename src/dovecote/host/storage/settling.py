"""Work on images that nobody waits for: one tree after the other, in a thread of its own, when it is quiet."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from dovecote.errors import DovecoteError
from dovecote.host.storage.packs import Sink

log = logging.getLogger(__name__)

REST = 5.0  # seconds in which whoever waited for a tree has the machine to himself
LONGEST_REST = 60.0  # however many come
STOPS_WITHIN = 30.0


class Stopped(Exception):
    """The host is closing."""


class Settling:
    """`settle` gets a digest, and something to call now and then, holding nothing that others wait for: it lets those
    go ahead, or raises Stopped."""

    def __init__(self, settle: Callable[[str, Callable[[], None]], None]) -> None:
        self._settle = settle
        self._waiting: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._known: set[str] = set()
        self._ends = False
        self._ahead = 0  # who waits for a tree now
        self._quiet_since = 0.0
        self._began = 0.0  # of the tree that it is at
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._thread: threading.Thread | None = None

    def add(self, digest: str) -> None:
        """May be repeated."""
        with self._lock:
            if digest in self._known or self._ends:
                return
            self._known.add(digest)
            self._waiting.put(digest)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="settling", daemon=True)
                self._thread.start()

    @contextmanager
    def ahead(self) -> Iterator[None]:
        """Somebody waits for a tree: nothing is done here until he has it, and a while longer."""
        with self._lock:
            self._ahead += 1
        try:
            yield
        finally:
            with self._lock:
                self._ahead -= 1
                self._quiet_since = time.monotonic()
                self._changed.notify_all()

    def stop(self) -> None:
        """What is not done is done by the next process that uses the tree."""
        with self._lock:
            self._ends = True
            self._changed.notify_all()
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join(STOPS_WITHIN)

    def _run(self) -> None:
        while (digest := self._waiting.get()) is not None:
            self._began = time.monotonic()
            try:
                self._go_on()
                self._settle(digest, self._go_on)
            except Stopped:
                return
            except DovecoteError as error:
                log.warning("tree %s keeps its contents in its image: %s", digest[:16], error)
            finally:
                with self._lock:
                    self._known.discard(digest)

    def _go_on(self) -> None:
        with self._changed:
            while not self._ends:
                quiet_since = None if self._ahead else self._quiet_since
                left = rest_left(began=self._began, quiet_since=quiet_since, now=time.monotonic())
                if left <= 0:
                    return
                self._changed.wait(left)
        raise Stopped


def rest_left(*, began: float, quiet_since: float | None, now: float) -> float:
    """Seconds, of a rest that begins anew whenever somebody has got his tree; `quiet_since` is None until he has."""
    latest = began + LONGEST_REST
    return (latest if quiet_since is None else min(max(began, quiet_since) + REST, latest)) - now


class Interruptible:
    """A sink that asks before each object whether to go on."""

    def __init__(self, to: Sink, go_on: Callable[[], None]) -> None:
        self._to = to
        self._go_on = go_on

    def put_all(self, objects: Iterable[tuple[bytes, memoryview]]) -> None:
        for each in objects:
            self._go_on()
            self._to.put_all([each])

    def put_pieces(self, digest: bytes, pieces: Iterable[bytes]) -> None:
        self._go_on()
        self._to.put_pieces(digest, pieces)

    def missing(self, digests: Iterable[bytes]) -> list[bytes]:
        return self._to.missing(digests)
