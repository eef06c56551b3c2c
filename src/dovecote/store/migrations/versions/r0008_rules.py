"""What a revision's sessions do not save, and what became of reinstalling it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "r0008"
down_revision = "r0006"


def upgrade() -> None:
    nothing = '{"leave_out":[],"keep":[],"reinstall":null}'
    op.add_column("revisions", sa.Column("rules", sa.JSON(), nullable=False, server_default=nothing))
    # A default for the rows that are there; whoever writes new ones names the value.
    with op.batch_alter_table("revisions") as batch:
        batch.alter_column("rules", server_default=None)
    op.add_column("sessions", sa.Column("reinstall", sa.JSON(), nullable=True))
