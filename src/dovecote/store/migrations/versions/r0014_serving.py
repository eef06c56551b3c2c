"""How functions serve their callers, and leases that keep sessions awake."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

from dovecote.model.ids import random_text

revision = "r0014"
down_revision = "r0013"

_AFFINITY = {"modes": ["header"], "sse_path": "/sse", "ttl": None, "idle_after": None, "refuses_reuse": False}
_INVOKING = {"retries": 3, "max_age": 86400.0, "at_once": 0, "on_success": None, "on_failure": None}
_SHARING = {"sessions": 1, "requests": 0, "instances": 0}
_HOOKS = {"initialize": None, "pre_freeze": None, "pre_stop": None}


def upgrade() -> None:
    _functions()
    for name, value in (("sharing", _SHARING), ("hooks", _HOOKS)):
        op.add_column("revisions", sa.Column(name, sa.JSON(), nullable=False, server_default=json.dumps(value)))
    with op.batch_alter_table("revisions") as batch:
        batch.alter_column("sharing", server_default=None)
        batch.alter_column("hooks", server_default=None)
    op.add_column("sessions", sa.Column("awake_until", sa.DateTime(timezone=True), nullable=True))


def _functions() -> None:
    op.add_column("functions", sa.Column("slug", sa.Text(), nullable=True))
    op.add_column("functions", sa.Column("affinity", sa.JSON(), nullable=True))
    op.add_column("functions", sa.Column("invoking", sa.JSON(), nullable=True))
    op.add_column("functions", sa.Column("is_public", sa.Boolean(), nullable=False, server_default=sa.false()))
    texts = [sa.column(name, sa.Text()) for name in ("id", "slug", "affinity_header")]
    documents = [sa.column(name, sa.JSON()) for name in ("affinity", "invoking")]
    table = sa.table("functions", *texts, *documents)
    bind = op.get_bind()
    for id, header in bind.execute(sa.select(table.c.id, table.c.affinity_header)).all():
        affinity = {**_AFFINITY, "header": header}
        bind.execute(
            sa.update(table).where(table.c.id == id).values(slug=random_text(), affinity=affinity, invoking=_INVOKING)
        )
    with op.batch_alter_table("functions") as batch:
        for name, kind in (("slug", sa.Text()), ("affinity", sa.JSON()), ("invoking", sa.JSON())):
            batch.alter_column(name, existing_type=kind, nullable=False)
        batch.alter_column("is_public", server_default=None)
        batch.create_unique_constraint("uq_functions_slug", ["slug"])
        batch.drop_column("affinity_header")
