"""Snapshots: checkpoints of a session's files that can be named."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "r0002"
down_revision = "r0001"

TEXTS = ("id", "tenant_id", "session_id", "label", "cause", "template", "tree")
NUMBERS = ("saved_generation", "files", "total_bytes")


def upgrade() -> None:
    op.create_table(
        "snapshots",
        *(sa.Column(name, sa.Text(), nullable=False) for name in TEXTS),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in NUMBERS),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("is_pinned", sa.Boolean(), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_snapshots"),
    )
    op.create_index("ix_snapshots_tenant_id_created_at_id", "snapshots", ["tenant_id", "created_at", "id"])
    op.create_index("ix_snapshots_session_id_created_at_id", "snapshots", ["session_id", "created_at", "id"])
