"""`dovecote chat` and `key`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from dovecote.cli.show import age, say, table

chats = typer.Typer(help="Chats with an agent.", no_args_is_help=True)
keys = typer.Typer(help="API keys.", no_args_is_help=True)


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
