"""`dovecote sandbox network`: what a sandbox may reach."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dovecote.cli.execute import SessionId
from dovecote.cli.show import say

if TYPE_CHECKING:
    from dovecote.sdk import Network


def network(
    session_id: SessionId,
    internet: Annotated[bool | None, typer.Option(help="Whether it may reach the internet.")] = None,
    allow: Annotated[
        list[str] | None, typer.Option(help="A network that it may reach in any case: 10.1.0.0/16.")
    ] = None,
    deny: Annotated[list[str] | None, typer.Option(help="A part of the internet that it may not reach.")] = None,
    outbound_keeps_awake: Annotated[bool, typer.Option(help="Whether traffic with the outside counts as use.")] = False,
) -> None:
    """Say what a sandbox may reach; with options, change all of it, at once and for open connections too."""
    from dovecote.sdk import Dovecote, Network

    with Dovecote() as client:
        its = client.sessions.get(session_id)
        if internet is None and not allow and not deny and not outbound_keeps_awake:
            _show(its.view.network)
            return
        wanted = Network(internet is not False, [*(allow or ())], [*(deny or ())], outbound_keeps_awake)
        _show(its.set_network(wanted).network)


def _show(found: Network | None) -> None:
    if found is None:
        say("as its function says")
        return
    parts = ["the internet" if found.internet else "not the internet"]
    parts += [f"allowed {each}" for each in found.allow_cidrs] + [f"denied {each}" for each in found.deny_cidrs]
    parts += ["its traffic with the outside keeps it awake"] if found.outbound_keeps_awake else []
    say(", ".join(parts))
