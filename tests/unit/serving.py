"""Serves an ASGI application on a loopback port of its own, from a thread."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

WITHIN = 10.0  # seconds


@contextmanager
def served(app: ASGIApp) -> Iterator[str]:
    """Gives the URL; the server has ended when this ends."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + WITHIN
        while not server.started:
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.01)
        try:
            yield f"http://localhost:{port}"
        finally:
            server.should_exit = True
            thread.join(WITHIN)
