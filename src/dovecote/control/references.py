"""Which trees the records of all tenants name, and for whom."""

from __future__ import annotations

from dovecote.model.states import SessionState
from dovecote.store import Store


async def tree_references(store: Store) -> dict[str, list[str]]:
    """Digest of a tree -> its users, as an operator knows them: `session ses_...`, `app blog`, `function shop`."""
    users: dict[str, list[str]] = {}
    everyone = store.everyone()
    published = {app.revision_id: f"app {app.name}" async for app in everyone.apps.each(removed_at=None)}
    names = {function.id: f"function {function.name}" async for function in everyone.functions.each()}
    async for revision in everyone.revisions.each():
        whose = published.get(revision.id) or names.get(revision.function_id) or "a deleted function"
        for digest in (revision.template, revision.tree):
            if digest:
                users.setdefault(digest, []).append(f"{whose} (revision {revision.number})")
    async for session in everyone.sessions.each():
        if session.tree:
            ended = " (ended)" if session.state is SessionState.ENDED else ""
            users.setdefault(session.tree, []).append(f"session {session.id}{ended}")
    async for snapshot in everyone.snapshots.each():
        for digest in (snapshot.template, snapshot.tree):
            users.setdefault(digest, []).append(f"snapshot {snapshot.id} of session {snapshot.session_id}")
    return users
