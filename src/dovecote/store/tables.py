"""The tables, one a kind of record, with their unique rules and indexes. A change here needs a migration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic

import sqlalchemy as sa
from sqlalchemy.schema import SchemaItem

from dovecote.model import invocations, records
from dovecote.store.contract import R
from dovecote.store.rows import Shape, row_reader, shapes

metadata = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(referred_table_name)s",
    }
)


@dataclass(frozen=True)
class Kind(Generic[R]):
    """One kind of record: where it is kept, who owns it, in what order it is listed."""

    noun: str
    record: type[R]
    table: sa.Table
    shapes: dict[str, Shape]
    owner: sa.Column[Any]  # holds the id of the tenant
    order: tuple[sa.Column[Any], ...]  # ends with the id, so that no two are equal
    is_fixed: bool = False  # written once

    @cached_property
    def read(self) -> Callable[[Any], R]:
        return row_reader(self.record, self.shapes)

    @cached_property
    def insert(self) -> sa.Insert:
        return sa.insert(self.table)

    @cached_property
    def swap(self) -> sa.Update:
        """The whole record, where it is still in the generation that was read. Id and tenant are never written."""
        c = self.table.c
        unmoved = (c.id == sa.bindparam("its_id"), c.generation == sa.bindparam("its_generation"))
        changing: dict[str, Any] = {
            name: sa.bindparam(name) for name in self.shapes if name not in ("id", self.owner.name)
        }
        return sa.update(self.table).where(*unmoved, self.owner == sa.bindparam("its_owner")).values(changing)


def _kind(noun: str, name: str, record: type[R], *rules: SchemaItem, is_fixed: bool = False) -> Kind[R]:
    kept = shapes(record)
    columns = [
        sa.Column(name, shape.column, primary_key=name == "id", nullable=shape.is_optional)
        for name, shape in kept.items()
    ]
    table = sa.Table(name, metadata, *columns, *rules)
    order = tuple(table.c[name] for name in ("created_at", "id") if name in table.c)
    if "tenant_id" in table.c:
        sa.Index(None, table.c.tenant_id, *order)
    return Kind(noun, record, table, kept, table.c.get("tenant_id", table.c.id), order, is_fixed)


def _among(name: str, *columns: str, where: str, unique: bool = False) -> sa.Index:
    """An index of the rows that match `where` only; both databases have them."""
    condition = sa.text(where)
    return sa.Index(name, *columns, unique=unique, sqlite_where=condition, postgresql_where=condition)


TENANTS = _kind("tenant", "tenants", records.Tenant, sa.UniqueConstraint("name"))
USERS = _kind("user", "users", records.User, sa.UniqueConstraint("tenant_id", "name"))
KEYS = _kind("API key", "keys", records.ApiKey, sa.UniqueConstraint("digest"))
FUNCTIONS = _kind(
    "function",
    "functions",
    records.Function,
    sa.UniqueConstraint("tenant_id", "name"),
    sa.UniqueConstraint("slug"),
)
REVISIONS = _kind(
    "revision", "revisions", records.Revision, sa.UniqueConstraint("function_id", "number"), is_fixed=True
)
SESSIONS = _kind(
    "session",
    "sessions",
    records.Session,
    # live_marker is the session's own id once it has ended, so the rule binds only those that have not.
    sa.UniqueConstraint("tenant_id", "user_id", "function_id", "key", "live_marker"),
    sa.UniqueConstraint("slug"),
    sa.Index(None, "state", "created_at", "id"),
    sa.Index(None, "instance_id"),
)
APPS = _kind(
    "app",
    "apps",
    records.App,
    _among("uq_apps_name_not_removed", "name", where="removed_at IS NULL", unique=True),
    _among("ix_apps_not_removed", "created_at", "id", where="removed_at IS NULL"),
)
CHATS = _kind(
    "chat",
    "chats",
    records.Chat,
    sa.UniqueConstraint("tenant_id", "id"),
    sa.Index(None, "tenant_id", "user_id", "created_at", "id"),
)
TURNS = _kind(
    "turn",
    "turns",
    records.Turn,
    sa.UniqueConstraint("chat_id", "number"),
    # With the tenant in it: a turn cannot hang on another tenant's chat.
    sa.ForeignKeyConstraint(["tenant_id", "chat_id"], ["chats.tenant_id", "chats.id"]),
    sa.Index(None, "chat_id", "created_at", "id"),
)
SNAPSHOTS = _kind(
    "snapshot",
    "snapshots",
    records.Snapshot,
    sa.Index(None, "session_id", "created_at", "id"),
)
INVOCATIONS = _kind(
    "invocation",
    "invocations",
    invocations.Invocation,
    sa.UniqueConstraint("tenant_id", "function_id", "user", "idempotency_key"),
    _among("ix_invocations_due", "tenant_id", "due_at", where="due_at IS NOT NULL"),
    sa.Index(None, "finished_at"),
)
VOLUMES = _kind("volume", "volumes", records.Volume, sa.UniqueConstraint("tenant_id", "name"))
PATH_LIMITS = _kind(
    "limit",
    "path_limits",
    records.PathLimit,
    sa.UniqueConstraint("tenant_id", "volume_id", "path"),
    sa.Index(None, "volume_id", "created_at", "id"),
    sa.Index(None, "is_settled", "created_at", "id"),
)
TEMPLATES = _kind("template", "templates", records.Template, sa.UniqueConstraint("tenant_id", "name"))

KINDS: tuple[Kind[Any], ...] = (
    *(TENANTS, USERS, KEYS, FUNCTIONS, REVISIONS, SESSIONS, APPS, CHATS, TURNS, INVOCATIONS),
    SNAPSHOTS,
    VOLUMES,
    PATH_LIMITS,
    TEMPLATES,
)
