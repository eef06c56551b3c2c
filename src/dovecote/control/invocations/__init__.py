"""Asynchronous calls of functions: kept, made, made again, and told of."""

from dovecote.control.invocations.calling import Calling
from dovecote.control.invocations.delivering import Delivering
from dovecote.control.invocations.dispatching import FORGET_EVERY, Dispatching, Lane
from dovecote.control.invocations.invocations import Invocations, Wanted
from dovecote.control.invocations.queues import Queues, open_queues
from dovecote.control.invocations.webhooks import LONGEST_OVERLAP, OVERLAP, Webhooks, WebhookSecrets

__all__ = [
    "FORGET_EVERY",
    "LONGEST_OVERLAP",
    "OVERLAP",
    "Calling",
    "Delivering",
    "Dispatching",
    "Invocations",
    "Lane",
    "Queues",
    "Wanted",
    "WebhookSecrets",
    "Webhooks",
    "open_queues",
]
