"""Volumes of a tenant, and their mounts in sessions."""

from dovecote.control.volumes.volumes import Volumes, VolumeView

__all__ = ["VolumeView", "Volumes"]
