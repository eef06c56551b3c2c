"""Brings the tables of a database to this version, one file of `versions/` after the other."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util.exc import CommandError
from sqlalchemy import Connection

from dovecote.errors import Failed


def upgrade(connection: Connection) -> None:
    """In the transaction that the connection is in: all of it or nothing. Raises Failed (store_newer)."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise Failed(
            f"the tables are not of a version that this Dovecote knows: {error}",
            code="store_newer",
            hint="run the newer Dovecote that made them, or restore a backup from before",
        ) from error
