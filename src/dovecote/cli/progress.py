"""How far something is that takes long: a bar on a terminal, a line a step elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from dovecote.cli.show import err

if TYPE_CHECKING:
    from dovecote.sdk import Printed, Step


class Following:
    """Entered around what takes long, so that the bar is gone afterwards."""

    def __init__(self) -> None:
        columns = (
            *(SpinnerColumn(), TextColumn("{task.description}"), BarColumn()),
            *(DownloadColumn(), TimeElapsedColumn()),
        )
        self._bars = Progress(*columns, console=err, transient=True, disable=not err.is_terminal)
        self._bar = self._bars.add_task("asking", total=None)
        self._before = ""

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def step(self, what: str, done: int, total: int) -> None:
        """`total` 0 is not known."""
        self._bars.update(self._bar, description=what, completed=done, total=total or None)
        if not err.is_terminal and what != self._before:
            err.out(what, highlight=False)
        self._before = what

    def event(self, event: Step | Printed) -> None:
        from dovecote.sdk import Printed

        if isinstance(event, Printed):
            self._bars.console.out(event.text, end="", highlight=False)
        else:
            self.step(event.what, event.done, event.total)
