"""How the command line shows things: tables, one clear line for an error, ages and sizes for people."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from rich.console import Console
from rich.markup import escape
from rich.table import Table

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on a terminal; tab-separated lines where a program reads."""
    if not out.is_terminal:
        print("\t".join(columns))
        for row in rows:
            print("\t".join("" if cell is None else str(cell) for cell in row))
        return
    shown = Table(*columns, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        shown.add_row(*("" if cell is None else escape(str(cell)) for cell in row))
    out.print(shown)


def say(text: str, *, style: str = "") -> None:
    out.print(escape(text), style=style or None)


def problem(message: str, code: str = "", hint: str = "") -> None:
    """One clear line, and what to do about it."""
    err.print(f"[red]error[/red]: {escape(message)}" + (f" [dim]\\[{escape(code)}][/dim]" if code else ""))
    if hint:
        err.print(f"  [dim]{escape(hint)}[/dim]")


def age(moment: datetime | None) -> str:
    """`3 min`, `2 h`: how long ago."""
    if moment is None:
        return "-"
    seconds = max(0.0, (datetime.now(UTC) - moment).total_seconds())
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def write_bytes(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
