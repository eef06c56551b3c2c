"""`dovecote tenant`: customers of this installation, made by its operator on its own machine."""

from __future__ import annotations

from typing import Annotated

import typer

from dovecote.cli.show import say

commands = typer.Typer(no_args_is_help=True, help="Tenants of this installation, on its own machine.")


@commands.command("create")
def create(name: Annotated[str, typer.Argument(help="Name of the tenant.")]) -> None:
    """Make a tenant and its first API key, which is shown only now."""
    from dovecote import installation
    from dovecote.config import read_settings

    say(f"API key of {name}: {installation.create_tenant(read_settings(), name)}")
