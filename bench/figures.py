"""Rows of figures: computed, printed as a table, written as JSON."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """`ratio` is ours over the rival's. Latencies in ms, sizes in bytes, shares as fractions, rates per second."""

    name: str
    unit: str
    n: int
    p50: float
    p95: float
    p99: float
    rival: str
    rival_p50: float | None
    ratio: float | None


def row(name: str, unit: str, ours: Sequence[float], rival: str, theirs: Sequence[float]) -> Row:
    rival_p50 = quantile(theirs, 0.5) if theirs else None
    p50 = quantile(ours, 0.5)
    return Row(
        name=name,
        unit=unit,
        n=len(ours),
        p50=p50,
        p95=quantile(ours, 0.95),
        p99=quantile(ours, 0.99),
        rival=rival,
        rival_p50=rival_p50,
        ratio=p50 / rival_p50 if rival_p50 else None,
    )


def quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def machine() -> dict[str, object]:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        "",
    )
    return {
        "cpus": os.cpu_count(),
        "cpu": model,
        "memory_bytes": memory,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_1m": os.getloadavg()[0],
    }


def commit() -> str:
    found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False)
    return found.stdout.strip()


def write(rows: Sequence[Row], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    body = {"machine": machine(), "commit": commit(), "rows": [asdict(one) for one in rows]}
    path.write_text(json.dumps(body, indent=1) + "\n")


def show(rows: Sequence[Row]) -> None:
    table = Table(title="Dovecote, beside its rivals in the same run")
    for head in ("figure", "unit", "n", "p50", "p95", "p99", "rival", "rival p50", "ours / rival"):
        table.add_column(head, justify="left" if head in ("figure", "unit", "rival") else "right")
    for one in rows:
        table.add_row(
            one.name,
            one.unit,
            str(one.n),
            *(_number(value) for value in (one.p50, one.p95, one.p99)),
            one.rival,
            _number(one.rival_p50),
            _ratio(one.ratio),
        )
    Console(width=140).print(table)


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.2f}"


def _ratio(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"
