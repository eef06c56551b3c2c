"""What callers say of revisions, and who makes templates that they name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, TypedDict

from dovecote.errors import NotFound
from dovecote.model.records import Start
from dovecote.model.rules import SaveRules
from dovecote.model.serving import Hooks, Sharing
from dovecote.model.sizes import SPECS, NetworkPolicy
from dovecote.model.trees import Template
from dovecote.model.volumes import Mount


class Runs(TypedDict, total=False):
    """What a revision says; a change of it makes the next one. What is not there stays as it is."""

    template: str
    spec: str
    level: str | None
    network: NetworkPolicy
    env: Mapping[str, str]
    start: Start | None
    mounts: tuple[Mount, ...]
    rules: SaveRules
    sharing: Sharing
    hooks: Hooks


class OnDemand(Protocol):
    """Makes the installation's own templates that are not made yet. Every method may be repeated."""

    @property
    def names(self) -> frozenset[str]:
        """All that it can make, made or not."""

    async def ensure(self, name: str, *, patience: float | None = ...) -> Template:
        """Called when one is used first. After `patience` seconds Conflict (template_not_ready); making it goes on."""

    def step(self, name: str) -> str:
        """How far making it is; empty when nobody makes it."""


def parse_spec(name: str) -> str:
    """Itself. Raises NotFound (no_such_spec)."""
    if name not in SPECS:
        raise NotFound(f"no spec {name!r}", code="no_such_spec", hint="there are " + ", ".join(SPECS))
    return name
