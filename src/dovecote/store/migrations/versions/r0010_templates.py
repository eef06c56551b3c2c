"""Templates of tenants."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "r0010"
down_revision = "r0007"


def upgrade() -> None:
    texts = ("id", "tenant_id", "name", "state", "source", "source_digest", "error_code", "reason")
    op.create_table(
        "templates",
        *[sa.Column(name, sa.Text(), nullable=False) for name in texts],
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("digest", sa.Text(), nullable=True),
        sa.Column("pinned", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("start", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("files", sa.BigInteger(), nullable=False),
        sa.Column("total_bytes", sa.BigInteger(), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_templates"),
        sa.UniqueConstraint("tenant_id", "name", name="uq_templates_tenant_id_name"),
    )
    op.create_index("ix_templates_tenant_id_created_at_id", "templates", ["tenant_id", "created_at", "id"])
