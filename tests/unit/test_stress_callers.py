"""What callers of a session conclude from its answers while things are killed: each kind of fault is seen."""

from __future__ import annotations

import httpx
import pytest
from stress.callers import Life, final, judge


def faults(done: list[str], known: set[str]) -> list[str]:
    life = Life("ann", "c1")
    judge(life, done, dict.fromkeys(known, "one"), "two")
    return life.faults


def test_what_was_done_once_is_no_fault() -> None:
    assert faults(["ann/c1:a:1", "ann/c1:b:2"], {"ann/c1:a:1"}) == []


@pytest.mark.parametrize(
    ("done", "fault"),
    [
        (["ann/c1:a:1", "ann/c1:a:1"], "done twice"),
        (["ann/c1:a:1", "bob/c1:a:1"], "somebody else's"),
        ([], "lost"),
    ],
)
def test_what_is_lost_or_done_twice_or_somebody_elses_is_a_fault(done: list[str], fault: str) -> None:
    (found,) = faults(done, {"ann/c1:a:1"} if fault == "lost" else set())
    assert fault in found


def test_an_instance_that_was_replaced_must_not_answer_what_was_asked_later() -> None:
    life = Life("ann", "c1")
    life.seen("one", None)
    life.seen("two", "one")
    life.seen("one", "one")  # was on its way before the other one answered
    assert life.faults == []
    life.seen("one", "two")
    assert len(life.faults) == 1


def test_a_session_that_is_cut_off_once_more_after_the_last_kill_is_asked_again() -> None:
    asked = 0

    def answer(request: httpx.Request) -> httpx.Response:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise httpx.ConnectError("the gateway is not there yet", request=request)
        return httpx.Response(200, json={"boot": "one", "done": []})

    life = Life("ann", "c1", answered={"ann/c1:a:1": "one"})
    with httpx.Client(base_url="http://localhost", transport=httpx.MockTransport(answer)) as client:
        final(life, client)
    (fault,) = life.faults
    assert "lost" in fault
