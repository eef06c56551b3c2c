"""When asynchronous calls are made and made again, how many at once, and when they are given up."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from dovecote.control.invocations import Wanted, deciding
from dovecote.control.invocations.deciding import LEASE, LONGEST_WAIT, Broken, Reply
from dovecote.control.invocations.delivering import render
from dovecote.errors import DeadlineExceeded, Failed, NoCapacity, NotFound
from dovecote.model.invocations import InvocationState
from tests.contract.stores import NOW, invocation
from tests.unit.control_world import until
from tests.unit.invocation_world import WEBHOOK, Calls

pytestmark = pytest.mark.anyio

DIED = Failed("the instance gave no whole answer", code="instance_died")
State = InvocationState


@pytest.mark.parametrize("failure", [Reply(503), Reply(429), Broken(DIED, was_sent=True)])
async def test_what_may_pass_is_tried_again_as_often_as_asked(calls: Calls, failure: Reply | Broken) -> None:
    calls.callee.answers = [failure] * 9
    made = await calls.invocations.create(await calls.function(retries=2), Wanted())
    await calls.settle()
    assert (await calls.get(made)).state is State.QUEUED
    for _ in range(5):
        await calls.pass_time(LONGEST_WAIT)
    assert ((await calls.get(made)).state, len(calls.callee.calls)) == (State.FAILED, 3)


async def test_what_a_function_refuses_is_not_tried_again(calls: Calls) -> None:
    calls.callee.answers = [Reply(404)]
    made = await calls.invocations.create(await calls.function(retries=8), Wanted())
    await calls.settle()
    done = await calls.get(made)
    assert (done.state, done.status, done.error_code) == (State.FAILED, 404, "function_error")


async def test_no_room_takes_no_attempt(calls: Calls) -> None:
    """Even a call that is to be tried once waits for a place, as long as its age allows."""
    no_room = NoCapacity("no memory", code="no_memory", retry_after=20)
    calls.callee.answers = [Broken(no_room, was_sent=False)] * 3
    made = await calls.invocations.create(await calls.function(retries=0), Wanted())
    await calls.settle()
    waiting = await calls.get(made)
    assert (waiting.state, waiting.attempts, waiting.waits) == (State.QUEUED, 0, 1)
    assert waiting.due_at == NOW + timedelta(seconds=20)
    for _ in range(3):
        await calls.pass_time(60)
    done = await calls.get(made)
    assert (done.state, done.attempts, done.waits) == (State.SUCCEEDED, 1, 3)


async def test_what_is_too_old_is_not_made_and_said_to_be(calls: Calls) -> None:
    calls.callee.answers = [Reply(500)] * 9
    function = await calls.function(retries=8, max_age=timedelta(seconds=30), on_failure=WEBHOOK)
    made = await calls.invocations.create(function, Wanted())
    for _ in range(9):
        await calls.pass_time(6)
    done = await calls.get(made)
    assert (done.state, done.error) == (State.EXPIRED, "the function answered 500")
    assert b'"condition":"EventAgeExceeded"' in render(calls.callee.told[0])


async def test_a_delayed_call_waits(calls: Calls) -> None:
    made = await calls.invocations.create(await calls.function(), Wanted(delay=timedelta(hours=1)))
    await calls.pass_time(3599)
    assert calls.callee.calls == []
    await calls.pass_time(1)
    assert (await calls.get(made)).state is State.SUCCEEDED


async def test_an_attempt_that_nobody_hears_of_again_counts(calls: Calls) -> None:
    """As after kill -9: with retries left it is made again when the lease has ended, without them it has failed."""
    calls.callee.gate = asyncio.Event()
    once = await calls.invocations.create(await calls.function("once", retries=0), Wanted())
    twice = await calls.invocations.create(await calls.function("twice", retries=1), Wanted())
    await calls.dispatching.tick()
    await until(lambda: len(calls.callee.calls) == 2)
    await calls.dispatching.stop()
    calls.callee.gate = None
    calls.dispatching = calls.dispatcher()
    await calls.pass_time(LEASE.total_seconds() - 1)
    assert (await calls.get(twice)).state is State.RUNNING
    for _ in range(3):
        await calls.pass_time(5)
    lost, again = await calls.get(once), await calls.get(twice)
    assert (lost.state, lost.attempts, lost.error_code) == (State.FAILED, 1, "attempt_lost")
    assert (again.state, again.attempts) == (State.SUCCEEDED, 2)


async def test_two_dispatchers_make_a_call_once(calls: Calls) -> None:
    function = await calls.function()
    made = [await calls.invocations.create(function, Wanted()) for _ in range(8)]
    other = calls.dispatcher()
    await asyncio.gather(*(each.tick() for each in (calls.dispatching, other) for _ in range(3)))
    await until(lambda: not calls.dispatching.calls.running and not other.calls.running)
    await other.stop()
    assert sorted(each.id for each in calls.callee.calls) == sorted(each.id for each in made)
    assert {(await calls.get(each)).state for each in made} == {State.SUCCEEDED}


async def test_a_function_has_so_many_calls_at_once_and_no_more(calls: Calls) -> None:
    calls.callee.gate = asyncio.Event()
    function, free = await calls.function(at_once=2), await calls.function("free")
    for _ in range(4):
        await calls.invocations.create(function, Wanted())
    late = await calls.invocations.create(free, Wanted())
    await calls.dispatching.tick()
    await until(lambda: len(calls.callee.calls) == 3)
    assert late.id in {each.id for each in calls.callee.calls}  # what is behind the limit does not wait for it
    calls.callee.gate.set()
    await until(lambda: len(calls.callee.calls) == 5 and not calls.dispatching.calls.running)
    assert calls.callee.most_at_once == 3


async def test_a_tenant_leaves_room_for_another(calls: Calls) -> None:
    calls.callee.gate = asyncio.Event()
    calls.dispatching = calls.dispatcher(at_once=4)
    mine, theirs = await calls.function(), await calls.function(tenant=calls.other)
    for _ in range(10):
        await calls.invocations.create(mine, Wanted())
    await calls.dispatching.tick()
    await until(lambda: len(calls.callee.calls) == 2)
    await calls.invocations.create(theirs, Wanted())
    await calls.dispatching.tick()
    await until(lambda: len(calls.callee.calls) == 3)
    assert calls.callee.calls[-1].tenant_id == calls.other
    calls.callee.gate.set()


async def test_a_call_of_a_function_that_was_removed_fails(calls: Calls) -> None:
    function = await calls.function()
    made = await calls.invocations.create(function, Wanted())
    await calls.functions.remove(calls.tenant, function.id)
    await calls.settle()
    assert ((await calls.get(made)).state, calls.callee.calls) == (State.FAILED, [])


async def test_what_ended_long_ago_is_forgotten(calls: Calls) -> None:
    function = await calls.function()
    old = await calls.invocations.create(function, Wanted())
    await calls.settle()
    await calls.pass_time(8 * 86400)
    new = await calls.invocations.create(function, Wanted())
    await calls.dispatching.forget()
    assert [each.id for each in await calls.invocations.list(calls.tenant)] == [new.id]
    with pytest.raises(NotFound):
        await calls.get(old)


# -- the decisions


@pytest.mark.parametrize(("times", "least", "most"), [(1, 0.5, 1), (2, 1, 2), (5, 8, 16), (40, 150, 300)])
def test_waits_double_up_to_a_bound(times: int, least: float, most: float) -> None:
    assert deciding.wait(times, 0.0) == timedelta(seconds=least)
    assert deciding.wait(times, 1.0) == timedelta(seconds=most)


def test_what_a_function_asks_for_is_waited() -> None:
    made = deciding.claimed(invocation(retries=3), NOW)
    again = deciding.after(made, Reply(429, retry_after=90), NOW, 1.0)
    assert (again.state, again.due_at) == (State.QUEUED, NOW + timedelta(seconds=90))


@pytest.mark.parametrize(
    ("outcome", "state"),
    [
        (Broken(DeadlineExceeded("late", code="start_timeout"), was_sent=False), State.QUEUED),
        (Broken(Failed("no server", code="port_closed"), was_sent=False), State.FAILED),
        (Broken(NotFound("no such session"), was_sent=False), State.FAILED),
        (Reply(302), State.SUCCEEDED),
    ],
)
def test_what_becomes_of_it(outcome: Reply | Broken, state: InvocationState) -> None:
    assert deciding.after(deciding.claimed(invocation(retries=1), NOW), outcome, NOW, 1.0).state is state
