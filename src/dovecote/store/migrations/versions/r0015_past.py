"""What is remembered of the life of a session."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "r0015"
down_revision = "r0014"

_PAST = {"moves": [], "hooks": [], "breaches": 0, "last_breach": None}


def upgrade() -> None:
    op.add_column("sessions", sa.Column("past", sa.JSON(), nullable=False, server_default=json.dumps(_PAST)))
    with op.batch_alter_table("sessions") as batch:
        batch.alter_column("past", server_default=None)
