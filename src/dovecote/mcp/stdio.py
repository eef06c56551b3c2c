"""The tools for a program that started us: messages on stdin and stdout, with the key that is found as the SDK does."""

from __future__ import annotations

import anyio

from dovecote.mcp.server import build_server
from dovecote.sdk import AsyncDovecote


def serve() -> None:
    """Until stdin ends. Raises Unauthenticated (no_key) at once rather than at the first call."""
    anyio.run(_serve)


async def _serve() -> None:
    async with AsyncDovecote() as client:
        await build_server(lambda call: client).run_stdio_async()
