"""Waiting for one descriptor, of whatever number: `select.select` takes none above 1,023."""

from __future__ import annotations

import select


def is_readable(descriptor: int, *, within: float) -> bool:
    """Waits for it, that many seconds at most. A pidfd is readable when its process has ended."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(within * 1000))
