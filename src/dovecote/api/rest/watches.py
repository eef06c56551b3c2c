"""Routes that tell what changes in a directory: as it happens, or kept until asked for."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import StreamingResponse
from pydantic import Field

from dovecote.api.rest.file_shapes import FileChanges, FileChangeShape, WatcherShape
from dovecote.api.rest.files import Path, User
from dovecote.api.rest.here import Here, SessionId, WatcherId
from dovecote.api.rest.lines import NDJSON, lasting, line
from dovecote.api.rest.shapes import Body, shown
from dovecote.control.sandboxes import FileChange

routes = APIRouter(prefix="/v1/sessions/{session_id}/files", tags=["files"])


class NewWatcher(Body):
    path: str = Field(min_length=1, max_length=4096)
    recursive: bool = False
    user: str | None = None


@routes.get(
    "/watch",
    summary="What changes in a directory, as NDJSON events, until you leave or it is gone",
    response_class=StreamingResponse,
    responses={200: {"content": {NDJSON: {"schema": FileChangeShape.model_json_schema()}}}},
)
async def watch_files(
    here: Here, session_id: SessionId, path: Path, user: User = None, recursive: bool = False
) -> Response:
    changes = here.rooms.sandboxes.watch(here.tenant_id, session_id, path, recursive=recursive, user=user)
    return await lasting(changes, lambda change: line(**change_fields(change)), here.request_id)


@routes.post("/watchers", status_code=201, summary="Keep what changes in a directory, to be asked for")
async def create_watcher(here: Here, session_id: SessionId, new: NewWatcher) -> WatcherShape:
    watchers = here.rooms.sandboxes.watchers
    watcher_id = await watchers.create(here.tenant_id, session_id, new.path, recursive=new.recursive, user=new.user)
    return WatcherShape(id=watcher_id)


@routes.post("/watchers/{watcher_id}:take", summary="What changed since the last time; it is kept no longer")
async def take_changes(here: Here, session_id: SessionId, watcher_id: WatcherId) -> FileChanges:
    taken = here.rooms.sandboxes.watchers.take(here.tenant_id, session_id, watcher_id)
    return FileChanges(items=[FileChangeShape(**change_fields(change)) for change in taken])


@routes.delete("/watchers/{watcher_id}", status_code=204, summary="Stop keeping what changes")
async def delete_watcher(here: Here, session_id: SessionId, watcher_id: WatcherId) -> None:
    here.rooms.sandboxes.watchers.delete(here.tenant_id, session_id, watcher_id)


def change_fields(change: FileChange) -> dict[str, Any]:
    """A FileChangeShape's."""
    return {
        "type": change.kind,
        "path": shown(change.path),
        "target": shown(change.target) if change.target else None,
        "is_directory": change.is_directory,
    }
