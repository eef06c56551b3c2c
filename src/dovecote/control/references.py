"""Which trees the records of all tenants name, and for whom."""

from __future__ import annotations

from datetime import datetime

from dovecote.errors import NotFound
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
        if session.state is not SessionState.ENDED:  # an ended one's may have been collected
            for digest in (session.tree, session.memory):
                if digest:
                    users.setdefault(digest, []).append(f"session {session.id}")
    async for snapshot in everyone.snapshots.each():
        for digest in (snapshot.template, snapshot.tree, snapshot.memory):
            if digest:
                users.setdefault(digest, []).append(f"snapshot {snapshot.id} of session {snapshot.session_id}")
    async for template in everyone.templates.each():
        if template.digest:
            users.setdefault(template.digest, []).append(f"template {template.name} ({template.id})")
    return users


async def living_trees(store: Store) -> tuple[frozenset[str], dict[str, datetime]]:
    """The trees that records need: those of ended sessions are not among them. And when which session has ended."""
    everyone = store.everyone()
    trees: set[str | None] = set()
    ended: dict[str, datetime] = {}
    async for session in everyone.sessions.each():
        if session.state is not SessionState.ENDED:
            trees |= {session.tree, session.memory}
        elif session.ended_at is not None:
            ended[session.id] = session.ended_at
    async for snapshot in everyone.snapshots.each():
        trees |= {snapshot.template, snapshot.tree, snapshot.memory}
    async for revision in everyone.revisions.each():
        trees |= {revision.template, revision.tree}
    async for template in everyone.templates.each():
        trees.add(template.digest)
    return frozenset(tree for tree in trees if tree), ended


async def records_identity(store: Store) -> str:
    """What tells these records from those of any other database: the id of the first tenant. Raises NotFound."""
    first = await store.everyone().tenants.list(limit=1)
    if not first:
        raise NotFound("there is no tenant yet", code="no_installation", hint="start the server once")
    return first[0].id
