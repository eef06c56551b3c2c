"""`dovecote sandbox code` and `contexts`: code that keeps its state inside a session."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dovecote.cli.show import age, problem, say, table

if TYPE_CHECKING:
    from dovecote.sdk import Result

SessionId = Annotated[str, typer.Argument(metavar="SESSION", help="ses_...")]
ENDINGS = {"image/png": "png", "image/jpeg": "jpg", "application/pdf": "pdf", "image/svg+xml": "svg"}


def code(
    session_id: SessionId,
    text: Annotated[str | None, typer.Argument(metavar="CODE", help="Read from the input if left out.")] = None,
    language: Annotated[str, typer.Option("--language", "-l", help="In its default context.")] = "python",
    context: Annotated[str | None, typer.Option(help="ctx_..., in place of a language.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds until it is interrupted.")] = 300,
    save: Annotated[Path | None, typer.Option(help="Directory for pictures that are shown.", file_okay=False)] = None,
) -> None:
    """Run code that finds what was run before, and show what it says; exit code 1 if it fails."""
    from dovecote.sdk import Dovecote, Ended, Fault, Result, Said, Truncated

    text = sys.stdin.read() if text is None else text
    status, pictures = "lost", 0
    with Dovecote() as client:
        session = client.sessions.get(session_id)
        events = (
            session.contexts.get(context).stream(text, timeout=timeout)
            if context
            else session.stream_code(text, language=language, timeout=timeout)
        )
        for event in events:
            if isinstance(event, Said):
                stream = sys.stderr if event.stream == "stderr" else sys.stdout
                stream.write(event.text)
                stream.flush()
            elif isinstance(event, Result):
                pictures += _show(event, save, pictures)
            elif isinstance(event, Fault):
                sys.stderr.write(("\n".join(event.traceback) or f"{event.name}: {event.value}") + "\n")
            elif isinstance(event, Truncated):
                problem("there is more output than was kept", "truncated")
            elif isinstance(event, Ended):
                status = event.status
    if status == "timed_out":
        problem(f"it was interrupted after {timeout:g} s", "code_timeout", "--timeout gives it longer")
    raise typer.Exit(int(status != "ok"))


def contexts(session_id: SessionId) -> None:
    """List the code contexts that run."""
    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        views = [each.view for each in client.sessions.get(session_id).contexts.list()]
    rows = [(v.id, v.language, "yes" if v.is_default else "", v.cwd, age(v.started_at)) for v in views]
    table(("id", "language", "default", "directory", "age"), rows)


def _show(result: Result, directory: Path | None, number: int) -> int:
    """Its text, and a picture as a file; answers how many files were written."""
    for mime, ending in ENDINGS.items():
        if directory is not None and mime in result.data:
            directory.mkdir(parents=True, exist_ok=True)
            path = directory / f"{number + 1:03}.{ending}"
            raw = {"png": result.png, "jpg": result.jpeg, "pdf": result.pdf}.get(ending)
            path.write_bytes(raw if raw is not None else (result.svg or "").encode())
            say(str(path))
            return 1
    if result.text is not None:
        say(result.text)
    return 0
