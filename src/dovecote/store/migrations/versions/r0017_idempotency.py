"""An idempotency key is one user's, and a secret of webhooks that was replaced goes on for a while."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "r0017"
down_revision = "r0016"


def upgrade() -> None:
    with op.batch_alter_table("invocations") as batch:
        batch.drop_constraint("uq_invocations_tenant_id_function_id_idempotency_key", type_="unique")
        batch.create_unique_constraint(
            "uq_invocations_tenant_id_function_id_user_idempotency_key",
            ["tenant_id", "function_id", "user", "idempotency_key"],
        )
    op.add_column("tenants", sa.Column("webhook_secret_before", sa.Text(), nullable=False, server_default=""))
    op.add_column("tenants", sa.Column("webhook_secret_before_until", sa.DateTime(timezone=True), nullable=True))
    with op.batch_alter_table("tenants") as batch:
        batch.alter_column("webhook_secret_before", server_default=None)
