"""Templates that revisions start from: the installation's own, some made when first used, and a tenant's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from dovecote.errors import Conflict, NotFound
from dovecote.model.ids import parse_template_name
from dovecote.model.records import Start
from dovecote.model.trees import Inside, Template
from dovecote.store import Store

BASE = "base"  # the template that every installation has


class OnDemand(Protocol):
    """Makes the installation's own templates that are not made yet. Every method may be repeated."""

    @property
    def names(self) -> frozenset[str]:
        """All that it can make, made or not."""

    async def ensure(self, name: str, *, patience: float | None = ...) -> Template:
        """Called when one is used first. After `patience` seconds Conflict (template_not_ready); making it goes on."""

    def step(self, name: str) -> str:
        """How far making it is; empty when nobody makes it."""


class Bases:
    """`own` are those of the installation that the hosts hold; `on_demand` makes more of them."""

    def __init__(self, store: Store, own: Mapping[str, Template], on_demand: OnDemand | None) -> None:
        self._store = store
        self._own = own
        self.on_demand = on_demand

    @property
    def first(self) -> Inside:
        """What the one that every installation has is like."""
        return self._own[BASE].inside

    async def spec_of(self, tenant_id: str, template: str | None) -> str:
        """What sandboxes of a template have that name none; "" leaves it to others."""
        if template is None or template in self._own:
            return ""
        found = await self._store.tenant(tenant_id).templates.find(name=parse_template_name(template))
        return found.spec if found else ""

    async def pinned(self, tenant_id: str, name: str) -> tuple[str, Inside, Start | None]:
        """A template's tree, what it is like, and its start. Raises NotFound (no_such_template), Conflict."""
        own = self._own.get(name)
        found = None
        if own is None:
            found = await self._store.tenant(tenant_id).templates.find(name=parse_template_name(name))
            if found is None and self.on_demand is not None and name in self.on_demand.names:
                own = await self.on_demand.ensure(name)
        if own is not None:
            return own.digest, own.inside, None
        if found is None:
            raise NotFound(f"no template {name!r}", code="no_such_template", hint="`dovecote template ls` lists them")
        if found.digest is None or found.pinned is None:
            raise Conflict(
                f"template {name} is not ready: it is {found.state}",
                code="template_not_ready",
                hint=found.reason or "wait until it is made",
            )
        return found.digest, found.pinned, found.start

    def made(self) -> Sequence[Template]:
        """The installation's own, which every tenant has, as far as they are made."""
        return list(self._own.values())

    def not_made(self) -> Sequence[str]:
        """Names of the installation's own that are made when they are first used."""
        return sorted(self.on_demand.names - self._own.keys()) if self.on_demand is not None else []
