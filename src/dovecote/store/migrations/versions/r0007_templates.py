"""Revisions carry what their template is like: its user, home, variables, and whether it has sudo."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "r0007"
down_revision = "r0008"


def upgrade() -> None:
    op.add_column("revisions", sa.Column("pinned", sa.JSON(none_as_null=True), nullable=True))
