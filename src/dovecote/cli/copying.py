"""`dovecote sandbox cp`: files and directories between here and a session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from dovecote.cli.show import err, problem


def cp(
    source: Annotated[str, typer.Argument(help="A local path, or SESSION:PATH.")],
    target: Annotated[str, typer.Argument(help="SESSION:PATH, or a local path.")],
    user: Annotated[str | None, typer.Option(help="Act as, inside.")] = None,
) -> None:
    """Copy files and directories into a session or out of it, whatever their size."""
    from dovecote.sdk import Dovecote

    inside_source, inside_target = place(source), place(target)
    if (inside_source is None) == (inside_target is None):
        problem("one of the two is SESSION:PATH, the other a local path", "invalid")
        raise typer.Exit(1)
    with Dovecote() as client, _bar(source) as progress:
        if inside_target is not None:
            session_id, path = inside_target
            client.sessions.get(session_id).upload(Path(source), path, user=user, progress=progress)
        elif inside_source is not None:
            session_id, path = inside_source
            client.sessions.get(session_id).download(path, Path(target), user=user, progress=progress)


def place(text: str) -> tuple[str, str] | None:
    """`ses_...:path` -> session and path; None for a local path."""
    session_id, colon, path = text.partition(":")
    return (session_id, path) if colon and session_id.startswith("ses_") else None


@contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar on a terminal, nothing elsewhere."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bars:
        bar = bars.add_task(what[-40:], total=None)
        yield lambda done, total: bars.update(bar, completed=done, total=total)
