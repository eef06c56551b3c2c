"""Takes snapshots, goes back to them, forks from them, and lets the old ones go."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime
from typing import Unpack

from dovecote.control.functions import Functions
from dovecote.control.sessions import Origin, Sessions, Wishes
from dovecote.control.snapshots.retention import expired
from dovecote.errors import Conflict, DovecoteError, Invalid, NotFound
from dovecote.model.ids import new_id
from dovecote.model.moments import moment_after
from dovecote.model.records import Session, Snapshot
from dovecote.model.sizes import TIERS
from dovecote.model.states import SessionState, SnapshotCause
from dovecote.model.trees import Change, FileDiff, Workspace
from dovecote.store import Store

LONGEST_LABEL = 200
RETAIN_EVERY = 3600.0  # seconds between looks at all snapshots for those that are not kept

log = logging.getLogger(__name__)


class Snapshots:
    def __init__(self, store: Store, sessions: Sessions, functions: Functions) -> None:
        self._store = store
        self._sessions = sessions
        self._functions = functions

    async def create(
        self,
        tenant_id: str,
        session_id: str,
        *,
        label: str = "",
        is_pinned: bool = False,
        outlives_session: bool = False,
        memory: bool = False,
        cause: SnapshotCause = SnapshotCause.ASKED,
    ) -> Snapshot:
        """Saves the session as it is now, and names that. A parked one is not woken. Raises StorageFailed.

        With `memory` its processes are saved too, and sessions that begin there go on with them; raises Unsupported
        (cannot_hibernate). One that outlives its session is kept until it is deleted itself.
        """
        if len(label) > LONGEST_LABEL:
            raise Invalid(f"a label has at most {LONGEST_LABEL} characters")
        session = await (self._sessions.remembered if memory else self._saved)(tenant_id, session_id)
        return await self._record(
            session,
            cause,
            memory=session.memory if memory else None,
            label=label,
            is_pinned=is_pinned or outlives_session,
            outlives_session=outlives_session,
        )

    async def at_turn(self, tenant_id: str, session_id: str, label: str) -> Snapshot:
        """For the end of a chat's turn: one that has no instance is not woken. Raises Conflict (no_files)."""
        session = await self._sessions.get(tenant_id, session_id)
        has_instance = self._sessions.live.get(session_id) is not None
        if not has_instance and (session.state is not SessionState.PARKED or session.tree is None):
            raise Conflict("the session has no files that could be saved without waking it", code="no_files")
        session = await self._saved(tenant_id, session_id)
        return await self._newest_if_same(session) or await self._record(session, SnapshotCause.TURN, label=label)

    async def _newest_if_same(self, session: Session) -> Snapshot | None:
        """The session's newest snapshot, if that has just these files."""
        newest = await self._store.tenant(session.tenant_id).snapshots.newest(session_id=session.id)
        return newest if newest is not None and newest.tree == session.tree else None

    async def at_publish(self, session: Session, name: str) -> None:
        """What an app of that name was published from. The app does not depend on it."""
        try:
            await self._record(session, SnapshotCause.PUBLISHED, label=f"published as {name}")
        except DovecoteError as error:
            log.warning("no snapshot of %s at its publishing: %s", session.id, error)

    async def copy(self, snapshot: Snapshot, session: Session) -> Snapshot:
        """The same files as a snapshot of a fork, which has its own numbering of saves."""
        copied = replace(
            snapshot, id=new_id("snp"), session_id=session.id, saved_generation=0, outlives_session=False, generation=0
        )
        return await self._store.tenant(session.tenant_id).snapshots.insert(copied)

    async def find(self, tenant_id: str, snapshot_id: str) -> Snapshot:
        """Of whichever session. Raises NotFound."""
        return await self._store.tenant(tenant_id).snapshots.get(snapshot_id)

    async def named(self, tenant_id: str, name: str) -> Snapshot | None:
        """One that a new session may begin with: by its id, or the newest of that label that outlives its session."""
        snapshots = self._store.tenant(tenant_id).snapshots
        by_id = await snapshots.find(id=name)
        return by_id or await snapshots.newest(label=name, outlives_session=True)

    async def all(
        self,
        tenant_id: str,
        *,
        session_id: str | None = None,
        label: str | None = None,
        outlives_session: bool | None = None,
        after: str | None = None,
        limit: int = 100,
        newest_first: bool = False,
    ) -> Sequence[Snapshot]:
        """Of all sessions of the tenant, ended ones too, that match all that is given."""
        wanted = {"session_id": session_id, "label": label, "outlives_session": outlives_session}
        equals = {name: value for name, value in wanted.items() if value is not None}
        snapshots = self._store.tenant(tenant_id).snapshots
        return await snapshots.list(after=after, limit=limit, newest_first=newest_first, **equals)

    async def get(self, tenant_id: str, session_id: str, snapshot_id: str) -> Snapshot:
        """Raises NotFound, also for a snapshot of another session."""
        snapshot = await self._store.tenant(tenant_id).snapshots.get(snapshot_id)
        if snapshot.session_id != session_id:
            raise NotFound(f"no snapshot {snapshot_id!r} of this session", code="no_such_snapshot")
        return snapshot

    async def list(
        self, tenant_id: str, session_id: str, *, after: str | None = None, limit: int = 100
    ) -> Sequence[Snapshot]:
        await self._sessions.get(tenant_id, session_id)
        return await self._store.tenant(tenant_id).snapshots.list(session_id=session_id, after=after, limit=limit)

    async def delete(self, tenant_id: str, session_id: str, snapshot_id: str) -> None:
        await self.get(tenant_id, session_id, snapshot_id)
        await self._store.tenant(tenant_id).snapshots.delete(snapshot_id)

    async def rewind(self, tenant_id: str, session_id: str, snapshot_id: str) -> Session:
        """Its files become those of the snapshot; the next request wakes it there. What runs in it ends.

        What it was before is a snapshot too (`before_rewind`), so that this can be undone.
        """
        snapshot = await self.get(tenant_id, session_id, snapshot_id)

        async def before(session: Session) -> None:
            if session.tree is not None:
                await self._record(session, SnapshotCause.BEFORE_REWIND, label=f"before going back to {snapshot.id}")

        return await self._sessions.rewind(
            tenant_id, session_id, Workspace(snapshot.template, snapshot.tree), before=before
        )

    async def fork(
        self,
        tenant_id: str,
        session_id: str,
        *,
        snapshot_id: str | None = None,
        memory: bool = False,
        wake: bool = True,
        **wishes: Unpack[Wishes],
    ) -> Session:
        """A new session of the same revision that begins with the files of a snapshot, or as they are now.

        With its processes too where the snapshot has them, or with `memory` as they are now.

        Of the same user and tier, unless another user is named, whose own tier it then has. Its session may have ended
        where a snapshot of it is named.
        """
        if snapshot_id is None:
            source = await (self._sessions.remembered if memory else self._saved)(tenant_id, session_id)
            tree, saved = source.tree, source.memory if memory else None
        else:
            snapshot = await self.get(tenant_id, session_id, snapshot_id)
            source = await self._sessions.get(tenant_id, session_id)
            tree, saved = snapshot.tree, snapshot.memory
        assert tree is not None
        if wishes.get("user") is None and wishes.get("tier") is None:
            wishes["tier"] = source.tier
        return await self._sessions.create(tenant_id, wake=wake, fork_of=Origin(source, tree, saved), **wishes)

    async def begin(self, tenant_id: str, snapshot_id: str, *, wake: bool = True, **wishes: Unpack[Wishes]) -> Session:
        """A new session with the files of a snapshot of whichever session. Raises NotFound."""
        snapshot = await self.find(tenant_id, snapshot_id)
        return await self.fork(tenant_id, snapshot.session_id, snapshot_id=snapshot.id, wake=wake, **wishes)

    async def archive(
        self, tenant_id: str, session_id: str, *, snapshot_id: str | None = None, path: str | None = None
    ) -> AsyncIterator[bytes]:
        """A zip file of a snapshot, or of the session as it is now; of the user's home where no path is given."""
        session, template, tree = await self._tree(tenant_id, session_id, snapshot_id)
        if path is None or not path.startswith("/"):
            home = await self._sessions.home(session)
            path = home if path is None else f"{home}/{path}"
        async with aclosing(self._sessions.files.reader(session).archive(template, tree, path)) as pieces:
            async for piece in pieces:
                yield piece

    async def diff(
        self, tenant_id: str, session_id: str, snapshot_id: str, path: str, to: str | None = None
    ) -> FileDiff:
        """How one file differs in snapshot `to`, or as the session is now, from an earlier snapshot of it."""
        old = await self.get(tenant_id, session_id, snapshot_id)
        session, _, tree = await self._tree(tenant_id, session_id, to)
        if not path.startswith("/"):
            path = f"{await self._sessions.home(session)}/{path}"
        return await self._sessions.files.reader(session).diff(old.template, old.tree, tree, path)

    async def _tree(self, tenant_id: str, session_id: str, snapshot_id: str | None) -> tuple[Session, str, str]:
        """The session, and template and tree of a snapshot of it, or of a checkpoint that is taken now."""
        if snapshot_id is not None:
            session = await self._sessions.get(tenant_id, session_id)
            snapshot = await self.get(tenant_id, session_id, snapshot_id)
            return session, snapshot.template, snapshot.tree
        session = await self._saved(tenant_id, session_id)
        assert session.tree is not None
        revision = await self._functions.revision(tenant_id, session.revision_id)
        return session, revision.template, session.tree

    async def changes(
        self, tenant_id: str, session_id: str, snapshot_id: str, to: str | None = None
    ) -> Sequence[Change]:
        """What differs in snapshot `to`, or as the session is now, from an earlier snapshot of it."""
        old = await self.get(tenant_id, session_id, snapshot_id)
        if to is None:
            session = await self._saved(tenant_id, session_id)
            assert session.tree is not None
            tree = session.tree
        else:
            session = await self._sessions.get(tenant_id, session_id)
            tree = (await self.get(tenant_id, session_id, to)).tree
        return await self._sessions.files.changes(session, old.template, old.tree, tree)

    async def expire(self, session: Session, now: datetime) -> int:
        """Deletes the records of what the session's tier does not keep; counts them. May be repeated."""
        scope = self._store.tenant(session.tenant_id)
        all_of_it = [snapshot async for snapshot in scope.snapshots.each(session_id=session.id)]
        old = expired(all_of_it, TIERS[session.tier], now)
        for snapshot in old:
            await scope.snapshots.delete(snapshot.id)
        return len(old)

    async def retain(self) -> None:
        """The same for all sessions whose snapshots are more or older than some tier keeps. Called once in a while."""
        now = datetime.now(UTC)
        fewest = min(tier.snapshots for tier in TIERS.values())
        oldest = now - min(tier.snapshots_for for tier in TIERS.values())
        counts: Counter[tuple[str, str]] = Counter()
        due: set[tuple[str, str]] = set()
        async for snapshot in self._store.everyone().snapshots.each():
            of = (snapshot.tenant_id, snapshot.session_id)
            counts[of] += 1
            if counts[of] > fewest or snapshot.created_at < oldest:
                due.add(of)
        for tenant_id, session_id in due:
            scope = self._store.tenant(tenant_id)
            session = await scope.sessions.find(id=session_id)
            if session is not None and session.state is not SessionState.ENDED:
                await self.expire(session, now)
                continue
            async for left in scope.snapshots.each(session_id=session_id, outlives_session=False):
                await scope.snapshots.delete(left.id)

    async def workspaces(self) -> AsyncIterator[Workspace]:
        """Everything that snapshots of all tenants name: what a collection of garbage must leave alone."""
        async for snapshot in self._store.everyone().snapshots.each():
            yield Workspace(snapshot.template, snapshot.tree)

    async def _saved(self, tenant_id: str, session_id: str) -> Session:
        session = await self._sessions.get(tenant_id, session_id)
        if session.state is SessionState.ENDED:
            raise Conflict("the session has ended", code="session_ended")
        if session.state is SessionState.PARKED and session.tree is not None:
            return session
        return await self._sessions.save(tenant_id, session_id)

    async def _record(
        self,
        session: Session,
        cause: SnapshotCause,
        *,
        memory: str | None = None,
        label: str = "",
        is_pinned: bool = False,
        outlives_session: bool = False,
    ) -> Snapshot:
        assert session.tree is not None
        revision = await self._functions.revision(session.tenant_id, session.revision_id)
        saved = await self._sessions.files.checkpoint(session)
        scope = self._store.tenant(session.tenant_id)
        now = datetime.now(UTC)
        snapshot = Snapshot(
            id=new_id("snp"),
            tenant_id=session.tenant_id,
            session_id=session.id,
            label=label,
            cause=cause,
            template=revision.template,
            tree=session.tree,
            memory=memory,
            saved_generation=session.saved_generation,
            files=saved.files if saved else 0,
            total_bytes=saved.total_bytes if saved else 0,
            created_at=moment_after(await scope.snapshots.newest(session_id=session.id), now),
            is_pinned=is_pinned,
            outlives_session=outlives_session,
        )
        snapshot = await scope.snapshots.insert(snapshot)
        if not outlives_session and (await scope.sessions.get(session.id)).state is SessionState.ENDED:
            # It was deleted meanwhile, and its snapshots with it, perhaps before this one was there.
            await scope.snapshots.delete(snapshot.id)
            raise Conflict("the session has ended", code="session_ended")
        await self.expire(session, now)
        return snapshot
