"""What of a session's files is saved, and how its record keeps up with that. Called under the session's lock."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Sequence
from datetime import UTC, datetime
from typing import Protocol

from dovecote.control.fleet import Fleet, Host
from dovecote.errors import DovecoteError, NotFound, StorageFailed
from dovecote.model.records import Session
from dovecote.model.states import SessionState
from dovecote.model.trees import Change, Saved, Workspace

log = logging.getLogger(__name__)


class Swap(Protocol):
    """Writes a changed record. Raises Conflict (stale)."""

    def __call__(self, session: Session, **changes: object) -> Awaitable[Session]: ...


class SavedFiles:
    def __init__(self, fleet: Fleet, swap: Swap) -> None:
        self._fleet = fleet
        self._swap = swap

    def reader(self, session: Session) -> Host:
        """A host that can read what was saved of it."""
        return self._fleet.host(self._fleet.place(prefer=session.host_id))

    async def changes(self, session: Session, template: str, old: str, new: str) -> Sequence[Change]:
        return await self.reader(session).changes(template, old, new)

    async def checkpoint(self, session: Session) -> Saved | None:
        """What the host's log says of the save that the session's record names; None when it names another.

        None also when the newest save is damaged: whoever goes back to an earlier one does so for that reason.
        """
        try:
            saved = await self.reader(session).last_saved(session.id)
        except StorageFailed as error:
            if error.code != "corrupt":
                raise
            return None
        return saved if saved is not None and saved.tree == session.tree else None

    async def store_leftover(self, session: Session, host: Host, reason: str) -> Session:
        """Saves what an instance left on the host, which then is free of it. Raises StorageFailed; nothing is lost."""
        try:
            saved = await host.save_leftover(session.id)
        except NotFound:
            return await self.recover_from_log(session, host)
        except Exception as error:
            await self._swap(
                session,
                state=SessionState.LOST,
                instance_id=None,
                reason=f"its files are on the host only, saving them failed: {error}"[:500],
            )
            raise
        session = await self._swap(
            session,
            state=SessionState.PARKED,
            tree=saved.tree,
            saved_generation=saved.generation,
            saved_at=datetime.now(UTC),
            instance_id=None,
            reason=reason,
        )
        # Only now: until the record names the save, the files on the host are the truth.
        await host.discard(session.id)
        return session

    async def recover_from_log(self, session: Session, host: Host) -> Session:
        """Nothing is on the host: what counts is the newest checkpoint in the log."""
        saved = await host.last_saved(session.id)
        if saved is None or saved.generation <= session.saved_generation:
            return await self._swap(
                session,
                state=SessionState.PARKED,
                instance_id=None,
                reason="its instance is gone; the last save counts",
            )
        return await self._swap(
            session,
            state=SessionState.PARKED,
            tree=saved.tree,
            saved_generation=saved.generation,
            instance_id=None,
            reason="parked; found in the log of saves",
        )

    async def log_rewind(self, host: Host, session: Session, files: Workspace) -> Session:
        """Shuts earlier owners out of the log. Without that its next claim does it; the record says what counts."""
        assert files.tree is not None
        try:
            saved = await host.rewind(session.id, epoch=session.epoch, template=files.template, tree=files.tree)
        except StorageFailed as error:
            log.warning("the log of %s does not have that it was rewound: %s", session.id, error)
            return session
        if saved.generation == session.saved_generation:
            return session
        return await self._swap(session, saved_generation=saved.generation)


async def last_good(session: Session, host: Host) -> str:
    """For a person whose session's files failed verification."""
    try:
        good = await host.last_good(session.id, before=session.saved_generation)
    except DovecoteError as error:
        return f"which earlier save is good is not known: {error.message}"
    return f"the last good save is generation {good}" if good else "no earlier save is good"
