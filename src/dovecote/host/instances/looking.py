"""What instances do now: requests on their way, packets, commands. Asked of the kernel and of their guests."""

from __future__ import annotations

import asyncio
import logging
import time

from dovecote.errors import DovecoteError
from dovecote.host.guest import CommandStatus
from dovecote.host.instances.instance import Instance, Observed
from dovecote.host.instances.preparing import Parts
from dovecote.host.instances.present import Present
from dovecote.model.states import InstanceState

log = logging.getLogger(__name__)

LIST_TIMEOUT = 2.0
ASK_EVERY = 1.0  # seconds between two questions to a guest that nobody calls meanwhile, however often looks come
UNANSWERED = 15  # questions in a row that a guest does not answer, after which it counts as quiet
SERVER_TAG = "start"  # a command with this tag is a server that waits for requests: it keeps nobody awake
POOLED = 1.5  # seconds that a connection of the gateway may lie unused before it is closed


class Looking:
    def __init__(self, parts: Parts, present: Present) -> None:
        self._parts = parts
        self._present = present

    async def observe(self) -> list[Observed]:
        """All claimed instances. Costs a few dumps of the network's activity, and asks each guest that is awake."""
        await self._look(self._present.all(), POOLED)
        return [_observed(instance) for instance in self._present.all() if instance.claim is not None]

    async def look(self, instance_id: str) -> Observed:
        """That one, and whatever connection to it is open. Called when a user asks."""
        instance = self._present.get(instance_id)
        instance.asked_at = 0.0
        await self._look([instance], 0.0)
        return _observed(instance)

    async def _look(self, instances: list[Instance], pooled: float) -> None:
        awake = [instance for instance in instances if instance.state is InstanceState.READY]
        if not awake:
            return
        network = self._parts.network
        activity, sent = await asyncio.gather(network.activity(), network.sent())
        now = time.monotonic()
        for instance in awake:
            if (ago := activity.get(instance.address)) is not None:
                instance.quiet_since = max(instance.quiet_since, now - ago)
            if (ago := sent.get(instance.address)) is not None:
                instance.sent_at = now - ago
        # A request that takes its time sends nothing; where packets come none needs to be looked for.
        still = [instance for instance in awake if now - instance.quiet_since >= pooled]
        requests = await network.flows_to([instance.address for instance in still])
        for instance in awake:
            _see_requests(instance, requests.get(instance.address, 0), now)
        await asyncio.gather(*(_see_commands(each, now) for each in awake if now - each.asked_at >= ASK_EVERY))


def _observed(instance: Instance) -> Observed:
    assert instance.claim is not None
    now = time.monotonic()
    counts = instance.claim.network.outbound_keeps_awake and instance.sent_at is not None
    return Observed(
        instance.id,
        instance.claim.owner,
        instance.state,
        instance.address,
        instance.pid,
        now - instance.quiet_since,
        instance.commands,
        requests=instance.requests,
        requests_for=now - instance.requests_since if instance.requests else 0.0,
        sent_ago=now - instance.sent_at if counts and instance.sent_at is not None else None,
    )


def _see_requests(instance: Instance, requests: int, now: float) -> None:
    if requests and not instance.requests:
        # It began with the last packet at the earliest that anybody knows of.
        instance.requests_since = min(instance.quiet_since, now)
    instance.requests = requests


async def _see_commands(instance: Instance, now: float) -> None:
    instance.asked_at = now
    try:
        commands = await asyncio.wait_for(instance.guest.list_commands(), LIST_TIMEOUT)
    except (DovecoteError, TimeoutError) as error:
        # Short of CPU perhaps, which is not quiet; but nobody may stay awake by never answering.
        instance.unanswered += 1
        if instance.unanswered <= UNANSWERED:
            instance.quiet_since = now
        elif instance.unanswered == UNANSWERED + 1:
            log.warning("the guest of %s does not answer: %s", instance.id, error)
        return
    instance.unanswered = 0
    before, instance.commands = instance.commands, sum(1 for each in commands if each.is_running and not _waits(each))
    if before or instance.commands:  # what has ended may have done so a moment ago
        instance.quiet_since = now


def _waits(command: CommandStatus) -> bool:
    return command.tag == SERVER_TAG
