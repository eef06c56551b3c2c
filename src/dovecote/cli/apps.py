"""`dovecote app`: published apps."""

from __future__ import annotations

from typing import Annotated

import typer

from dovecote.cli.activity import say_hooks
from dovecote.cli.show import age, say, table

commands = typer.Typer(help="Published apps.", no_args_is_help=True)

Name = Annotated[str, typer.Argument()]


@commands.command()
def publish(
    session_id: Annotated[str, typer.Argument(metavar="SESSION")],
    name: Annotated[str | None, typer.Option(help="Its host name; one is made if left out.")] = None,
    minimum: Annotated[int | None, typer.Option(help="Instances kept while nobody visits [0].")] = None,
    maximum: Annotated[int | None, typer.Option(help="Most instances at once [5].")] = None,
    target_concurrency: Annotated[int | None, typer.Option(help="Requests at once for one instance [10].")] = None,
    idle_after: Annotated[float | None, typer.Option(help="Seconds without a visitor until it rests [60].")] = None,
) -> None:
    """Turn a session's project into an app and print its address."""
    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        app = client.apps.publish(
            session_id,
            name=name,
            minimum=minimum,
            maximum=maximum,
            target_concurrency=target_concurrency,
            idle_after=idle_after,
        )
        print(app.address)


@commands.command()
def ls() -> None:
    """List apps and how many instances each has now."""
    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        rows = [
            (
                each.name,
                each.address,
                len(client.apps.instances(each.name)),
                f"{each.minimum}-{each.maximum}",
                age(each.created_at),
            )
            for each in client.apps.list()
        ]
    table(("name", "address", "instances", "limits", "age"), rows)


@commands.command()
def get(name: Name) -> None:
    """Show all that is known of one app."""
    from dataclasses import asdict

    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        app, instances, hooks = client.apps.get(name), client.apps.instances(name), client.apps.hooks(name)
    for field, value in asdict(app).items():
        say(f"{field:20} {value}")
    for each in instances:
        say(f"{'instance':20} {each.instance_id} {'ready' if each.is_ready else 'starting'}")
    say_hooks(hooks)


@commands.command()
def rm(name: Name) -> None:
    """Unpublish an app."""
    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        client.apps.unpublish(name)
