"""Destinations of asynchronous calls: what they are told, how often, and when they are given up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dovecote.control.invocations import Wanted, deciding
from dovecote.control.invocations.deciding import LONGEST_WAIT, Reply
from dovecote.control.invocations.delivering import render
from dovecote.errors import Conflict, Failed, Forbidden
from dovecote.model.invocations import Delivery, InvocationState
from dovecote.model.serving import Destination, To
from tests.contract.stores import NOW, invocation
from tests.unit.invocation_world import WEBHOOK, Calls

pytestmark = pytest.mark.anyio

State = InvocationState


async def test_a_destination_is_told_until_it_listens(calls: Calls) -> None:
    calls.callee.refusals = [Failed("it answered 500", code="webhook_failed")] * 2
    made = await calls.invocations.create(await calls.function(on_success=WEBHOOK), Wanted())
    await calls.settle()
    pending = await calls.get(made)
    assert (pending.state, pending.delivery, pending.delivery_error) == (
        State.SUCCEEDED,
        Delivery.PENDING,
        "it answered 500",
    )
    for _ in range(3):
        await calls.pass_time(LONGEST_WAIT)
    done = await calls.get(made)
    assert (done.delivery, done.deliveries, len(calls.callee.told)) == (Delivery.DELIVERED, 3, 1)


async def test_a_destination_that_never_listens_is_given_up(calls: Calls) -> None:
    calls.callee.refusals = [Failed("down", code="webhook_failed")] * 99
    deaf = await calls.invocations.create(await calls.function(on_success=WEBHOOK), Wanted())
    for _ in range(12):
        await calls.pass_time(LONGEST_WAIT)
    done = await calls.get(deaf)
    assert (done.delivery, done.deliveries) == (Delivery.FAILED, deciding.MOST_DELIVERIES)
    calls.callee.refusals = [Forbidden("inside", code="address_refused")]
    inside = await calls.invocations.create(await calls.function("inside", on_success=WEBHOOK), Wanted())
    await calls.settle()
    await calls.settle()
    assert (await calls.get(inside)).deliveries == 1


async def test_a_destination_is_given_up_however_telling_it_fails(calls: Calls) -> None:
    """With an error that nobody thought of, or with the server that told it, time after time."""
    calls.callee.refusals = [RuntimeError("a bug")] * 99
    odd = await calls.invocations.create(await calls.function(on_success=WEBHOOK), Wanted())
    for _ in range(12):
        await calls.pass_time(LONGEST_WAIT)
    done = await calls.get(odd)
    assert (done.delivery, done.deliveries) == (Delivery.FAILED, deciding.MOST_DELIVERIES)
    assert "on our side" in done.delivery_error
    calls.callee.refusals = []
    kept = calls.store.tenant(calls.tenant).invocations
    last = replace(done, delivery=Delivery.PENDING, due_at=calls.now)  # the server died over the last attempt
    await kept.swap(last)
    await calls.settle()
    assert ((await calls.get(odd)).delivery, calls.callee.told) == (Delivery.FAILED, [])


async def test_a_function_hears_of_another_once_and_not_in_circles(calls: Calls) -> None:
    circle = await calls.function("circle", on_success=Destination(To.FUNCTION, "circle"))
    made = await calls.invocations.create(circle, Wanted(user="anna", key="chat7", body=b"hello"))
    for _ in range(2):  # told twice, as after a crash, it is one call
        follower = await calls.invocations.follow(await calls.get(made), "circle", b"{}")
    assert (follower.hops, follower.user, follower.key) == (1, "anna", "chat7")
    assert len(await calls.invocations.list(calls.tenant)) == 2
    last = replace(follower, hops=5)
    with pytest.raises(Conflict) as caught:
        await calls.invocations.follow(last, "circle", b"{}")
    assert caught.value.code == "too_many_hops"


def test_a_destination_is_told_request_response_and_condition() -> None:
    function_error = deciding.after(deciding.claimed(invocation(), NOW), Reply(500, body="/w=="), NOW, 0)
    said = render(function_error)
    for part in (
        b'"requestPayload":"hi"',
        b'"responsePayload":"/w=="',
        b'"isResponseBase64":true',
        b'"statusCode":500',
    ):
        assert part in said
    assert b'"condition":"RetriesExhausted"' in said
    assert b'"session":"chat7"' in said
