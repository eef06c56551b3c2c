"""Volumes: directories with a hard limit that outlive instances and may be shared by them."""

from dovecote.host.storage.volumes.buckets import Buckets, parse_prefixes
from dovecote.host.storage.volumes.contract import Volumes
from dovecote.host.storage.volumes.juicefs import JuiceFSVolumes
from dovecote.host.storage.volumes.loop import LoopVolumes
from dovecote.host.storage.volumes.opening import clone_mount, closing, open_directory, open_mount, taken
from dovecote.host.storage.volumes.pool import PoolVolumes

__all__ = [
    "Buckets",
    "JuiceFSVolumes",
    "LoopVolumes",
    "PoolVolumes",
    "Volumes",
    "clone_mount",
    "closing",
    "open_directory",
    "open_mount",
    "parse_prefixes",
    "taken",
]
