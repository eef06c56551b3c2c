"""`dovecote function`: servers of a user's own, deployed, shown, changed, called."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dovecote.cli.activity import say_hooks
from dovecote.cli.deploying import Wanted, deploy, read_project
from dovecote.cli.options import Level, Port, StartCommand, body_of, pair, with_options
from dovecote.cli.show import age, err, say, table

if TYPE_CHECKING:
    from dovecote.sdk import Function

commands = typer.Typer(help="Functions: servers of your own, and what sessions and apps run.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="FUNCTION")]


@commands.command("deploy")
@with_options
def deploy_function(
    directory: Annotated[
        Path | None, typer.Argument(metavar="DIRECTORY", help="Its files.", exists=True, file_okay=False)
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", "-n", help="Its host name; one that is there is changed.")
    ] = None,
    image: Annotated[str | None, typer.Option(help="An image in a registry to start from, host/name:tag.")] = None,
    build: Annotated[str | None, typer.Option(help="Command that runs once, in the files, inside.")] = None,
    wait: Annotated[bool, typer.Option(help="Wait until it answers.")] = True,
    *,
    wanted: Wanted,
) -> None:
    """Run a directory or an image as a function, and print its addresses. Reads `dovecote.toml` in the directory."""
    from dovecote.sdk import Dovecote

    whole = read_project(directory).over(**vars(wanted)).over(name=name, image=image, build=build)
    with Dovecote() as client:
        addresses(deploy(client, directory, whole, wait=wait))


@commands.command("create")
def create_function(
    name: Annotated[str, typer.Argument(help="Its host name.")],
    template: Annotated[str, typer.Option(help="Files that its instances start with.")] = "base",
    spec: Annotated[str, typer.Option(help="nano, small, medium or large.")] = "small",
    level: Level = None,
    internet: Annotated[bool, typer.Option(help="Whether its instances reach the internet.")] = True,
    header: Annotated[str, typer.Option(help="The header that names a request's session.")] = "x-dovecote-session",
    start: StartCommand = None,
    port: Port = None,
    leave_out: Annotated[list[str] | None, typer.Option(help="Pattern of what sessions do not save.")] = None,
    keep: Annotated[list[str] | None, typer.Option(help="Pattern of what they save all the same.")] = None,
    reinstall: Annotated[str | None, typer.Option(help="Command that brings back what was left out.")] = None,
) -> None:
    """Define a function and print its address."""
    from dovecote.sdk import Dovecote, Network, Rules, Start

    if (start is None) != (port is None):
        raise typer.BadParameter("--start and --port go together")
    with Dovecote() as client:
        made = client.functions.create(
            name,
            template=template,
            spec=spec,
            level=level,
            network=Network(internet=internet),
            affinity_header=header,
            start=Start(start, port) if start is not None and port is not None else None,
            rules=Rules(leave_out or [], keep or [], reinstall),
        )
        print(made.address)


@commands.command("ls")
def list_functions() -> None:
    """List functions."""
    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        rows = [
            (f.name, f.address, ",".join(f.affinity.modes), f.revision.number, f.public_address, age(f.created_at))
            for f in client.functions.list()
        ]
    table(("name", "address", "affinity", "revision", "public", "age"), rows)


@commands.command("show")
def show_function(name: Name) -> None:
    """Show all that is known of one, as JSON."""
    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        print(json.dumps(asdict(client.functions.get(name)), indent=2, default=str))


@commands.command("update")
@with_options
def update_function(
    name: Name,
    *,
    wanted: Wanted,
) -> None:
    """Change what is named and leave the rest; `--env` adds variables."""
    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        addresses(client.functions.update(name, **wanted.changes(client.functions.get(name))))


@commands.command("revisions")
def list_revisions(name: Name) -> None:
    """List what it runs and ran, the newest first."""
    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        rows = [
            (r.number, "current" if r.is_current else "", r.template, r.template_digest[:12], r.spec, age(r.created_at))
            for r in client.functions.revisions(name)
        ]
    table(("number", "", "template", "files", "spec", "age"), rows)


@commands.command("hooks")
def list_hooks(name: Name) -> None:
    """List the last success and the last failure of each of its hooks, since the server began."""
    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        say_hooks(client.functions.hooks(name))


@commands.command("rollback")
def rollback_function(name: Name, revision: Annotated[int, typer.Argument(metavar="REVISION", min=1)]) -> None:
    """Let new sessions run another of its revisions."""
    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        say(f"{name} runs revision {client.functions.rollback(name, revision).revision.number}")


@commands.command("rm")
def remove_function(name: Name) -> None:
    """Remove a function, and end its sessions and instances."""
    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        client.functions.delete(name)


@commands.command("call")
def call_function(
    name: Name,
    path: Annotated[str, typer.Argument(metavar="PATH")] = "/",
    session: Annotated[str | None, typer.Option(help="Your own name for the session.")] = None,
    user: Annotated[str | None, typer.Option(help="Whose session it is.")] = None,
    method: Annotated[str | None, typer.Option("--method", "-X", help="GET, or POST with data, if not named.")] = None,
    data: Annotated[str | None, typer.Option("--data", "-d", help="The body, or @FILE, or @- for our input.")] = None,
    header: Annotated[list[str] | None, typer.Option("--header", "-H", help="Name: value; may be repeated.")] = None,
) -> None:
    """Send one request to a function and print the answer's body; exit code 1 if its status is an error's."""
    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        answer = client.functions.call(
            name,
            path,
            method=method or ("GET" if data is None else "POST"),
            session=session,
            user=user,
            content=body_of(data),
            headers=dict(pair(each, ":") for each in header or ()),
        )
    sys.stdout.buffer.write(answer.content)
    sys.stdout.buffer.flush()
    if answer.status_code >= 400:
        err.print(f"status {answer.status_code}")
        raise typer.Exit(1)


def addresses(function: Function) -> None:
    """Where it is called and how, with the key as a variable: it is not for a screen."""
    print(function.address)
    if function.public_address:
        print(function.public_address)
    session = f"-H '{function.affinity.header}: me' " if "header" in function.affinity.modes else ""
    print(f'curl -H "x-dovecote-key: $DOVECOTE_API_KEY" {session}{function.path_address}')
