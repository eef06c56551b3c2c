"""The first tables. Says what they were then, so it uses nothing of `tables.py`."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.schema import SchemaItem

revision = "r0001"
down_revision = None

TYPES: dict[str, sa.types.TypeEngine[Any]] = {
    "text": sa.Text(),
    "integer": sa.BigInteger(),
    "seconds": sa.Double(),
    "time": sa.DateTime(timezone=True),
    "json": sa.JSON(),
}


def upgrade() -> None:
    _table("tenants", "id name created_at:time generation:integer", unique=["name"])
    _table("users", "id tenant_id name tier created_at:time generation:integer", unique=["tenant_id name"])
    _table(
        "keys",
        "id tenant_id digest name created_at:time revoked_at:time? generation:integer",
        unique=["digest"],
    )
    _table(
        "functions",
        "id tenant_id name revision_id affinity_header created_at:time generation:integer",
        unique=["tenant_id name"],
    )
    _table(
        "revisions",
        "id tenant_id function_id number:integer template template_name tree:text? spec level network:json"
        " start:json? env:json created_at:time generation:integer",
        unique=["function_id number"],
    )
    _table(
        "sessions",
        "id tenant_id user_id function_id revision_id key slug state desired created_at:time last_active_at:time"
        " tier idle_after:seconds? quiet_after:seconds? expires_at:time? env:json start:json? host_id:text?"
        " instance_id:text? tree:text? saved_generation:integer saved_at:time? epoch:integer reason ended_at:time?"
        " live_marker generation:integer",
        unique=["tenant_id user_id function_id key live_marker", "slug"],
    )
    _table(
        "apps",
        "id tenant_id name function_id revision_id source_session_id minimum:integer maximum:integer"
        " target_concurrency:integer idle_after:seconds created_at:time removed_at:time? generation:integer",
    )
    _table("chats", "id tenant_id user_id session_id title created_at:time generation:integer", unique=["tenant_id id"])
    _table(
        "turns",
        "id tenant_id chat_id number:integer messages:json created_at:time generation:integer",
        sa.ForeignKeyConstraint(["tenant_id", "chat_id"], ["chats.tenant_id", "chats.id"], name="fk_turns_chats"),
        unique=["chat_id number"],
    )
    _table(
        "outbox",
        "id tenant_id kind payload:json due_at:time attempts:integer last_error done_at:time? generation:integer",
    )
    _indexes()


def _indexes() -> None:
    for table in ("users", "keys", "functions", "revisions", "sessions", "apps", "chats", "turns"):
        _index(table, "tenant_id created_at id")
    _index("outbox", "tenant_id id")
    _index("sessions", "state created_at id")
    _index("sessions", "instance_id")
    _index("chats", "tenant_id user_id created_at id")
    _index("turns", "chat_id created_at id")
    _index("apps", "name", name="uq_apps_name_not_removed", where="removed_at IS NULL", unique=True)
    _index("apps", "created_at id", name="ix_apps_not_removed", where="removed_at IS NULL")
    _index("outbox", "due_at", name="ix_outbox_due", where="done_at IS NULL")


def _table(name: str, columns: str, *rules: SchemaItem, unique: list[str] | None = None) -> None:
    """`columns` are `name`, or `name:type`, with `?` where it may be NULL."""
    made: list[SchemaItem] = []
    for column in columns.split():
        called, _, kind = column.partition(":")
        made.append(sa.Column(called, TYPES[kind.rstrip("?") or "text"], nullable=kind.endswith("?")))
    made.append(sa.PrimaryKeyConstraint("id", name=f"pk_{name}"))
    for rule in unique or []:
        made.append(sa.UniqueConstraint(*rule.split(), name=f"uq_{name}_{rule.replace(' ', '_')}"))
    op.create_table(name, *made, *rules)


def _index(
    table: str, columns: str, *, name: str | None = None, where: str | None = None, unique: bool = False
) -> None:
    condition = sa.text(where) if where else None
    op.create_index(
        name or f"ix_{table}_{columns.replace(' ', '_')}",
        table,
        columns.split(),
        unique=unique,
        sqlite_where=condition,
        postgresql_where=condition,
    )
