"""Tells requests of E2B's clients from all others: they come to the main address too."""

from __future__ import annotations

import re

from starlette.types import ASGIApp, Receive, Scope, Send

CONTROL = re.compile(
    r"/(v[23]/)?(sandboxes|templates|default-templates|snapshots|volumes|volumecontent|secrets|teams)(/.*)?"
)


class Entrance:
    """ASGI switch. `rest` is everything of our own, `control` what E2B has at its API address."""

    def __init__(self, rest: ASGIApp, control: ASGIApp) -> None:
        self._rest = rest
        self._control = control

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_control = scope["type"] == "http" and CONTROL.fullmatch(scope["path"])
        await (self._control if is_control else self._rest)(scope, receive, send)
