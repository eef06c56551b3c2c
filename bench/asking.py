"""What it takes the server to answer the gateway once: its processor time, asked over the gateway's own socket."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING

from bench.affinity import MANY, SHARED_BY, Called, own_instances, shared_instances
from bench.checkpointing import server_cpu
from bench.figures import Row, row
from dovecote.sdk import Sharing

if TYPE_CHECKING:
    from tests.e2e.installation import Installation

    from bench.measures import Bench

ASKS = 3000  # of one sample; the kernel counts processor time in hundredths of a second


def ask_cpu(bench: Bench) -> list[Row]:
    """Of ten sessions with an instance each, and of a thousand in ten instances."""
    installation = bench.installation()
    with own_instances(bench) as called:
        own = _samples(bench, installation, called)
    with shared_instances(bench, "asked", Sharing(sessions=SHARED_BY, instances=MANY // SHARED_BY), MANY) as called:
        shared = _samples(bench, installation, called)
    return [row("ask_cpu", "us", own, "", []), row("ask_cpu_1000", "us", shared, "", [])]


def _samples(bench: Bench, installation: Installation, called: Called) -> list[float]:
    path = installation.settings.run_dir / "gateway/python.sock"
    questions = [_question(called, key) for key in called.keys]
    with socket.socket(socket.AF_UNIX) as gateway:
        gateway.settimeout(30)
        gateway.connect(str(path))
        _ask(gateway, questions, ASKS)
        return [_sample(installation, gateway, questions) for _ in range(bench.times(5))]


def _sample(installation: Installation, gateway: socket.socket, questions: list[bytes]) -> float:
    """Microseconds an ask, less what the server does in the same time when nobody asks."""
    before, began = server_cpu(installation), time.monotonic()
    _ask(gateway, questions, ASKS)
    asked, took = server_cpu(installation) - before, time.monotonic() - began
    before = server_cpu(installation)
    time.sleep(took)
    idle = server_cpu(installation) - before
    return (asked - idle) / ASKS * 1e6


def _question(called: Called, key: str) -> bytes:
    """As the wake listener sends it for a request whose route has grown old."""
    lines = [
        "GET /wake/ HTTP/1.1",
        f"host: {called.host}",
        f"x-gw-ask: {called.host} {called.api_key} header {key} -",
        f"x-dovecote-session: {key}",
        "x-forwarded-for: 127.0.0.1",
        "x-forwarded-proto: http",
        "content-length: 0",
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def _ask(gateway: socket.socket, questions: list[bytes], count: int) -> None:
    for number in range(count):
        gateway.sendall(questions[number % len(questions)])
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            more = gateway.recv(65_536)
            if not more:
                raise RuntimeError(f"the connection ended: {answer!r}")
            answer += more
        if not answer.startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(f"not answered: {answer!r}")
