"""Tenants, API keys, end users; and whose key a request carries."""

from __future__ import annotations

import builtins
import time
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from math import inf

from dovecote.control.tenancy.keys import NewKey, Principal, digest_of, is_secret, new_secret
from dovecote.errors import Conflict, Invalid, NotFound, Unauthenticated
from dovecote.model.ids import new_id, parse_name
from dovecote.model.records import ApiKey, Tenant, User
from dovecote.model.sizes import TIERS
from dovecote.recent import Recent
from dovecote.store import Store

FIRST_TENANT = "default"
KEY_TTL = 10.0  # seconds that a revoked key may still work on other replicas
MOST_RECENT_KEYS = 10_000
MOST_RECENT_USERS = 50_000
LONGEST_NAME = 200
TRIES = 8


class Tenancy:
    def __init__(self, store: Store, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._recent: Recent[str, Principal] = Recent(ttl=KEY_TTL, most=MOST_RECENT_KEYS, clock=clock)
        # A user is never renamed nor removed, so what is remembered of one stays true.
        self._user_ids: Recent[tuple[str, str], str] = Recent(ttl=inf, most=MOST_RECENT_USERS)

    # -- tenants

    async def first_run(self) -> NewKey | None:
        """On an empty store makes the first tenant and its key; None on any other.

        May be repeated, by several processes at once: one of them gets the key.
        """
        if await self._store.everyone().tenants.count():
            return None
        try:
            return await self.create_tenant(FIRST_TENANT)
        except Conflict:
            return None  # another process was first

    async def create_tenant(self, name: str) -> NewKey:
        """A tenant with its first key. Raises Conflict (exists), Invalid (malformed_name)."""
        tenant = Tenant(id=new_id("ten"), name=parse_name(name, "a tenant"), created_at=datetime.now(UTC))
        made = _new_key(tenant.id, "first key")
        async with self._store.tenant(tenant.id).together() as t:
            await t.tenants.insert(tenant)
            await t.keys.insert(made.key)
        return made

    # -- keys

    async def authenticate(self, secret: str) -> Principal:
        """Whose key this is. Raises Unauthenticated (no_key, bad_key).

        A key that was good is remembered for KEY_TTL: on the warm path this asks nobody.
        """
        if not secret:
            raise Unauthenticated(
                "no API key",
                code="no_key",
                hint="send it as `x-dovecote-key: dvc_...` (to the API also as `Authorization: Bearer`)",
            )
        if not is_secret(secret):
            raise _bad_key()
        digest = digest_of(secret)
        principal = await self._recent.get(digest, partial(self._principal, digest))
        if principal is None:
            raise _bad_key()
        return principal

    async def _principal(self, digest: str) -> Principal | None:
        key = await self._store.everyone().keys.find(digest=digest)
        return Principal(tenant_id=key.tenant_id, key_id=key.id) if key and key.revoked_at is None else None

    async def create_key(self, tenant_id: str, name: str) -> NewKey:
        """Raises NotFound for a tenant that is not there, Invalid."""
        scope = self._store.tenant(tenant_id)
        await scope.tenants.get(tenant_id)
        made = _new_key(tenant_id, _name(name, "a key"))
        await scope.keys.insert(made.key)
        return made

    async def list_keys(self, tenant_id: str, *, after: str | None = None, limit: int = 100) -> builtins.list[ApiKey]:
        """Revoked ones too, oldest first."""
        return await self._store.tenant(tenant_id).keys.list(after=after, limit=limit)

    async def revoke_key(self, tenant_id: str, key_id: str) -> ApiKey:
        """Ends it at once here, within KEY_TTL on other replicas. May be repeated. Raises NotFound."""
        keys = self._store.tenant(tenant_id).keys
        try:
            for _ in range(TRIES):
                key = await keys.get(key_id)
                with suppress(Conflict):
                    if key.revoked_at is None:
                        key = await keys.swap(replace(key, revoked_at=datetime.now(UTC)))
                    return key
        finally:
            self._recent.forget()  # also where it is not known whether that was written
        raise _busy()

    # -- users

    async def user(self, tenant_id: str, name: str, tier: str = "default") -> User:
        """The tenant's end user of that name (1-200 characters), made if need be; `tier` is for a new one.

        Raises Invalid (malformed_name), NotFound (no_such_tier).
        """
        users = self._store.tenant(tenant_id).users
        name = _name(name, "a user")
        found = await users.find(name=name)
        if found is None:
            new = User(id=new_id("usr"), tenant_id=tenant_id, name=name, tier=_tier(tier), created_at=datetime.now(UTC))
            try:
                return await users.insert(new)
            except Conflict:
                found = await users.find(name=name)  # another request was first
        if found is None:
            raise _busy()
        return found

    async def user_id(self, tenant_id: str, name: str) -> str:
        """Of the user of that name, made if need be: on the warm path this asks nobody. Raises Invalid."""

        async def read() -> str:
            return (await self.user(tenant_id, name)).id

        found = await self._user_ids.get((tenant_id, name), read)
        assert found is not None
        return found

    async def find_user(self, tenant_id: str, name: str) -> User | None:
        """The user of that name, if it was ever seen. Raises Invalid (malformed_name)."""
        return await self._store.tenant(tenant_id).users.find(name=_name(name, "a user"))

    async def list_users(self, tenant_id: str, *, after: str | None = None, limit: int = 100) -> builtins.list[User]:
        """Oldest first."""
        return await self._store.tenant(tenant_id).users.list(after=after, limit=limit)

    async def set_tier(self, tenant_id: str, name: str, tier: str) -> User:
        """Raises NotFound for a user that was never seen, and for a tier (no_such_tier)."""
        users = self._store.tenant(tenant_id).users
        tier = _tier(tier)
        for _ in range(TRIES):
            user = await users.find(name=_name(name, "a user"))
            if user is None:
                raise NotFound(f"no user {name[:60]!r}", hint="a user exists from the first session on")
            if user.tier == tier:
                return user
            try:
                return await users.swap(replace(user, tier=tier))
            except Conflict:
                continue
        raise _busy()


def _new_key(tenant_id: str, name: str) -> NewKey:
    secret = new_secret()
    key = ApiKey(
        id=new_id("key"), tenant_id=tenant_id, digest=digest_of(secret), name=name, created_at=datetime.now(UTC)
    )
    return NewKey(key, secret)


def _name(text: str, what: str) -> str:
    is_clean = not any(unicodedata.category(character) in ("Cc", "Cs") for character in text)
    if not (0 < len(text) <= LONGEST_NAME and is_clean):
        raise Invalid(
            f"not a name for {what}: {text[:60]!r}",
            code="malformed_name",
            hint=f"1 to {LONGEST_NAME} characters, no control characters",
        )
    return text


def _tier(name: str) -> str:
    if name not in TIERS:
        raise NotFound(f"no tier {name[:60]!r}", code="no_such_tier", hint=f"one of {', '.join(TIERS)}")
    return name


def _bad_key() -> Unauthenticated:
    return Unauthenticated(
        "not a valid API key",
        code="bad_key",
        hint="it may have been revoked; `dovecote up` leaves the first one in credentials.json of its config directory",
    )


def _busy() -> Conflict:
    return Conflict("too many changes at once", code="busy", hint="try again")
