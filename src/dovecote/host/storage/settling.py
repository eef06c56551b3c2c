"""Work on images that nobody waits for: one tree after the other, in a thread of its own, and a while later."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterable

from dovecote.errors import DovecoteError
from dovecote.host.storage.packs import Sink

log = logging.getLogger(__name__)

REST = 5.0  # seconds in which whoever waited for the tree has the machine to himself
STOPS_WITHIN = 30.0


class Stopped(Exception):
    """The host is closing."""


class Settling:
    """`settle` gets a digest, and something to call now and then that raises Stopped."""

    def __init__(self, settle: Callable[[str, Callable[[], None]], None]) -> None:
        self._settle = settle
        self._waiting: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._known: set[str] = set()
        self._ends = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, digest: str) -> None:
        """May be repeated."""
        with self._lock:
            if digest in self._known or self._ends.is_set():
                return
            self._known.add(digest)
            self._waiting.put(digest)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="settling", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """What is not done is done by the next process that uses the tree."""
        with self._lock:
            self._ends.set()
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join(STOPS_WITHIN)

    def _run(self) -> None:
        while (digest := self._waiting.get()) is not None and not self._ends.wait(REST):
            try:
                self._settle(digest, self._stop)
            except Stopped:
                return
            except DovecoteError as error:
                log.warning("tree %s keeps its contents in its image: %s", digest[:16], error)
            finally:
                with self._lock:
                    self._known.discard(digest)

    def _stop(self) -> None:
        if self._ends.is_set():
            raise Stopped


class Interruptible:
    """A sink that asks before each object whether to go on."""

    def __init__(self, to: Sink, stop: Callable[[], None]) -> None:
        self._to = to
        self._stop = stop

    def put_all(self, objects: Iterable[tuple[bytes, memoryview]]) -> None:
        for each in objects:
            self._stop()
            self._to.put_all([each])

    def put_pieces(self, digest: bytes, pieces: Iterable[bytes]) -> None:
        self._stop()
        self._to.put_pieces(digest, pieces)

    def missing(self, digests: Iterable[bytes]) -> list[bytes]:
        return self._to.missing(digests)
