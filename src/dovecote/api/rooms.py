"""The rooms of control that routes may call."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dovecote.api.tickets import Tickets
from dovecote.model.addresses import Addresses

if TYPE_CHECKING:
    from dovecote.control.apps import Apps
    from dovecote.control.chats import Chats
    from dovecote.control.deployments import Deployments
    from dovecote.control.functions import Functions
    from dovecote.control.invocations import Invocations, WebhookSecrets
    from dovecote.control.metering import Metering
    from dovecote.control.sandboxes import Sandboxes
    from dovecote.control.sessions import Sessions
    from dovecote.control.snapshots import Snapshots
    from dovecote.control.templates import Templates
    from dovecote.control.tenancy import Tenancy
    from dovecote.control.volumes import Contents, Volumes


@dataclass(frozen=True)
class Rooms:
    tenancy: Tenancy
    sessions: Sessions
    sandboxes: Sandboxes
    apps: Apps
    functions: Functions
    chats: Chats
    snapshots: Snapshots
    addresses: Addresses
    volumes: Volumes
    templates: Templates
    metering: Metering
    contents: Contents
    deployments: Deployments
    invocations: Invocations
    webhook_secrets: WebhookSecrets
    tickets: Tickets = field(default_factory=Tickets)
