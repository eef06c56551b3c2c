"""`dovecote sandbox`: sandboxes, and what happens inside a session."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated

import typer

from dovecote.cli import keyboard, session
from dovecote.cli.copying import cp, place
from dovecote.cli.execute import SessionId, execute, pairs
from dovecote.cli.following import follow
from dovecote.cli.metrics import metrics
from dovecote.cli.network import network
from dovecote.cli.port import port
from dovecote.cli.shell import shell
from dovecote.cli.show import age, problem, table

if TYPE_CHECKING:
    from dovecote.sdk import Dovecote

commands = typer.Typer(help="Sandboxes, and commands, files and ports inside a session.", no_args_is_help=True)

Metadata = Annotated[list[str] | None, typer.Option(help="NAME=VALUE, your own words.")]


@commands.command()
def create(
    template: Annotated[str | None, typer.Option(help="What it starts from, see `dovecote template ls`.")] = None,
    spec: Annotated[str | None, typer.Option(help="Its size: nano, small, medium or large.")] = None,
    level: Annotated[str | None, typer.Option(help="Isolation level.")] = None,
    internet: Annotated[bool, typer.Option(help="Whether it may reach the internet.")] = True,
    metadata: Metadata = None,
    env: Annotated[list[str] | None, typer.Option("--env", "-e", help="NAME=VALUE for all its commands.")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds until it ends, unless moved.")] = None,
    at_timeout: Annotated[str | None, typer.Option(help="end, pause, or park: paused with its files only.")] = None,
    snapshot: Annotated[str | None, typer.Option(help="snp_...: begin with its files.")] = None,
    mount: Annotated[list[str] | None, typer.Option(help="A volume into it: VOLUME:AT or VOLUME/PATH:AT.")] = None,
) -> None:
    """Make a sandbox and print its id."""
    from dovecote.cli.volume import parse_mount
    from dovecote.sdk import Dovecote, Network

    with Dovecote() as client:
        made = client.sessions.create(
            template=template,
            spec=spec,
            level=level,
            network=None if internet else Network(internet=False),
            metadata=pairs(metadata, "NAME=VALUE"),
            env=pairs(env, "NAME=VALUE"),
            timeout=timeout,
            at_timeout=at_timeout,
            snapshot=snapshot,
            mounts=[parse_mount(text) for text in mount or ()],
        )
        print(made.id)


@commands.command()
def ls(
    where: Annotated[str | None, typer.Argument(metavar="SESSION:PATH", help="A directory; sandboxes if none.")] = None,
    metadata: Metadata = None,
    state: Annotated[list[str] | None, typer.Option(help="Only those in one of these states.")] = None,
) -> None:
    """List sandboxes, or a directory of one."""
    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        if where is None:
            _list(client, pairs(metadata, "NAME=VALUE"), state)
            return
        session_id, path = place(where) or (where, "")
        _list_directory(client, session_id, path or ".")


def _list(client: Dovecote, metadata: dict[str, str], state: list[str] | None) -> None:
    found = client.sessions.list(function="sandbox", metadata=metadata, state=state or None)
    table(
        ("id", "key", "state", "metadata", "age", "last active", "address"),
        [
            (
                each.id,
                each.key,
                "paused" if each.view.is_paused else each.state,
                " ".join(f"{name}={text}" for name, text in sorted(each.view.metadata.items())),
                age(each.view.created_at),
                age(each.view.last_active_at),
                each.view.address,
            )
            for each in found
        ],
    )


def _list_directory(client: Dovecote, session_id: str, path: str) -> None:
    from stat import filemode

    kinds = {"directory": 0o040000, "link": 0o120000, "file": 0o100000}
    found = client.sessions.get(session_id).files.list(path)
    table(
        ("mode", "uid", "bytes", "path"),
        [
            (filemode(kinds.get(file.kind, 0) | file.mode), file.uid, file.size, file.path)
            for file in sorted(found, key=lambda file: file.path)
        ],
    )


@commands.command()
def logs(
    session_id: SessionId,
    number: Annotated[int | None, typer.Argument(help="A command's number; the started server's if left out.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until it ends.")] = False,
) -> None:
    """Show what a command printed, by default the session's started server."""
    asyncio.run(_logs(session_id, number, goes_on=follow))


async def _logs(session_id: str, number: int | None, *, goes_on: bool) -> None:
    from dovecote.sdk import AsyncDovecote, Dropped, RawOutput

    async with AsyncDovecote() as client:
        its = await client.sessions.get(session_id)
        known = {each.number: each for each in await its.commands()}
        started = [each.number for each in known.values() if each.tag == "start"]
        wanted = number or max(started, default=0)
        if wanted not in known:
            if number is not None:
                problem(f"no command {number} there", "no_such_command", "it may have been forgotten after it ended")
            else:
                problem("no started server there", "no_start", "name a command's number, or record a start")
            raise typer.Exit(1)
        printed = known[wanted].output_bytes
        if not printed and not goes_on:
            return
        async with aclosing(follow(its, its.command(wanted).raw_output(), wanted)) as events:
            async for event in events:
                if isinstance(event, RawOutput):
                    keyboard.show(event.data, event.stream)
                    if not goes_on and event.offset + len(event.data) >= printed:
                        return
                elif isinstance(event, Dropped):
                    problem(f"the first {event.bytes} bytes are not kept any more")


commands.command("exec", context_settings={"allow_interspersed_args": False})(execute)
commands.command()(shell)
commands.command()(cp)
commands.command()(port)
commands.command()(network)
commands.command()(metrics)
for act in (session.snapshot, session.fork, session.rm):
    commands.command()(act)
