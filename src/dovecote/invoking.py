"""Joins the parts that make asynchronous calls."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from dovecote.config import Settings
from dovecote.control.functions import Functions
from dovecote.control.invocations import (
    Calling,
    Delivering,
    Dispatching,
    Invocations,
    Queues,
    Webhooks,
    WebhookSecrets,
    open_queues,
)
from dovecote.control.sessions import Routing
from dovecote.model.addresses import Addresses
from dovecote.model.networks import parse_networks
from dovecote.store import Store


@dataclass(frozen=True)
class Invoking:
    invocations: Invocations
    secrets: WebhookSecrets
    dispatching: Dispatching
    queues: Queues

    async def stop(self) -> None:
        await self.dispatching.stop()
        await self.queues.close()


def join(store: Store, functions: Functions, routing: Routing, addresses: Addresses, settings: Settings) -> Invoking:
    """Raises Invalid, Unsupported (not_installed)."""
    invocations = Invocations(store, functions, begun=routing)
    secrets = WebhookSecrets(store)
    queues = open_queues(redis_url=settings.redis_url, nats_url=settings.nats_url)
    allowed = parse_networks([each.strip() for each in settings.webhook_cidrs.split(",") if each.strip()])
    calling = Calling(
        routing.function,
        authority=lambda name: addresses.function(name).partition("//")[2],
        touch=routing.touch,
        start_timeout=settings.start_timeout,
    )
    dispatching = Dispatching(
        store,
        functions,
        call=calling.call,
        deliver=Delivering(invocations, Webhooks(secrets, allowed=allowed), queues).deliver,
        at_once=settings.invocations_at_once,
        kept_for=timedelta(seconds=settings.invocations_kept),
    )
    invocations.queued, invocations.stop = dispatching.queued, dispatching.cut_off
    return Invoking(invocations, secrets, dispatching, queues)
