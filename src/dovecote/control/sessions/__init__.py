"""Sessions: the tie between a caller and one instance."""

from dovecote.control.sessions.activity import Activity
from dovecote.control.sessions.callers import Caller, find_caller
from dovecote.control.sessions.cookies import cookie_of, cookie_seconds, key_in
from dovecote.control.sessions.hook_runs import HookRuns
from dovecote.control.sessions.keeping import Keeping
from dovecote.control.sessions.live import InstanceView, Live
from dovecote.control.sessions.opening import Origin, Wishes
from dovecote.control.sessions.replicas import claim_replica, inside_of, start_server, stop_replica
from dovecote.control.sessions.routing import Routed, Routing
from dovecote.control.sessions.sessions import Sessions
from dovecote.control.sessions.starting import ensure_started, wait_for_port, wait_until_ready

__all__ = [
    "Activity",
    "Caller",
    "HookRuns",
    "InstanceView",
    "Keeping",
    "Live",
    "Origin",
    "Routed",
    "Routing",
    "Sessions",
    "Wishes",
    "claim_replica",
    "cookie_of",
    "cookie_seconds",
    "ensure_started",
    "find_caller",
    "inside_of",
    "key_in",
    "start_server",
    "stop_replica",
    "wait_for_port",
    "wait_until_ready",
]
