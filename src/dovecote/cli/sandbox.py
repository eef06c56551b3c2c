"""`dovecote sandbox`: what happens inside a session."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from dovecote.cli.show import problem, table

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from dovecote.sdk import Event, Session

commands = typer.Typer(help="Inside a session: commands, files, ports.", no_args_is_help=True)

SessionId = Annotated[str, typer.Argument(metavar="SESSION", help="ses_...")]
PIECE = 1 << 20
SILENCE = 0.5  # seconds without output after which `logs` takes it that it has seen all there is
NO_CODE = 125  # exit code where the command ended without one of its own, as shells and container tools have it


@commands.command("exec", context_settings={"allow_interspersed_args": False})
def execute(
    session_id: SessionId,
    words: Annotated[list[str], typer.Argument(metavar="COMMAND...", help="One word is a line for the shell.")],
    cwd: Annotated[str | None, typer.Option(help="Directory; the user's home if left out.")] = None,
    user: Annotated[str | None, typer.Option(help="Act as.")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds until it is killed.")] = None,
) -> None:
    """Run a command and show its output as it comes; exits with its exit code."""
    from dovecote.sdk import Dovecote, Exited

    words = words[1:] if words[0] == "--" else words
    command = words[0] if len(words) == 1 else words
    with Dovecote() as client:
        session = client.sessions.get(session_id)
        code = NO_CODE
        for event in session.stream(command, cwd=cwd, user=user, timeout=timeout):
            _show(event)
            if isinstance(event, Exited):
                code = _code(event)
    raise typer.Exit(code)


@commands.command()
def cp(
    source: Annotated[str, typer.Argument(help="A local path, or SESSION:PATH.")],
    target: Annotated[str, typer.Argument(help="SESSION:PATH, or a local path.")],
) -> None:
    """Copy a file into a session or out of it, whatever its size."""
    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        if (there := _place(target)) and not _place(source):
            local, inside = Path(source), there[1]
            if inside.endswith("/") or not inside:
                inside += local.name
            with local.open("rb") as file:
                client.sessions.get(there[0]).files.write(inside, _pieces(file), mode=local.stat().st_mode & 0o777)
        elif (there := _place(source)) and not _place(target):
            _download(client.sessions.get(there[0]), there[1], Path(target))
        else:
            problem("one of the two is SESSION:PATH, the other a local path", "invalid")
            raise typer.Exit(1)


@commands.command()
def ls(session_id: SessionId, path: Annotated[str, typer.Argument()] = ".") -> None:
    """List a directory."""
    from stat import filemode

    from dovecote.sdk import Dovecote

    kinds = {"directory": 0o040000, "link": 0o120000, "file": 0o100000}
    with Dovecote() as client:
        found = client.sessions.get(session_id).files.list(path)
    rows = [
        (filemode(kinds.get(f.kind, 0) | f.mode), f.uid, f.size, f.path) for f in sorted(found, key=lambda f: f.path)
    ]
    table(("mode", "uid", "bytes", "path"), rows)


@commands.command()
def ports(session_id: SessionId) -> None:
    """List the ports that something listens on."""
    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        found = client.sessions.get(session_id).ports()
    table(
        ("port", "address", "note"),
        [(p.port, p.address, "on 127.0.0.1 only: not reachable" if p.loopback_only else "") for p in found],
    )


@commands.command()
def logs(
    session_id: SessionId,
    number: Annotated[int | None, typer.Argument(help="A command's number; the started server's if left out.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until it ends.")] = False,
) -> None:
    """Show what a command printed, by default the session's started server."""
    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        if number is None:
            running = [each.number for each in client.sessions.get(session_id).commands() if each.tag == "start"]
            if not running:
                problem("no started server there", "no_start", "name a command's number, or record a start")
                raise typer.Exit(1)
            number = max(running)
    asyncio.run(_logs(session_id, number, follow))


async def _logs(session_id: str, number: int, follow: bool) -> None:
    from dovecote.sdk import AsyncDovecote

    async with AsyncDovecote() as client:
        session = await client.sessions.get(session_id)
        events: AsyncIterator[Event] = session.attach(number)
        while True:
            try:
                event = await asyncio.wait_for(anext(events, None), None if follow else SILENCE)
            except TimeoutError:
                return
            if event is None:
                return
            _show(event)


def _show(event: Event) -> None:
    from dovecote.sdk import Dropped, Exited, Output

    if isinstance(event, Output):
        stream = sys.stderr if event.stream == "stderr" else sys.stdout
        stream.write(event.data)
        stream.flush()
    elif isinstance(event, Dropped):
        problem(f"{event.bytes} bytes of output were lost: it printed faster than it was read")
    elif isinstance(event, Exited) and event.timed_out:
        problem("it was killed: its time was over", "command_timeout")


def _code(event: object) -> int:
    exit_code, signal = getattr(event, "exit_code", None), getattr(event, "signal", None)
    if exit_code is not None:
        return int(exit_code)
    return 128 + int(signal) if signal else NO_CODE


def _place(text: str) -> tuple[str, str] | None:
    session_id, colon, path = text.partition(":")
    return (session_id, path) if colon and session_id.startswith("ses_") else None


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    while piece := file.read(PIECE):
        yield piece


def _download(session: Session, inside: str, target: Path) -> None:
    """Through a file beside the target, so that a broken copy is not taken for a whole one."""
    if target.is_dir():
        target /= inside.rsplit("/", 1)[-1]
    partial = target.with_name(target.name + ".partial")
    try:
        with partial.open("wb") as file:
            for piece in session.files.download(inside):
                file.write(piece)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
