"""A store whose every call waits for its turn and whose clock is ours: actors interleave as a schedule says."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

from dovecote.errors import Conflict
from dovecote.host.storage.bucket import Bucket, Stored

START = datetime(2026, 1, 1, tzinfo=UTC)
PATIENCE = 30.0  # seconds after which a test that hangs fails


class Crash(BaseException):
    """The process of an actor is killed."""


class Actor:
    """One thread that goes on for one call of the store at a time."""

    def __init__(self, act: Callable[[], object]) -> None:
        self._act = act
        self._go = threading.Semaphore(0)
        self._parked = threading.Semaphore(0)
        self._doomed = ""
        self.is_done = False
        self.advanced = 0.0  # seconds of the clock since it began
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._parked.acquire(timeout=PATIENCE)

    def _run(self) -> None:
        ACTORS[threading.get_ident()] = self
        try:
            self.pause()
            self._act()
        except Crash:
            pass
        except BaseException as error:
            self.error = error
        finally:
            ACTORS.pop(threading.get_ident())
            self.is_done = True
            self._parked.release()

    def pause(self) -> str:
        """Called in the actor's thread: waits for its turn, and says how the next call is to end."""
        self._parked.release()
        assert self._go.acquire(timeout=PATIENCE)
        return self._doomed

    def step(self, doom: str = "") -> None:
        """Lets it make one call. `before` and `after` kill it there."""
        self._doomed = doom
        self._go.release()
        assert self._parked.acquire(timeout=PATIENCE)

    def finish(self) -> None:
        while not self.is_done:
            self.step()
        self._thread.join(PATIENCE)
        if self.error is not None:
            raise self.error


ACTORS: dict[int, Actor] = {}


class SteppedBucket(Bucket):
    """Any bucket, with the times of our clock. Threads that are no actors pass."""

    def __init__(self, inner: Bucket) -> None:
        super().__init__(inner._store, directory=inner._directory)
        self.seconds = 0.0
        self._times: dict[str, float] = {}

    def clock(self) -> float:
        return self.seconds

    def _paused(self) -> Callable[[], None]:
        actor = ACTORS.get(threading.get_ident())
        doom = actor.pause() if actor else ""
        if doom == "before":
            raise Crash

        def after() -> None:
            if doom == "after":
                raise Crash

        return after

    def put_new(self, name: str, data: bytes) -> None:
        after = self._paused()
        try:
            super().put_new(name, data)
        except Conflict:
            after()
            raise
        self._times[name] = self.seconds
        after()

    def put(self, name: str, data: bytes) -> None:
        after = self._paused()
        super().put(name, data)
        self._times[name] = self.seconds
        after()

    def get(self, name: str) -> bytes:
        self._paused()
        return super().get(name)

    def get_range(self, name: str, start: int, length: int) -> bytes:
        self._paused()
        return super().get_range(name, start, length)

    def size(self, name: str) -> int:
        self._paused()
        return super().size(name)

    def delete(self, name: str) -> None:
        after = self._paused()
        super().delete(name)
        after()

    def list(self, prefix: str, *, after: str | None = None) -> Iterator[Stored]:
        self._paused()
        for stored in [*super().list(prefix, after=after)]:
            yield Stored(stored.name, stored.size, START + timedelta(seconds=self._times.get(stored.name, 0.0)))
