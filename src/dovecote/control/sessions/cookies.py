"""What the cookie of a session holds: its key, and the proof that it is of this very session. Pure."""

from __future__ import annotations

import hmac
from datetime import datetime
from hashlib import blake2b

from dovecote.model.records import Session
from dovecote.model.serving import Affinity
from dovecote.model.sizes import TIERS

PROOF_BYTES = 16


def cookie_of(session: Session) -> str:
    """`{key}.{proof}`. Nobody can make the proof who does not know the session's slug, and it is good for nothing else:
    not for another function, another user, or a later session of the same key."""
    said = f"{session.id} {session.function_id} {session.user_id} {session.key}"
    proof = blake2b(said.encode(), key=session.slug.encode(), digest_size=PROOF_BYTES).hexdigest()
    return f"{session.key}.{proof}"


def key_in(cookie: str) -> str:
    """The key that a cookie names; whether it is that session's `proves` says."""
    return cookie.rpartition(".")[0]


def proves(cookie: str, session: Session) -> bool:
    return hmac.compare_digest(cookie.encode(), cookie_of(session).encode())


def cookie_seconds(affinity: Affinity, session: Session, now: datetime) -> int:
    """How long a browser keeps it: until the session's end, else as long as it may be idle."""
    if session.expires_at is not None:
        return max(1, int((session.expires_at - now).total_seconds()))
    idle = session.idle_after or affinity.idle_after or TIERS[session.tier].idle_after
    return max(1, int(idle.total_seconds()))
