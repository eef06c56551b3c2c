"""`dovecote template`: made with progress, listed, removed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dovecote.cli.progress import Following
from dovecote.cli.show import age, say, table

if TYPE_CHECKING:
    from dovecote.sdk import TemplateEvent

commands = typer.Typer(help="Templates: the files that instances start with.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="TEMPLATE")]
NewName = Annotated[str, typer.Option("--name", "-n", help="The template's name; one that is there is made anew.")]
Port = Annotated[int | None, typer.Option(help="What the image's command opens, where the image does not say.")]


@commands.command("import")
def import_(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="host/name:tag in a registry, or an archive's file.")],
    name: NewName,
    port: Port = None,
) -> None:
    """Make a template of an image and show how far it is."""
    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        if Path(image).is_file():
            follow(client.templates.upload(image, name=name, port=port))
        else:
            follow(client.templates.pull(image, name=name, port=port))


@commands.command("build")
def build_template(
    directory: Annotated[
        Path, typer.Argument(metavar="DIRECTORY", help="With a Dovecotefile.", exists=True, file_okay=False)
    ],
    name: NewName,
) -> None:
    """Make a template of a Dovecotefile and show what its commands print."""
    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        follow(client.templates.build(directory, name=name))


@commands.command()
def prepare(name: Annotated[str, typer.Argument(metavar="TEMPLATE", help="One of the installation's own.")]) -> None:
    """Make `code` now, and not when it is first used."""
    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        follow(client.templates.prepare(name))


@commands.command("ls")
def list_templates() -> None:
    """List templates."""
    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        rows = [
            (t.name, t.state, t.source, t.user, size(t.total_bytes), age(t.updated_at), t.reason[:80])
            for t in client.templates.list()
        ]
    table(("name", "state", "from", "user", "size", "age", ""), rows)


@commands.command("rm")
def remove_template(name: Name) -> None:
    """Remove a template; functions that start from it keep its files."""
    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        client.templates.delete(name)


def follow(events: Iterable[TemplateEvent]) -> None:
    """A bar on a terminal, a line a step elsewhere; at last what became of it."""
    from dovecote.sdk import Template

    with Following() as following:
        for event in events:
            if isinstance(event, Template):
                amount = f"{event.files} files, {size(event.total_bytes)}, " if event.files else ""
                say(f"{event.name} is {event.state}: {amount}as {event.user}")
            else:
                following.event(event)


def size(count: int) -> str:
    """`1.5 GB`."""
    amount = float(count)
    for unit in ("B", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:.3g} GB"
