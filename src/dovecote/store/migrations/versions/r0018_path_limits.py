"""Limits of paths in volumes."""

import sqlalchemy as sa
from alembic import op

revision = "r0018"
down_revision = "r0017"


def upgrade() -> None:
    op.create_table(
        "path_limits",
        *[sa.Column(name, sa.Text(), nullable=False) for name in ("id", "tenant_id", "volume_id", "path")],
        sa.Column("max_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        *[sa.Column(name, sa.Boolean(), nullable=False) for name in ("is_settled", "is_lifted")],
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_path_limits"),
        sa.UniqueConstraint("tenant_id", "volume_id", "path", name="uq_path_limits_tenant_id_volume_id_path"),
    )
    op.create_index("ix_path_limits_tenant_id_created_at_id", "path_limits", ["tenant_id", "created_at", "id"])
    op.create_index("ix_path_limits_volume_id_created_at_id", "path_limits", ["volume_id", "created_at", "id"])
    op.create_index("ix_path_limits_is_settled_created_at_id", "path_limits", ["is_settled", "created_at", "id"])
