"""Two tenants with a key each, in memory, for tests of the edges."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime

from dovecote.errors import Unauthenticated
from dovecote.model.ids import new_id, random_text
from dovecote.model.records import ApiKey, User

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
TENANT = new_id("ten")
OTHER = new_id("ten")
KEY = "dvc_good"
OTHER_KEY = "dvc_other"


@dataclass
class Principal:
    tenant_id: str
    key_id: str = "key"


@dataclass
class NewKey:
    secret: str
    key: ApiKey


class FakeTenancy:
    def __init__(self) -> None:
        self.tenants = {KEY: TENANT, OTHER_KEY: OTHER}
        self.keys: dict[str, ApiKey] = {}
        self.tiers: dict[str, str] = {}

    async def authenticate(self, secret: str) -> Principal:
        if secret not in self.tenants:
            raise Unauthenticated("not a key of ours", hint="`dovecote key create` makes one")
        return Principal(self.tenants[secret])

    async def create_key(self, tenant_id: str, name: str) -> NewKey:
        key = ApiKey(new_id("key"), tenant_id, "digest", name, NOW)
        self.keys[key.id] = key
        return NewKey(f"dvc_{random_text()}", key)

    async def list_keys(self, tenant_id: str) -> list[ApiKey]:
        return list(self.keys.values())

    async def revoke_key(self, tenant_id: str, key_id: str) -> None:
        self.keys[key_id] = replace(self.keys[key_id], revoked_at=NOW)

    async def user(self, tenant_id: str, name: str, tier: str = "default") -> User:
        return User(new_id("usr"), tenant_id, name, self.tiers.get(name, tier), NOW)

    async def find_user(self, tenant_id: str, name: str) -> User | None:
        return await self.user(tenant_id, name) if name in self.tiers else None

    async def list_users(self, tenant_id: str, *, after: str | None = None, limit: int = 100) -> list[User]:
        return [await self.user(tenant_id, name) for name in self.tiers]
