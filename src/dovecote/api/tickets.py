"""Tickets let a browser open one WebSocket: it can send no key with it, and a key has no place in an address."""

from __future__ import annotations

import base64
import hmac
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from dovecote.errors import Forbidden, Invalid, NoCapacity, Unauthenticated
from dovecote.model.ids import parse_id

LIVES = 60.0  # seconds
MOST_USED = 4096  # that are remembered for one tenant until they expire
LONGEST = 1000  # characters
_ORIGIN = re.compile(r"https?://[A-Za-z0-9.\-\[\]:]{1,255}")


@dataclass(frozen=True)
class Ticket:
    text: str
    expires_at: datetime


@dataclass(frozen=True)
class Admitted:
    """Who comes with a ticket. `origin` is the foreign page that it was made for, empty for our own pages."""

    tenant_id: str
    origin: str


class Tickets:
    """Signed, for one path, good once and for a minute. The signature's secret dies with this process."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._secret = secrets.token_bytes(32)
        self._used: dict[str, dict[str, float]] = {}  # tenant -> signature -> when it expires

    def issue(self, tenant_id: str, path: str, origin: str = "") -> Ticket:
        """For one WebSocket at `path`, by a page of ours or of `origin`. Raises Invalid."""
        if origin and not _ORIGIN.fullmatch(origin):
            raise Invalid(f"not an origin: {origin[:100]!r}", hint="as browsers say it: https://example.org")
        expires = self._clock() + LIVES
        claims = f"{tenant_id} {expires:.3f} {secrets.token_hex(8)} {origin.lower()}"
        encoded = base64.urlsafe_b64encode(claims.encode()).decode().rstrip("=")
        return Ticket(f"{encoded}.{self._sign(encoded, path)}", datetime.fromtimestamp(expires, UTC))

    def redeem(self, text: str, path: str) -> Admitted:
        """Raises Unauthenticated (bad_ticket) for one that is forged, expired, used or of another path; NoCapacity."""
        encoded, _, signature = text.partition(".")
        if len(text) > LONGEST or not text.isascii() or not hmac.compare_digest(signature, self._sign(encoded, path)):
            raise _bad("it is not for this address, or of another server")
        claims = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode()
        tenant_id, expires, _, origin = claims.split(" ")
        now = self._clock()
        if float(expires) < now:
            raise _bad("its time is over")
        used = {each: until for each, until in self._used.get(tenant_id, {}).items() if until >= now}
        if signature in used:
            raise _bad("it was used already")
        if len(used) >= MOST_USED:
            raise NoCapacity("too many tickets were used in the last minute", code="too_many", retry_after=1)
        self._used[tenant_id] = {**used, signature: float(expires)}
        return Admitted(parse_id(tenant_id, "ten"), origin)

    def _sign(self, encoded: str, path: str) -> str:
        return hmac.new(self._secret, f"{path} {encoded}".encode(), "sha256").hexdigest()


def check_origin(origin: str, host: str, admitted: str = "") -> None:
    """A page may open a WebSocket where it comes from, or where its ticket says so. Raises Forbidden.

    Programs send no origin. Sandboxes' and apps' pages have other hosts than we, so they are foreign like any other.
    """
    if not origin or (admitted and origin.lower() == admitted):
        return
    if origin.partition("://")[2].lower() != host.lower():
        raise Forbidden(
            "a page of another site may not open this",
            code="foreign_origin",
            hint="name the page's origin when you ask for its ticket",
        )


def _bad(why: str) -> Unauthenticated:
    return Unauthenticated(
        f"not a good ticket: {why}", code="bad_ticket", hint="ask for a new one: each is for one use"
    )
