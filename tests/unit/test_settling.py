"""Work that nobody waits for gives way to those who do wait."""

import threading
from collections.abc import Callable

import pytest

from dovecote.host.storage import settling
from dovecote.host.storage.settling import LONGEST_REST, Interruptible, Settling, Stopped, rest_left

BOUND = 30.0


class Work:
    """Goes on step by step, as far as it is let."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.began = threading.Event()
        self.may_step = threading.Event()
        self.asks = threading.Event()
        self.done = threading.Event()
        self.was_stopped = False

    def __call__(self, digest: str, go_on: Callable[[], None]) -> None:
        self.began.set()
        try:
            assert self.may_step.wait(BOUND)
            self.asks.set()
            go_on()
            self.steps.append(digest)
        except Stopped:
            self.was_stopped = True
            raise
        finally:
            self.done.set()


@pytest.fixture(autouse=True)
def without_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settling, "REST", 0.0)


def test_nothing_goes_on_while_somebody_waits_for_a_tree() -> None:
    work = Work()
    settles = Settling(work)
    settles.add("a")
    assert work.began.wait(BOUND)
    with settles.ahead():
        with settles.ahead():
            work.may_step.set()
            assert work.asks.wait(BOUND)
        work.steps.append("somebody has his tree")
    assert work.done.wait(BOUND)
    assert work.steps == ["somebody has his tree", "a"]
    settles.stop()


def test_one_who_waits_for_ever_does_not_keep_the_host_from_closing() -> None:
    work = Work()
    settles = Settling(work)
    settles.add("a")
    assert work.began.wait(BOUND)
    with settles.ahead():
        work.may_step.set()
        assert work.asks.wait(BOUND)
        settles.stop()
    assert work.done.is_set()
    assert work.was_stopped
    assert work.steps == []


def test_the_rest_begins_anew_whenever_somebody_has_got_his_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settling, "REST", 5.0)
    assert rest_left(began=100.0, quiet_since=0.0, now=100.0) == 5.0
    assert rest_left(began=100.0, quiet_since=103.0, now=104.0) == 4.0
    assert rest_left(began=100.0, quiet_since=103.0, now=108.0) == 0.0
    assert rest_left(began=100.0, quiet_since=None, now=108.0) == LONGEST_REST - 8.0
    assert rest_left(began=100.0, quiet_since=100.0 + LONGEST_REST, now=100.0 + LONGEST_REST) == 0.0  # not for ever


def test_a_sink_asks_before_each_object() -> None:
    kept: list[bytes] = []

    class Kept:
        def put_all(self, objects: list[tuple[bytes, memoryview]]) -> None:
            kept.extend(digest for digest, _ in objects)

    def go_on() -> None:
        if len(kept) == 2:
            raise Stopped

    with pytest.raises(Stopped):
        Interruptible(Kept(), go_on).put_all([(name, memoryview(b"")) for name in (b"a", b"b", b"c")])  # type: ignore[arg-type]
    assert kept == [b"a", b"b"]
