"""What rounds came to, for a person."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from stress.run import Outcome


def line(outcome: Outcome) -> str:
    lost = max((point.loss for point in outcome.points), default=0.0)
    end = "FAULT" if outcome.fault else f"lost {lost:.2f} s, back in {outcome.back:.1f} s"
    installs = f", {outcome.installs} installs" if outcome.installs else ""
    return f"round {outcome.number:4} {outcome.kind:18} {outcome.steps:5} steps{installs}; {end}"


def table(outcomes: Sequence[Outcome], *, seed: int, seconds: float) -> str:
    """By kind: how many rounds, the worst loss, the longest way back, faults."""
    kinds = list(dict.fromkeys(outcome.kind for outcome in outcomes))
    rows: list[tuple[str, ...]] = [("kind", "rounds", "sessions", "steps", "worst loss", "longest back", "faults")]
    rows += [_row(kind, [each for each in outcomes if each.kind == kind]) for kind in sorted(kinds)]
    rows.append(_row("all", outcomes))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    installs = sum(outcome.installs for outcome in outcomes)
    failed = sum(outcome.failed_installs for outcome in outcomes)
    lines.append(f"seed {seed}, {seconds / 60:.1f} minutes, {installs} npm installs, {failed} that npm itself failed")
    return "\n".join(lines)


def _row(kind: str, outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    points = [point for outcome in outcomes for point in outcome.points]
    return (
        kind,
        str(len(outcomes)),
        str(len(points)),
        str(sum(outcome.steps for outcome in outcomes)),
        f"{_most(point.loss for point in points):.2f} s",
        f"{_most(outcome.back for outcome in outcomes):.1f} s",
        str(sum(bool(outcome.fault) for outcome in outcomes)),
    )


def _most(values: Iterable[float]) -> float:
    return max(values, default=0.0)
