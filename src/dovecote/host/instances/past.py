"""Reads what was saved without an instance: an archive of it, and how one file of it differs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from dovecote.errors import NotFound
from dovecote.host.instances.preparing import Parts
from dovecote.host.storage.archive import below, zipped
from dovecote.host.storage.differing import Side, compare
from dovecote.host.storage.manifest import Entry, Kind
from dovecote.model.trees import FileDiff, Workspace


async def archived(parts: Parts, workspace: Workspace, path: str) -> AsyncGenerator[bytes, None]:
    """A zip file of what is at `path`. Holds the images meanwhile, hence the objects."""
    await parts.roots.hold(workspace)
    try:
        seen = await asyncio.to_thread(_seen, parts, workspace)
        pieces = zipped(below(seen, path), lambda digest: parts.trees.object_file(digest).open("rb"))
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            yield piece
    finally:
        await parts.roots.release(workspace)


def _seen(parts: Parts, workspace: Workspace) -> list[Entry]:
    assert workspace.tree is not None
    with parts.trees.seen(workspace.template, workspace.tree) as entries:
        return entries


async def diff(parts: Parts, template: str, old: str, new: str, path: str) -> FileDiff:
    """Raises NotFound (no_such_path) when neither has it. Holds the images meanwhile too."""
    workspaces = [Workspace(template, tree) for tree in (old, new)]
    held: list[Workspace] = []
    try:
        for workspace in workspaces:
            await parts.roots.hold(workspace)
            held.append(workspace)
        return await asyncio.to_thread(_diff, parts, template, old, new, path)
    finally:
        for workspace in held:
            await parts.roots.release(workspace)


def _diff(parts: Parts, template: str, old: str, new: str, path: str) -> FileDiff:
    at = path.strip("/").encode("utf-8", "surrogateescape")
    old_side, new_side = (_side(parts, _seen(parts, Workspace(template, tree)), at) for tree in (old, new))
    if old_side[0] is None and new_side[0] is None:
        raise NotFound(f"nothing is at {path!r} in either", code="no_such_path")
    return compare(path, old_side, new_side)


def _side(parts: Parts, entries: list[Entry], at: bytes) -> Side:
    entry = next((entry for entry in entries if entry.path == at), None)
    if entry is not None and entry.kind is Kind.FILE and entry.size:
        return entry, parts.trees.object_file(entry.digest)
    return entry, entry.target if entry is not None else b""
