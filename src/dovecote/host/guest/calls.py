"""How the host calls a guest: one connection a call, one answer or a stream of frames."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from dovecote.errors import Invalid
from dovecote.host.guest.connection import Connection
from dovecote.host.guest.protocol import Kind, garbage, render_frame
from dovecote.host.guest.refusals import parse_refusal

ANSWER_WITHIN = 30.0  # seconds


class Calls:
    """Holds nothing between calls, so it may be made anew at any time."""

    def __init__(self, socket_path: Path) -> None:
        self._path = socket_path

    @contextlib.asynccontextmanager
    async def _open(self) -> AsyncIterator[Connection]:
        connection = await Connection.open(self._path)
        try:
            yield connection
        finally:
            connection.close()

    async def _ask(
        self, kind: Kind, expected: Kind, request: bytes = b"", *, subject: str, timeout: float = ANSWER_WITHIN
    ) -> bytes:
        async with self._open() as connection:
            await connection.send(render_frame(kind, request))
            return await answer(connection, expected, subject, timeout=timeout)


async def receive(connection: Connection, subject: str, timeout: float | None = ANSWER_WITHIN) -> tuple[int, bytes]:
    """The next frame. Raises what the guest refuses."""
    kind, data = await connection.receive(timeout)
    if kind == Kind.FAILED:
        raise parse_refusal(data, subject)
    return kind, data


async def answer(connection: Connection, expected: Kind, subject: str, *, timeout: float = ANSWER_WITHIN) -> bytes:
    kind, data = await receive(connection, subject, timeout)
    if kind != expected:
        raise garbage(f"an answer of kind {kind} where {expected.name} was due")
    return data


def fits(value: int, bits: int) -> int:
    if not 0 <= value < 1 << bits:
        raise Invalid(f"out of range: {value}")
    return value
