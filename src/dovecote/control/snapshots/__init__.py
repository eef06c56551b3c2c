"""Snapshots: checkpoints of a session's files by name; going back to one, and going on elsewhere from one."""

from dovecote.control.snapshots.retention import expired
from dovecote.control.snapshots.snapshots import RETAIN_EVERY, Snapshots

__all__ = ["RETAIN_EVERY", "Snapshots", "expired"]
