"""Apps: what a session becomes when it is published."""

from dovecote.control.apps.apps import Apps
from dovecote.control.apps.running import AppInstance

__all__ = ["AppInstance", "Apps"]
