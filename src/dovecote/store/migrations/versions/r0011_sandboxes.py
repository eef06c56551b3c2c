"""What makes a session a sandbox that its client names, finds, pauses and lets others act in."""

from __future__ import annotations

import secrets
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "r0011"
down_revision = "r0010"

AT_ONCE = 500


def upgrade() -> None:
    new: tuple[tuple[str, Any, Any], ...] = (
        ("metadata", sa.JSON(), "{}"),
        ("at_timeout", sa.Text(), "end"),
        ("resumes_on_use", sa.Boolean(), sa.true()),
        ("token", sa.Text(), ""),
        ("needs_token", sa.Boolean(), sa.true()),
    )
    for name, kind, default in new:
        op.add_column("sessions", sa.Column(name, kind, nullable=False, server_default=default))
    op.add_column("sessions", sa.Column("timeout_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("sessions", sa.Column("network", sa.JSON(), nullable=True))
    op.add_column("snapshots", sa.Column("outlives_session", sa.Boolean(), nullable=False, server_default=sa.false()))
    # Defaults for the rows that are there; whoever writes new ones names the values.
    with op.batch_alter_table("sessions") as batch:
        for name, _, _ in new:
            batch.alter_column(name, server_default=None)
    with op.batch_alter_table("snapshots") as batch:
        batch.alter_column("outlives_session", server_default=None)
    _give_tokens()
    # Until now every session that was parked said that it should be; from now on only a paused one does.
    op.execute("UPDATE sessions SET desired = 'live' WHERE desired = 'parked'")


def _give_tokens() -> None:
    sessions = sa.table("sessions", sa.column("id", sa.Text()), sa.column("token", sa.Text()))
    without = sa.select(sessions.c.id).where(sessions.c.token == "").limit(AT_ONCE)
    change = sessions.update().where(sessions.c.id == sa.bindparam("its_id")).values(token=sa.bindparam("its_token"))
    while ids := op.get_bind().execute(without).scalars().all():
        op.get_bind().execute(change, [{"its_id": each, "its_token": secrets.token_hex(32)} for each in ids])
