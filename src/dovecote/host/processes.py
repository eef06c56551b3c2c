"""Processes that outlive this one: which is which, and whether one still runs."""

from __future__ import annotations

from pathlib import Path


def process_started(pid: int) -> int | None:
    """Start time in clock ticks since boot; with the pid it names one process for ever. None: it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    after_name = stat[stat.rindex(b")") + 2 :].split()
    return None if after_name[0] in (b"Z", b"X") else int(after_name[19])


def is_alive(pid: int, since: int | None) -> bool:
    return since is not None and process_started(pid) == since
