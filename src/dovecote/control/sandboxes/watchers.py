"""Watches whose changes are kept until somebody asks for them. In memory: they end with the process."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field

from dovecote.errors import DovecoteError, NoCapacity, NotFound
from dovecote.host.guest import FileChange
from dovecote.model.ids import new_id

UNREAD_FOR = 600.0  # seconds after which a watcher that nobody asks is deleted
MOST = 1000
MOST_OF_SESSION = 32
MOST_KEPT = 4096  # changes of one watcher
MOST_KEPT_BYTES = 1 << 20  # of their paths

Begin = Callable[[str, str, str, bool, str | None], Awaitable[AsyncGenerator[FileChange, None]]]


@dataclass
class Watcher:
    session: tuple[str, str]  # tenant and session
    changes: deque[FileChange] = field(default_factory=deque)
    kept_bytes: int = 0
    is_over: bool = False
    task: asyncio.Task[None] | None = None
    expiry: asyncio.TimerHandle | None = None

    def keep(self, change: FileChange) -> None:
        """What is too much is dropped, and one `overflow` at its end stands for it."""
        is_full = len(self.changes) >= MOST_KEPT or self.kept_bytes > MOST_KEPT_BYTES
        if is_full and self.changes[-1].kind == "overflow":
            return
        self.changes.append(FileChange("overflow") if is_full else change)
        self.kept_bytes += len(change.path) + len(change.target)

    def take(self) -> list[FileChange]:
        taken = list(self.changes)
        self.changes.clear()
        self.kept_bytes = 0
        return taken

    def stop(self) -> None:
        for each in (self.task, self.expiry):
            if each is not None:
                each.cancel()


class Watchers:
    """`begin` opens a watch: tenant, session, path, whether it is recursive, user."""

    def __init__(self, begin: Begin) -> None:
        self._begin = begin
        self._all: dict[str, Watcher] = {}

    async def create(
        self, tenant_id: str, session_id: str, path: str, *, recursive: bool = False, user: str | None = None
    ) -> str:
        """Its id. From now on changes are kept. Deleted when nobody takes any for ten minutes."""
        watcher = Watcher((tenant_id, session_id))
        self._check_room(watcher.session)
        watcher_id = new_id("wat")
        self._all[watcher_id] = watcher
        try:
            changes = await self._begin(tenant_id, session_id, path, recursive, user)
        except BaseException:
            del self._all[watcher_id]
            raise
        watcher.task = asyncio.create_task(_collect(watcher, changes))
        self._expire_later(watcher_id, watcher)
        return watcher_id

    def take(self, tenant_id: str, session_id: str, watcher_id: str) -> list[FileChange]:
        """What changed since the last time. Raises NotFound once its watch has ended and all was taken."""
        watcher = self._get(tenant_id, session_id, watcher_id)
        taken = watcher.take()
        if watcher.is_over and not taken:
            self._delete(watcher_id)
            raise _unknown(watcher_id)
        self._expire_later(watcher_id, watcher)
        return taken

    def delete(self, tenant_id: str, session_id: str, watcher_id: str) -> None:
        self._get(tenant_id, session_id, watcher_id)
        self._delete(watcher_id)

    def _get(self, tenant_id: str, session_id: str, watcher_id: str) -> Watcher:
        watcher = self._all.get(watcher_id)
        if watcher is None or watcher.session != (tenant_id, session_id):
            raise _unknown(watcher_id)
        return watcher

    def _delete(self, watcher_id: str) -> None:
        if watcher := self._all.pop(watcher_id, None):
            watcher.stop()

    def _expire_later(self, watcher_id: str, watcher: Watcher) -> None:
        if watcher.expiry is not None:
            watcher.expiry.cancel()
        watcher.expiry = asyncio.get_running_loop().call_later(UNREAD_FOR, self._delete, watcher_id)

    def _check_room(self, session: tuple[str, str]) -> None:
        of_session = sum(1 for each in self._all.values() if each.session == session)
        if of_session >= MOST_OF_SESSION or len(self._all) >= MOST:
            raise NoCapacity(
                f"{session[1]} has {of_session} watchers",
                code="too_many_watchers",
                hint=f"delete some: {MOST_OF_SESSION} a session is the most",
            )


async def _collect(watcher: Watcher, changes: AsyncGenerator[FileChange, None]) -> None:
    try:
        async with aclosing(changes):
            async for change in changes:
                watcher.keep(change)
    except DovecoteError:
        watcher.keep(FileChange("overflow"))  # its instance ended: what happened at the end is not known
    finally:
        watcher.is_over = True


def _unknown(watcher_id: str) -> NotFound:
    return NotFound(
        f"no watcher {watcher_id[:60]}",
        code="no_such_watcher",
        hint="it ends with its directory, with the session's instance, and unread for ten minutes",
    )
