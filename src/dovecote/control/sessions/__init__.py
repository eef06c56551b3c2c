"""Sessions: the tie between a caller and one instance."""

from dovecote.control.sessions.activity import Activity
from dovecote.control.sessions.callers import Caller, find_caller
from dovecote.control.sessions.keeping import Keeping
from dovecote.control.sessions.live import InstanceView, Live
from dovecote.control.sessions.opening import Origin, Wishes
from dovecote.control.sessions.routing import Routed, Routing
from dovecote.control.sessions.sessions import Sessions
from dovecote.control.sessions.starting import ensure_started, wait_for_port, wait_until_ready

__all__ = [
    "Activity",
    "Caller",
    "InstanceView",
    "Keeping",
    "Live",
    "Origin",
    "Routed",
    "Routing",
    "Sessions",
    "Wishes",
    "ensure_started",
    "find_caller",
    "wait_for_port",
    "wait_until_ready",
]
