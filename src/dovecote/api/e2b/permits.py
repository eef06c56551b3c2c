"""Addresses that let whoever has them send one thing, without a key: clients send files by such."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from dovecote.errors import Forbidden

LIVES = 2 * 3600.0  # seconds: a client makes ready and sends one file after the other
MOST = 10_000


@dataclass(frozen=True)
class Permit:
    """To send a tenant's files of that name."""

    tenant_id: str
    name: str
    until: float


class Permits:
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._given: OrderedDict[str, Permit] = OrderedDict()

    def give(self, tenant_id: str, name: str) -> str:
        token = secrets.token_urlsafe(32)
        self._given[token] = Permit(tenant_id, name, self._clock() + LIVES)
        while len(self._given) > MOST:
            self._given.popitem(last=False)
        return token

    def look(self, token: str) -> Permit:
        """Raises Forbidden (bad_permit)."""
        permit = self._given.get(token)
        if permit is None or permit.until <= self._clock():
            raise Forbidden("this address is not good for sending files, or not any more", code="bad_permit")
        return permit
