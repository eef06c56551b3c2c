"""What control counts: promises of tiers, and hooks."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

BREACHES = Counter(
    "dovecote_promise_breaches_total",
    "Sessions that lost their instance within their promised time: `killed`, or `parked` because memory ran out.",
    ["cause"],
)
PARKED = Counter("dovecote_parked_for_memory_total", "Sessions of tiers without a promise, parked to make room.")
REFUSED = Counter("dovecote_refused_for_memory_total", "Wakings refused because promises would have been broken.")
HOOKS = Counter("dovecote_hook_runs_total", "Hooks that ran, by outcome: `ok`, `failed`.", ["hook", "outcome"])
PROMISED = Gauge("dovecote_promised_bytes", "Memory that is kept ready for promised sessions and not used yet.")
