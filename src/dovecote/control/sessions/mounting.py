"""Which mounts a session has: those of its revision, and its own."""

from __future__ import annotations

from dovecote.errors import Conflict, Invalid, NotFound
from dovecote.model.records import Revision, Session
from dovecote.model.volumes import MOST_MOUNTS, Mount, covers


def added(session: Session, revision: Revision, mount: Mount) -> tuple[Mount, ...]:
    """The session's own mounts with one more. Raises Conflict (exists), Invalid (too_many_mounts)."""
    if mount in session.mounts:
        return session.mounts
    for there in (*revision.mounts, *session.mounts):
        if covers(there.at, mount.at):
            raise Conflict(f"a volume is mounted at {there.at}", code="exists", hint="unmount it first")
    if len(session.mounts) >= MOST_MOUNTS:
        raise Invalid(f"a session has at most {MOST_MOUNTS} mounts", code="too_many_mounts")
    return (*session.mounts, mount)


def without(session: Session, at: str) -> tuple[Mount, ...]:
    """Raises NotFound (no_such_mount) where it has none of its own there."""
    left = tuple(mount for mount in session.mounts if mount.at != at)
    if len(left) == len(session.mounts):
        raise NotFound(f"nothing of the session is mounted at {at!r}", code="no_such_mount")
    return left
