"""What a host counts about its cache of saved files."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

CACHE_BYTES = Gauge("dovecote_cache_bytes", "What the host's cache of saved files takes, as last measured.")
CACHE_LIMIT = Gauge("dovecote_cache_limit_bytes", "What it may take; 0 for no limit.")
CACHE_NEEDED = Gauge("dovecote_cache_needed_bytes", "What of it is in use or pinned, and stays whatever the limit is.")
CACHE_EVICTED = Counter("dovecote_cache_evicted_bytes_total", "What was evicted from it.")
