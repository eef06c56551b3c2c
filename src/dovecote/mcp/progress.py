"""What goes on beside a call that takes long: telling how far it is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any

from dovecote.mcp.arguments import Call
from dovecote.mcp.bounded import BoundedText

TELL_EVERY = 1.0  # seconds between notifications


@asynccontextmanager
async def beside(*works: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """They go on while something else is done; what becomes of them is of no consequence."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def tell(call: Call, texts: Mapping[str, BoundedText], seconds: float) -> None:
    """Notifies for as long as it is let: seconds, of how many, and the line that was printed last."""
    began = time.monotonic()
    while True:
        await asyncio.sleep(TELL_EVERY)
        last = texts["stdout"].last_line() or texts["stderr"].last_line()
        await call.report_progress(time.monotonic() - began, seconds, last)
