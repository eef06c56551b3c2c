"""All commands of `dovecote`, and what a failure looks like."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from dovecote.cli import (
    activity,
    apps,
    code,
    env,
    functions,
    invocations,
    records,
    sandbox,
    session,
    storage,
    template,
    tenant,
    up,
    volume,
)
from dovecote.cli.show import problem, table

app = typer.Typer(
    name="dovecote",
    help="The open, self-hosted serverless home for chat coding agents.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(session.commands, name="session")
app.add_typer(sandbox.commands, name="sandbox")
app.add_typer(apps.commands, name="app")
app.add_typer(functions.commands, name="function")
app.add_typer(invocations.commands, name="invocation")
app.add_typer(template.commands, name="template")
app.add_typer(records.chats, name="chat")
app.add_typer(records.keys, name="key")
app.add_typer(tenant.commands, name="tenant")
app.add_typer(activity.users, name="user")
app.add_typer(volume.commands, name="volume")
sandbox.commands.command()(code.code)
sandbox.commands.command()(code.contexts)
for act in (volume.mount, volume.unmount, volume.mounts, activity.why, activity.lease):
    session.commands.command()(act)
app.add_typer(storage.commands, name="storage")
app.add_typer(env.commands, name="env")
app.command("up")(up.up)
app.command("down")(up.down)
app.command("status")(up.status)


@app.command()
def serve() -> None:
    """Run the server in the foreground."""
    from dovecote import main
    from dovecote.config import read_settings

    raise typer.Exit(main.serve(read_settings()))


@app.command()
def doctor() -> None:
    """Say what this machine has and lacks, and how to get it."""
    from dovecote import installation
    from dovecote.config import read_settings

    findings = installation.doctor(read_settings())
    table(
        ("", "what", "found", "how to get it"),
        [
            (
                "ok" if each.ok else "MISSING" if each.is_required else "absent",
                each.name,
                each.detail,
                "" if each.ok else each.hint,
            )
            for each in findings
        ],
    )
    raise typer.Exit(int(any(each.is_required and not each.ok for each in findings)))


@app.command()
def demo(
    keep: Annotated[bool, typer.Option(help="Leave its session and app for you to look at.")] = True,
) -> None:
    """Do the main job with a real project and show each step; the server must be up."""
    import asyncio

    from dovecote.cli.demo import play

    raise typer.Exit(asyncio.run(play(keep=keep)))


@app.command()
def mcp() -> None:
    """Serve sandboxes as MCP tools on stdin and stdout, for a program that starts this."""
    from dovecote.mcp.stdio import serve as serve_tools

    serve_tools()


@app.command()
def ca() -> None:
    """Print the file that clients of the TLS port have to trust."""
    from dovecote.config import read_settings
    from dovecote.errors import NotFound
    from dovecote.gateway.certificates import authority_path

    settings = read_settings()
    path = authority_path(settings.data_dir, settings.domain.lower())
    if not path.exists():
        raise NotFound("no authority was made yet", code="no_authority", hint="start the server with DOVECOTE_TLS_PORT")
    print(path)


@app.command()
def openapi() -> None:
    """Print the description of the API that this server has."""
    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        print(json.dumps(client.openapi(), indent=2))


@app.command()
def version() -> None:
    """Print the version."""
    from dovecote import __version__

    print(__version__)


def main(arguments: list[str] | None = None) -> None:
    """Runs one command. What goes wrong is one line with a code and a hint, and exit code 1."""
    try:
        app(arguments, prog_name="dovecote")
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)
    except Exception as error:
        if not _explain(error):
            raise
        sys.exit(1)


def _explain(error: Exception) -> bool:
    """Shows an error that says what to do, of the client or of the server's own code."""
    kinds = [sys.modules[name].DovecoteError for name in ("dovecote.errors", "dovecote.sdk") if name in sys.modules]
    if isinstance(error, tuple(kinds)):
        ours: Any = error
        problem(ours.message, ours.code, ours.hint)
        return True
    if isinstance(error, OSError):
        hint = "dovecote's server and its `up` and `down` need root" if isinstance(error, PermissionError) else ""
        problem(str(error), "system", hint)
        return True
    return False
