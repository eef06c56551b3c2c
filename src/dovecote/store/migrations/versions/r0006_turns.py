"""Turns name the session's files at their end, and say when the chat went back to before them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "r0006"
down_revision = "r0003"


def upgrade() -> None:
    op.add_column("turns", sa.Column("snapshot_id", sa.Text(), nullable=True))
    op.add_column("turns", sa.Column("snapshot_note", sa.Text(), nullable=True))
    op.add_column("turns", sa.Column("rewound_at", sa.DateTime(timezone=True), nullable=True))
