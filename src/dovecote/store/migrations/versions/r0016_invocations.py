"""Asynchronous calls, and what signs their webhooks. The outbox, which nothing used, goes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "r0016"
down_revision = "r0015"

_TEXTS = (
    *("id", "tenant_id", "function_id", "function", "user", "method", "path", "body", "state", "error_code", "error"),
    *("response_body", "delivery", "delivery_error"),
)
_OPTIONAL_TEXTS = ("key", "session_id", "idempotency_key", "replay_of")
_NUMBERS = ("retries", "attempts", "waits", "deliveries", "hops", "generation")


def upgrade() -> None:
    op.drop_table("outbox")
    op.add_column("tenants", sa.Column("webhook_secret", sa.Text(), nullable=False, server_default=""))
    with op.batch_alter_table("tenants") as batch:
        batch.alter_column("webhook_secret", server_default=None)
    moment, document = sa.DateTime(timezone=True), sa.JSON(none_as_null=True)
    op.create_table(
        "invocations",
        *[sa.Column(name, sa.Text(), nullable=False) for name in _TEXTS],
        *[sa.Column(name, sa.Text(), nullable=True) for name in _OPTIONAL_TEXTS],
        *[sa.Column(name, sa.BigInteger(), nullable=False) for name in _NUMBERS],
        *[sa.Column(name, moment, nullable=False) for name in ("created_at", "deadline")],
        *[sa.Column(name, moment, nullable=True) for name in ("due_at", "finished_at")],
        *[sa.Column(name, document, nullable=False) for name in ("headers", "response_headers")],
        *[sa.Column(name, document, nullable=True) for name in ("on_success", "on_failure")],
        sa.Column("timeout", sa.Double(), nullable=False),
        sa.Column("status", sa.BigInteger(), nullable=True),
        sa.Column("is_truncated", sa.Boolean(), nullable=False),
        sa.Column("is_key_ours", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_invocations"),
        sa.UniqueConstraint(
            *("tenant_id", "function_id", "idempotency_key"),
            name="uq_invocations_tenant_id_function_id_idempotency_key",
        ),
    )
    op.create_index("ix_invocations_tenant_id_created_at_id", "invocations", ["tenant_id", "created_at", "id"])
    op.create_index("ix_invocations_finished_at", "invocations", ["finished_at"])
    is_due = sa.text("due_at IS NOT NULL")
    op.create_index(
        *("ix_invocations_due", "invocations", ["tenant_id", "due_at"]),
        sqlite_where=is_due,
        postgresql_where=is_due,
    )
