"""Files that were sent ahead of a build, each under a name that its sender made of what is in it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

from dovecote.control.templates.context import MAX_BYTES, receive
from dovecote.errors import Invalid
from dovecote.model.ids import random_text

MOST_BYTES = 1 << 30  # of one tenant; what was sent first goes first
_NAME = re.compile(r"[0-9a-f]{64}")


class Sent:
    """Archives by tenant and name, until the server starts again."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def find(self, tenant_id: str, name: str) -> Path | None:
        """Raises Invalid (malformed_name)."""
        path = self._place(tenant_id, name)
        return path if path.exists() else None

    async def keep(self, tenant_id: str, name: str, sent: AsyncIterator[bytes]) -> None:
        """Raises Invalid (too_large, malformed_name), StorageFailed (disk_full)."""
        path = self._place(tenant_id, name)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = path.with_name(f".{random_text(10)}")
        try:
            await receive(sent, draft)
            await asyncio.to_thread(_make_room, path.parent, draft.stat().st_size)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)

    def room(self) -> Path:
        """A directory for what is made of them, emptied when the server starts."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self._directory

    def _place(self, tenant_id: str, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise Invalid(f"not a name for sent files: {name[:80]!r}", code="malformed_name", hint="a sha256 in hex")
        return self._directory / tenant_id / name


def _make_room(directory: Path, size: int) -> None:
    assert size <= MAX_BYTES < MOST_BYTES
    there = sorted((path.stat().st_mtime_ns, path.stat().st_size, path) for path in directory.glob("[0-9a-f]*"))
    held = sum(each[1] for each in there)
    for _, its_size, path in there:
        if held + size <= MOST_BYTES:
            return
        path.unlink(missing_ok=True)
        held -= its_size
