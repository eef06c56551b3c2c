"""`dovecote env`: variables that point other programs at this server."""

from __future__ import annotations

import shlex

import typer

commands = typer.Typer(help="Variables that point other programs at this server.", no_args_is_help=True)


@commands.command("e2b")
def e2b() -> None:
    """Print what points an unmodified E2B SDK at this server: `eval "$(dovecote env e2b)"`."""
    from dovecote.api.e2b.auth import encode_key
    from dovecote.sdk._settings import find_access

    access = find_access(None, None)
    show(
        {
            "E2B_API_URL": access.url,
            "E2B_SANDBOX_URL": access.url,
            "E2B_VOLUME_API_URL": access.url,
            "E2B_API_KEY": encode_key(access.api_key),
        }
    )


@commands.callback()
def env() -> None:
    """Without this the one command below would be the whole of `dovecote env`."""


def show(variables: dict[str, str]) -> None:
    """As a shell reads them."""
    for name, text in variables.items():
        print(f"export {name}={shlex.quote(text)}")
