"""What a client may wish of a new session, and the record that comes of it. Pure but for ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TypedDict

from dovecote.control.sessions.rules import parse_metadata, parse_tier, parse_time
from dovecote.model.environment import parse_env
from dovecote.model.ids import new_id, parse_session_key, random_text
from dovecote.model.networks import parse_policy
from dovecote.model.records import Function, Session, User
from dovecote.model.sizes import NetworkPolicy
from dovecote.model.states import AtTimeout, Desired, Park, SessionState
from dovecote.model.volumes import Mount

TOKEN_LENGTH = 40


class Wishes(TypedDict, total=False):
    """`key` is the client's own name for it; without one the server makes one.

    `template`, `spec` and `level` are for sandboxes; other functions say themselves what they run. `ttl` ends it so
    long from now whatever happens; `timeout` may be moved, a pause takes it away, and `at_timeout` says what it does.
    `mounts` name volumes by their ids.
    """

    function: str
    key: str | None
    user: str | None
    tier: str | None
    idle_after: timedelta | None
    quiet_after: timedelta | None
    ttl: timedelta | None
    timeout: timedelta | None
    park: Park
    at_timeout: AtTimeout
    resumes_on_use: bool
    needs_token: bool
    env: Mapping[str, str] | None
    metadata: Mapping[str, str] | None
    mounts: Sequence[Mount]
    template: str | None
    spec: str | None
    level: str | None
    network: NetworkPolicy | None


def new_session(function: Function, owner: User, wishes: Wishes, now: datetime) -> Session:
    """Without its mounts. Raises Invalid, NotFound (no_such_tier)."""
    key = wishes.get("key")
    affinity = function.affinity
    ttl = parse_time(wishes.get("ttl"), "ttl") or affinity.ttl
    timeout = parse_time(wishes.get("timeout"), "timeout")
    return Session(
        id=new_id("ses"),
        tenant_id=owner.tenant_id,
        user_id=owner.id,
        function_id=function.id,
        revision_id=function.revision_id,
        key=parse_session_key(key, is_strict=affinity.strict_ids) if key is not None else random_text(),
        slug=random_text(),
        state=SessionState.NEW,
        desired=Desired.LIVE,
        created_at=now,
        last_active_at=now,
        tier=parse_tier(wishes.get("tier") or owner.tier),
        idle_after=parse_time(wishes.get("idle_after"), "idle_after") or affinity.idle_after,
        quiet_after=parse_time(wishes.get("quiet_after"), "quiet_after"),
        expires_at=now + ttl if ttl else None,
        timeout_at=now + timeout if timeout else None,
        env=parse_env(wishes.get("env") or {}),
        metadata=parse_metadata(wishes.get("metadata") or {}),
        at_timeout=wishes.get("at_timeout", AtTimeout.END),
        park=wishes.get("park", Park.FILES),
        resumes_on_use=wishes.get("resumes_on_use", True),
        token=random_text(TOKEN_LENGTH),
        needs_token=wishes.get("needs_token", True),
        network=parse_policy(network) if (network := wishes.get("network")) else None,
    )


@dataclass(frozen=True)
class Origin:
    """What a fork begins with: files of `source`, and processes that were saved with them."""

    source: Session
    tree: str
    memory: str | None = None


def forked(session: Session, origin: Origin, *, is_for_another: bool) -> Session:
    """The new session as it is when it begins there. What it wishes itself goes first."""
    source = origin.source
    return replace(
        session,
        user_id=session.user_id if is_for_another else source.user_id,
        function_id=source.function_id,
        revision_id=source.revision_id,
        tree=origin.tree,
        memory=origin.memory,
        env={**source.env, **session.env},
        start=source.start,
        network=session.network or source.network,
    )
