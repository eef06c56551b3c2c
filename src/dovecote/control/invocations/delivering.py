"""Tells the destination of an asynchronous call what came of it."""

from __future__ import annotations

import base64
from typing import Protocol

import orjson

from dovecote.control.invocations.invocations import Invocations
from dovecote.control.invocations.webhooks import Webhooks
from dovecote.errors import NotFound
from dovecote.model.invocations import MOST_BODY, Invocation, InvocationState
from dovecote.model.serving import To

CONDITIONS = {
    InvocationState.SUCCEEDED: "Success",
    InvocationState.FAILED: "RetriesExhausted",
    InvocationState.EXPIRED: "EventAgeExceeded",
}


class Publishes(Protocol):
    """Puts a message into a tenant's queue. May be repeated. Raises Unsupported (no_queue), Invalid, Failed."""

    async def publish(self, tenant_id: str, target: str, message: bytes) -> None: ...


class Delivering:
    def __init__(self, invocations: Invocations, webhooks: Webhooks, queues: Publishes) -> None:
        self._invocations = invocations
        self._webhooks = webhooks
        self._queues = queues

    async def deliver(self, invocation: Invocation) -> None:
        """At least once. Raises Failed and its like where another try may help, anything else where none will."""
        destination = invocation.destination
        if destination is None:
            raise NotFound("nobody is to be told of it", code="no_destination")
        message = render(invocation)
        if destination.to is To.FUNCTION:
            if len(message) > MOST_BODY:
                message = render(invocation, has_payloads=False)
            await self._invocations.follow(invocation, destination.target, message)
        elif destination.to is To.WEBHOOK:
            await self._webhooks.send(invocation.tenant_id, destination.target, message)
        else:
            await self._queues.publish(invocation.tenant_id, destination.target, message)


def render(invocation: Invocation, *, has_payloads: bool = True) -> bytes:
    """The message of a destination, in the shape of Function Compute's and a few fields more."""
    request, is_request_text = _text(invocation.body)
    response, is_response_text = _text(invocation.response_body)
    return orjson.dumps(
        {
            "timestamp": invocation.finished_at,
            "requestContext": {
                "requestId": invocation.id,
                "function": invocation.function,
                "condition": _condition(invocation),
                "approximateInvokeCount": invocation.attempts,
                "session": invocation.key,
                "user": invocation.user,
            },
            "requestPayload": request if has_payloads else None,
            "responseContext": {
                "statusCode": invocation.status,
                "functionError": invocation.error_code or None,
                "message": invocation.error or None,
            },
            "responsePayload": response if has_payloads else None,
            "isRequestBase64": not is_request_text,
            "isResponseBase64": not is_response_text,
            "isResponseTruncated": invocation.is_truncated,
            "arePayloadsLeftOut": not has_payloads,
        },
    )


def _condition(invocation: Invocation) -> str:
    if invocation.state is InvocationState.FAILED and invocation.attempts <= invocation.retries:
        return "NotRetriable"
    return CONDITIONS[invocation.state]


def _text(body: str) -> tuple[str, bool]:
    """A body as text where it is text, else as base64."""
    try:
        return base64.b64decode(body).decode(), True
    except UnicodeDecodeError:
        return body, False
