"""Room for inotify: the kernel counts what all sandboxes watch together, as if one user did it."""

from __future__ import annotations

import logging
from pathlib import Path

log = logging.getLogger(__name__)

BOUNDS = Path("/proc/sys/fs/inotify")
# Far more than anybody uses: what a sandbox takes of it is charged to its own memory, which is bounded.
WANTED = {"max_user_instances": 1 << 20, "max_user_watches": 1 << 24}


def ensure_room(bounds: Path = BOUNDS) -> None:
    """Raises the kernel's bounds for the whole machine, never lowers them. May be repeated.

    With the usual 128 instances one sandbox could keep all others, and programs of the host, from watching files.
    """
    for name, wanted in WANTED.items():
        try:
            if int((bounds / name).read_text()) < wanted:
                (bounds / name).write_text(str(wanted))
        except (OSError, ValueError) as error:
            log.warning("fs.inotify.%s could not be raised: one sandbox can keep others from watching: %s", name, error)
