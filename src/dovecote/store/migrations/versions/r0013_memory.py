"""What processes a session or a snapshot goes on with, and whether an idle session keeps them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "r0013"
down_revision = "r0012"


def upgrade() -> None:
    for table in ("sessions", "snapshots"):
        op.add_column(table, sa.Column("memory", sa.Text(), nullable=True))
    op.add_column("sessions", sa.Column("park", sa.Text(), nullable=False, server_default="files"))
    with op.batch_alter_table("sessions") as batch:
        batch.alter_column("park", server_default=None)
