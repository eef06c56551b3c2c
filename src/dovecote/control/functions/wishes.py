"""What callers say of revisions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict

from dovecote.errors import NotFound
from dovecote.model.records import Start
from dovecote.model.rules import SaveRules
from dovecote.model.serving import Hooks, Sharing
from dovecote.model.sizes import SPECS, NetworkPolicy
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


def parse_spec(name: str) -> str:
    """Itself. Raises NotFound (no_such_spec)."""
    if name not in SPECS:
        raise NotFound(f"no spec {name!r}", code="no_such_spec", hint="there are " + ", ".join(SPECS))
    return name
