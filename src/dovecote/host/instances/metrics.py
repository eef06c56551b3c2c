"""What a host counts about the saving of what runs on it."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

CHECKPOINTS = Counter(
    "dovecote_checkpoints_total", "Checkpoints of running instances; `saved`, or the code of what failed.", ["result"]
)
CHECKPOINT_SECONDS = Histogram(
    "dovecote_checkpoint_seconds",
    "Time that a checkpoint of a running instance took.",
    buckets=(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30),
)
UNSAVED = Gauge("dovecote_unsaved_instances", "Instances that were written to since their last checkpoint.")
FAILING = Gauge("dovecote_unsaved_failing_instances", "Those of them whose last checkpoint failed.")
OLDEST = Gauge("dovecote_unsaved_oldest_seconds", "Age of the oldest change that is not in the store.")
