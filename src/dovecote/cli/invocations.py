"""`dovecote invocation`: asynchronous calls of functions."""

from __future__ import annotations

from itertools import islice
from typing import Annotated

import typer

from dovecote.cli.options import body_of, pair
from dovecote.cli.show import age, say, table, write_bytes

commands = typer.Typer(help="Asynchronous calls of functions.", no_args_is_help=True)

InvocationId = Annotated[str, typer.Argument(metavar="INVOCATION", help="inv_...")]


@commands.command()
def create(
    function: Annotated[str, typer.Argument(metavar="FUNCTION")],
    data: Annotated[str, typer.Option(help="The body; `@file` is what a file has, `@-` what comes in.")] = "",
    path: Annotated[str, typer.Option(help="With the query.")] = "/",
    method: Annotated[str, typer.Option()] = "POST",
    header: Annotated[list[str] | None, typer.Option(help="`name: value`, as often as needed.")] = None,
    session: Annotated[str | None, typer.Option(help="Key of its session.")] = None,
    user: Annotated[str, typer.Option(help="Your own name for its user.")] = "default",
    delay: Annotated[float, typer.Option(help="Seconds until it is made.")] = 0.0,
    timeout: Annotated[float, typer.Option(help="Seconds that one attempt may take.")] = 600.0,
    idempotency_key: Annotated[str | None, typer.Option(help="Again it gives the same call.")] = None,
) -> None:
    """Call a function, wait for nothing, and print the call's id."""
    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        made = client.invocations.create(
            function,
            body_of(data) or b"",
            method=method,
            path=path,
            headers=dict(pair(each, ":") for each in header or ()),
            session=session,
            user=user,
            delay=delay,
            timeout=timeout,
            idempotency_key=idempotency_key,
        )
        print(made.id)


@commands.command()
def ls(
    function: Annotated[str | None, typer.Option(help="Only those of this function.")] = None,
    user: Annotated[str | None, typer.Option(help="Only those of this user.")] = None,
    session: Annotated[str | None, typer.Option(help="Only those of the session with this key.")] = None,
    state: Annotated[list[str] | None, typer.Option(help="Only those that are so; as often as needed.")] = None,
    most: Annotated[int, typer.Option(help="How many to show, the newest first.", min=1)] = 100,
) -> None:
    """List asynchronous calls, the newest first."""
    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        found = client.invocations.each(function=function, user=user, session=session, state=state, newest_first=True)
        rows = [
            (c.id, c.function, c.session, c.state, c.attempts, c.status, c.delivery, age(c.created_at))
            for c in islice(found, most)
        ]
    table(("id", "function", "session", "state", "attempts", "status", "told", "age"), rows)


@commands.command()
def show(
    invocation_id: InvocationId,
    body: Annotated[bool, typer.Option("--body", help="Print what the function answered and nothing else.")] = False,
) -> None:
    """Show one, its request and what came of it."""
    from dataclasses import asdict

    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        found = client.invocations.get(invocation_id)
    if body:
        write_bytes(found.response_body)
        return
    for name, value in asdict(found).items():
        if name not in ("body_base64", "response"):
            say(f"{name:16} {'-' if value in (None, '', {}) else value}")
    if found.response is not None:
        say(f"{'response':16} {found.response_body[:2000].decode('utf-8', 'replace')}")


@commands.command()
def cancel(invocation_id: InvocationId) -> None:
    """Make it no more; an attempt under way is cut off."""
    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        print(client.invocations.cancel(invocation_id).state)


@commands.command()
def replay(invocation_id: InvocationId) -> None:
    """Make one that has ended once more and print the new call's id."""
    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        print(client.invocations.replay(invocation_id).id)


@commands.command()
def secret(
    rotate: Annotated[bool, typer.Option("--rotate", help="Make a new one.")] = False,
    overlap: Annotated[
        float | None, typer.Option(help="Seconds that the one before it signs too; a day if not said.", min=0)
    ] = None,
) -> None:
    """Print the secret that signs your webhooks."""
    from dovecote.sdk import Dovecote

    if overlap is not None and not rotate:
        raise typer.BadParameter("--overlap goes with --rotate")
    with Dovecote() as client:
        print(client.invocations.webhook_secret(rotate=rotate, overlap=overlap))
