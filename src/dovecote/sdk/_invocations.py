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
MOST_PARTS = 16  # of a signature


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
    """Whether a webhook with this `x-dovecote-signature` is from your server, and from the last `within` seconds.

    Around a rotation of the secret a webhook is signed with the new one and with the one before it: either will do.
    """
    parts = [part.partition("=")[::2] for part in signature.split(",")[:MOST_PARTS]]
    stamp = dict(parts).get("t", "")
    if not (stamp.isascii() and stamp.isdigit() and len(stamp) < 16):
        return False
    wanted = hmac.new(secret.encode(), stamp.encode() + b"." + body, hashlib.sha256).hexdigest()
    is_fresh = abs((time.time() if now is None else now) - int(stamp)) <= within
    digests = [digest.encode("utf-8", "replace") for name, digest in parts if name == "v1"]
    return is_fresh and any(hmac.compare_digest(wanted.encode(), digest) for digest in digests)
