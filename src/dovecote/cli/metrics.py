"""`dovecote sandbox metrics`: what a sandbox used."""

from __future__ import annotations

import typer

from dovecote.cli.execute import SessionId
from dovecote.cli.show import table


def metrics(session_id: SessionId, last: int = typer.Option(20, min=1, help="So many samples.")) -> None:
    """Show what a sandbox used while it was awake, of the last hour; does not wake it."""
    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        samples = client.sessions.get(session_id).metrics()[-last:]
    table(
        ("at", "cpu %", "cpus", "memory", "of", "cache", "disk", "of"),
        [
            (
                each.at.isoformat(timespec="seconds"),
                f"{each.cpu_percent:.1f}",
                f"{each.cpus:g}",
                each.memory_bytes,
                each.max_memory_bytes,
                each.cache_bytes,
                each.disk_bytes,
                each.max_disk_bytes,
            )
            for each in samples
        ],
    )
