"""Servers that answer at once, so that what is in front of them is measured."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dovecote.sdk import Dovecote, Session, Sharing, Start

if TYPE_CHECKING:
    from bench.measures import Bench

PROGRAM = Path(__file__).with_name("responder.c")
PORT = 8000


@contextmanager
def sessions(bench: Bench, count: int) -> Iterator[tuple[Dovecote, list[Session]]]:
    """Sandboxes with such a server, each of an instance of its own."""
    content = _binary(bench).read_bytes()
    with bench.client() as client, ExitStack() as opened:
        made = [opened.enter_context(client.sessions.create()) for _ in range(count)]
        for session in made:
            session.files.write("responder", content, mode=0o755)
            session.set_start(f"/home/user/responder {PORT}", PORT)
            session.wake()
        yield client, made


@contextmanager
def function(bench: Bench, name: str, sharing: Sharing) -> Iterator[Dovecote]:
    """A function that is such a server."""
    with bench.client() as client:
        client.functions.create(name, spec="nano", start=Start(f"exec ./responder {PORT}", PORT), sharing=sharing)
        try:
            for _ in client.functions.put_files(name, _binary(bench).parent):
                pass
            yield client
        finally:
            client.functions.delete(name)


def _binary(bench: Bench) -> Path:
    """In a directory of its own."""
    binary = bench.directory / "responding" / "responder"
    if not binary.exists():
        binary.parent.mkdir(exist_ok=True)
        subprocess.run(["cc", "-O2", "-static", "-o", str(binary), str(PROGRAM)], check=True, timeout=60)
    return binary
