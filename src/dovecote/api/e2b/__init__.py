"""E2B's wire, for clients that speak it: a thin translation of what control can do."""
