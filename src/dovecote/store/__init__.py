"""Records and transactions, in SQLite or PostgreSQL."""

from dovecote.store.contract import MOST, Before, Holding, Records, Scope, Store
from dovecote.store.databases import database_at
from dovecote.store.sql import SQLStore

__all__ = ["MOST", "Before", "Holding", "Records", "Scope", "Store", "open_store"]


def open_store(url: str) -> Store:
    """A store, not opened yet, at `sqlite:///<path>` or `postgresql://user:password@host/name`. Raises Invalid."""
    return SQLStore(database_at(url))
