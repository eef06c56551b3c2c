"""What the API counts about itself."""

from __future__ import annotations

from prometheus_client import Counter, Histogram

REQUESTS = Counter("dovecote_api_requests_total", "Requests answered by the API.", ["method", "route", "status"])
SECONDS = Histogram(
    "dovecote_api_request_seconds",
    "Time until the answer of the API was complete; streams count until their end.",
    ["method", "route"],
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
ERRORS = Counter("dovecote_api_errors_total", "Errors rendered by the API.", ["code"])
