"""Whether a process that outlives this one still runs."""

from __future__ import annotations

from pathlib import Path


def started(pid: int) -> int | None:
    """Start time in clock ticks since boot, so that a process is not taken for another one. None: it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    after = stat[stat.rindex(b")") + 2 :].split()
    return None if after[0] in (b"Z", b"X") else int(after[19])


def is_alive(pid: int, since: int | None) -> bool:
    return since is not None and started(pid) == since
