"""Volumes of a tenant, and their mounts in sessions."""

from dovecote.control.volumes.contents import AT, Contents, is_for_volume, place
from dovecote.control.volumes.volumes import Volumes, VolumeView

__all__ = ["AT", "Contents", "VolumeView", "Volumes", "is_for_volume", "place"]
