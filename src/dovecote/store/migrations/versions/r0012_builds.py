"""Templates know which build they are the result of, and which size sandboxes of theirs have."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "r0012"
down_revision = "r0011"


def upgrade() -> None:
    for name in ("build_id", "spec"):
        op.add_column("templates", sa.Column(name, sa.Text(), nullable=False, server_default=""))
    with op.batch_alter_table("templates") as batch:
        for name in ("build_id", "spec"):
            batch.alter_column(name, server_default=None)
