"""Volumes of a tenant, and their mounts in sessions."""

from dovecote.control.volumes.contents import AT, Contents, is_for_volume, place
from dovecote.control.volumes.limits import SETTLE_EVERY, PathLimits, PathLimitView
from dovecote.control.volumes.volumes import Volumes, VolumeView

__all__ = [
    "AT",
    "SETTLE_EVERY",
    "Contents",
    "PathLimitView",
    "PathLimits",
    "VolumeView",
    "Volumes",
    "is_for_volume",
    "place",
]
