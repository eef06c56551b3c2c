"""Run by Alembic, which hands it the connection that `upgrade` was given."""

from alembic import context

from dovecote.store.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
