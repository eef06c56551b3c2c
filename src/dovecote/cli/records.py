"""`dovecote function`, `chat` and `key`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from dovecote.cli.show import age, say, table

functions = typer.Typer(help="Functions: what sessions and apps run.", no_args_is_help=True)
chats = typer.Typer(help="Chats with an agent.", no_args_is_help=True)
keys = typer.Typer(help="API keys.", no_args_is_help=True)


@functions.command("ls")
def list_functions() -> None:
    """List functions."""
    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        rows = [(f.name, f.address, f.affinity_header, age(f.created_at)) for f in client.functions.list()]
    table(("name", "address", "session's header", "age"), rows)


@functions.command("create")
def create_function(
    name: Annotated[str, typer.Argument(help="Its host name.")],
    template: Annotated[str, typer.Option(help="Files that its instances start with.")] = "base",
    spec: Annotated[str, typer.Option(help="nano, small, medium or large.")] = "small",
    level: Annotated[str | None, typer.Option(help="Isolation level.")] = None,
    internet: Annotated[bool, typer.Option(help="Whether its instances reach the internet.")] = True,
    header: Annotated[str, typer.Option(help="The header that names a request's session.")] = "x-dovecote-session",
    start: Annotated[str | None, typer.Option(help="Shell command that starts its server.")] = None,
    port: Annotated[int | None, typer.Option(help="The port that its server opens.")] = None,
    leave_out: Annotated[list[str] | None, typer.Option(help="Pattern of what sessions do not save.")] = None,
    keep: Annotated[list[str] | None, typer.Option(help="Pattern of what they save all the same.")] = None,
    reinstall: Annotated[str | None, typer.Option(help="Command that brings back what was left out.")] = None,
) -> None:
    """Define a function and print its address."""
    from dovecote.sdk import Dovecote, Start

    if (start is None) != (port is None):
        raise typer.BadParameter("--start and --port go together")
    with Dovecote() as client:
        made = client.functions.create(
            name,
            template=template,
            spec=spec,
            level=level,
            internet=internet,
            affinity_header=header,
            start=Start(start, port) if start is not None and port is not None else None,
            leave_out=leave_out or (),
            keep=keep or (),
            reinstall=reinstall,
        )
        print(made.address)


@chats.command("ls")
def list_chats(user: Annotated[str | None, typer.Option(help="Only those of this user.")] = None) -> None:
    """List chats."""
    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        rows = [(c.id, c.title, c.session_id, age(c.created_at)) for c in client.chats.list(user=user)]
    table(("id", "title", "session", "age"), rows)


@chats.command("show")
def show_chat(chat_id: Annotated[str, typer.Argument(metavar="CHAT", help="cha_...")]) -> None:
    """Show what was said and done in a chat."""
    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        for turn in client.chats.turns(chat_id):
            say(f"turn {turn.number}, {age(turn.created_at)} ago", style="bold")
            for message in turn.messages:
                for line in _said(message):
                    say(f"  {line}")


ChatId = Annotated[str, typer.Argument(metavar="CHAT", help="cha_...")]
TurnNumber = Annotated[int, typer.Argument(metavar="TURN", help="Its number, as `show` has it.", min=1)]


@chats.command("rewind")
def rewind_chat(chat_id: ChatId, turn: TurnNumber) -> None:
    """Go back to the end of a turn, files and messages; what runs in the session ends."""
    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        say(f"as it was at the end of turn {client.chats.rewind(chat_id, turn).number}")


@chats.command("fork")
def fork_chat(
    chat_id: ChatId,
    turn: TurnNumber,
    key: Annotated[str | None, typer.Option(help="Your own name for the new session.")] = None,
) -> None:
    """Open a new chat and session as they were at the end of a turn, and print their ids."""
    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        forked = client.chats.fork(chat_id, turn, key=key)
    print(forked.id, forked.session_id)


def _said(message: dict[str, Any]) -> list[str]:
    """Lines for the parts of a message, in the shape that the agent stores."""
    lines = []
    for part in message.get("parts", []):
        kind, content = part.get("part_kind"), part.get("content")
        if kind == "user-prompt":
            lines.append(f"user: {content}")
        elif kind == "text":
            lines.append(f"agent: {content}")
        elif kind == "tool-call":
            lines.append(f"  {part.get('tool_name')} {str(part.get('args'))[:120]}")
        elif kind == "tool-return":
            lines.append(f"    -> {str(content)[:120]}")
    return lines


@keys.command("create")
def create_key(name: Annotated[str, typer.Argument(help="For you, to tell it from others.")]) -> None:
    """Make an API key; its secret is printed this once."""
    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        print(client.keys.create(name).secret)


@keys.command("ls")
def list_keys() -> None:
    """List API keys."""
    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        rows = [(k.id, k.name, age(k.created_at), "revoked" if k.revoked_at else "") for k in client.keys.list()]
    table(("id", "name", "age", ""), rows)


@keys.command("rm")
def revoke_key(key_id: Annotated[str, typer.Argument(metavar="KEY", help="key_...")]) -> None:
    """Revoke an API key."""
    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        client.keys.revoke(key_id)
