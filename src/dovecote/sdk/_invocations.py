"""Asynchronous calls as the client gives them back, and what tells that a webhook is genuine."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

ENDED = frozenset({"succeeded", "failed", "expired", "cancelled"})


@dataclass(frozen=True)
class Invocation:
    """An asynchronous call. `state` is queued, running, succeeded, failed, expired or cancelled.

    `headers`, `body_base64` and `response` come with `get` alone.
    """

    id: str
    function: str
    function_id: str
    user: str
    session: str | None
    session_id: str | None
    method: str
    path: str
    state: str
    attempts: int
    retries: int
    waits: int
    created_at: datetime
    due_at: datetime | None
    deadline: datetime
    timeout_seconds: float
    finished_at: datetime | None
    error_code: str
    error: str
    delivery: str
    deliveries: int
    delivery_error: str
    idempotency_key: str | None
    replay_of: str | None
    status: int | None
    headers: dict[str, str] = field(default_factory=dict)
    body_base64: str = ""
    response: dict[str, Any] | None = None

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED

    @property
    def response_body(self) -> bytes:
        """What the function answered; nothing where it has not."""
        return base64.b64decode(self.response["body_base64"]) if self.response else b""


def is_genuine(secret: str, signature: str, body: bytes, *, within: float = 300.0, now: float | None = None) -> bool:
    """Whether a webhook with this `x-dovecote-signature` is from your server, and from the last `within` seconds."""
    parts = dict(part.partition("=")[::2] for part in signature.split(","))
    stamp, digest = parts.get("t", ""), parts.get("v1", "")
    if not (stamp.isascii() and stamp.isdigit()):
        return False
    wanted = hmac.new(secret.encode(), stamp.encode() + b"." + body, hashlib.sha256).hexdigest()
    is_fresh = abs((time.time() if now is None else now) - int(stamp)) <= within
    return is_fresh and hmac.compare_digest(wanted.encode(), digest.encode("utf-8", "replace"))
