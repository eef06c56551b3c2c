"""Volumes, and what sessions and revisions mount."""

import sqlalchemy as sa
from alembic import op

revision = "r0003"
down_revision = "r0002"


def upgrade() -> None:
    op.create_table(
        "volumes",
        *[sa.Column(name, sa.Text(), nullable=False) for name in ("id", "tenant_id", "name")],
        sa.Column("user_id", sa.Text(), nullable=True),
        sa.Column("host_id", sa.Text(), nullable=False),
        sa.Column("max_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_volumes"),
        sa.UniqueConstraint("tenant_id", "name", name="uq_volumes_tenant_id_name"),
    )
    op.create_index("ix_volumes_tenant_id_created_at_id", "volumes", ["tenant_id", "created_at", "id"])
    for table in ("sessions", "revisions"):
        op.add_column(table, sa.Column("mounts", sa.JSON(), nullable=False, server_default="[]"))
        # A default for the rows that are there; whoever writes new ones names the value.
        with op.batch_alter_table(table) as batch:
            batch.alter_column("mounts", server_default=None)
