"""Routes of a session's snapshots: take, list, go back, go on elsewhere."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from dovecote.api.rest.here import After, Here, Limit, NamedSnapshot, SessionId, SnapshotId
from dovecote.api.rest.shapes import Body, Page, SessionShape, session_shape, shown, streamed
from dovecote.model.records import Snapshot

routes = APIRouter(prefix="/v1/sessions", tags=["snapshots"])
everywhere = APIRouter(prefix="/v1/snapshots", tags=["snapshots"])

ZIP = "application/zip"
FilePath = Annotated[str, Query(min_length=1, max_length=4096, description="Relative ones start in the user's home.")]


class SnapshotShape(BaseModel):
    id: str
    session_id: str
    label: str
    cause: str = Field(description="asked, turn, before_rewind or published.")
    saved_generation: int = Field(description="How many saves the session had.")
    files: int = Field(description="Files that differ from the template.")
    total_bytes: int
    is_pinned: bool
    outlives_session: bool
    has_memory: bool = Field(description="Sessions that begin with it go on with its processes.")
    created_at: datetime


class ChangeShape(BaseModel):
    path: str
    what: str = Field(description="added, removed, type, content or attributes.")
    old_bytes: int | None
    new_bytes: int | None


class NewSnapshot(Body):
    label: str = Field("", max_length=200)
    is_pinned: bool = Field(False, description="Kept whatever the tier says.")
    outlives_session: bool = Field(False, description="Kept after the end of its session, until it is deleted.")
    memory: bool = Field(False, description="Saves its processes too, where its isolation level can.")


class Rewind(Body):
    snapshot: NamedSnapshot


class DiffShape(BaseModel):
    path: str
    old_bytes: int | None = Field(description="null where the snapshot does not have it.")
    new_bytes: int | None = Field(description="null where it is not there any more.")
    diff: str = Field(description="Unified; empty when nothing differs, and for what is no text or over 4 MiB.")
    is_binary: bool
    is_truncated: bool = Field(description="There is more than `diff` tells.")


class Fork(Body):
    snapshot: NamedSnapshot | None = Field(None, description="Where it begins; as the session is now if null.")
    key: str | None = Field(None, description="Your own name for the new session.")
    user: str | None = Field(None, min_length=1, max_length=200, description="Its end user; the original's if null.")
    env: dict[str, str] = Field(default_factory=dict, description="Added to the environment of the original.")
    memory: bool = Field(False, description="With its processes as they are now, where its isolation level can.")
    wake: bool = True


@routes.post("/{session_id}/snapshots", status_code=201, summary="Save its files under a name")
async def create_snapshot(here: Here, session_id: SessionId, new: NewSnapshot) -> SnapshotShape:
    taken = await here.rooms.snapshots.create(
        here.tenant_id,
        session_id,
        label=new.label,
        is_pinned=new.is_pinned,
        outlives_session=new.outlives_session,
        memory=new.memory,
    )
    return _shape(taken)


@routes.get("/{session_id}/snapshots", summary="Its snapshots, in pages")
async def list_snapshots(
    here: Here, session_id: SessionId, after: After = None, limit: Limit = 100
) -> Page[SnapshotShape]:
    found = await here.rooms.snapshots.list(here.tenant_id, session_id, after=after, limit=limit)
    return Page[SnapshotShape](
        items=[_shape(each) for each in found], next=found[-1].id if len(found) == limit else None
    )


@routes.get("/{session_id}/snapshots/{snapshot_id}", summary="One snapshot")
async def get_snapshot(here: Here, session_id: SessionId, snapshot_id: SnapshotId) -> SnapshotShape:
    return _shape(await here.rooms.snapshots.get(here.tenant_id, session_id, snapshot_id))


@routes.delete("/{session_id}/snapshots/{snapshot_id}", status_code=204, summary="Forget a snapshot")
async def delete_snapshot(here: Here, session_id: SessionId, snapshot_id: SnapshotId) -> None:
    await here.rooms.snapshots.delete(here.tenant_id, session_id, snapshot_id)


@routes.get("/{session_id}/snapshots/{snapshot_id}/changes", summary="What has changed since, in pages")
async def list_changes(
    here: Here,
    session_id: SessionId,
    snapshot_id: SnapshotId,
    to: Annotated[NamedSnapshot | None, Query(description="Up to this snapshot; up to now without.")] = None,
    after: Annotated[int, Query(ge=0, description="`next` of the page before")] = 0,
    limit: Limit = 100,
) -> Page[ChangeShape]:
    found = await here.rooms.snapshots.changes(here.tenant_id, session_id, snapshot_id, to)
    end = after + limit
    items = [
        ChangeShape(path=c.path, what=c.what, old_bytes=c.old_bytes, new_bytes=c.new_bytes) for c in found[after:end]
    ]
    return Page[ChangeShape](items=items, next=str(end) if end < len(found) else None)


@routes.get("/{session_id}/snapshots/{snapshot_id}/diff", summary="How the text of one file has changed since")
async def diff_file(
    here: Here,
    session_id: SessionId,
    snapshot_id: SnapshotId,
    path: FilePath,
    to: Annotated[NamedSnapshot | None, Query(description="Up to this snapshot; up to now without.")] = None,
) -> DiffShape:
    found = await here.rooms.snapshots.diff(here.tenant_id, session_id, snapshot_id, path, to)
    return DiffShape(
        path=shown(found.path),
        old_bytes=found.old_bytes,
        new_bytes=found.new_bytes,
        diff=found.text,
        is_binary=found.is_binary,
        is_truncated=found.is_truncated,
    )


@routes.get(
    "/{session_id}/archive",
    summary="Its files as a zip file, as they are now or in a snapshot",
    response_class=StreamingResponse,
    responses={200: {"content": {ZIP: {}}}},
)
async def get_archive(
    here: Here,
    session_id: SessionId,
    snapshot: Annotated[NamedSnapshot | None, Query(description="As it is now without.")] = None,
    path: Annotated[FilePath | None, Query(description="A file or directory; the user's home without.")] = None,
) -> Response:
    pieces = here.rooms.snapshots.archive(here.tenant_id, session_id, snapshot_id=snapshot, path=path)
    # Awaited before the answer begins, so that what is not there is a 404 and not an empty 200.
    first = await anext(pieces, b"")
    headers = {"content-disposition": f'attachment; filename="{snapshot or session_id}.zip"'}
    return StreamingResponse(streamed(first, pieces), media_type=ZIP, headers=headers)


@routes.post("/{session_id}:rewind", summary="Go back to a snapshot; what runs in the session ends")
async def rewind_session(here: Here, session_id: SessionId, rewind: Rewind) -> SessionShape:
    session = await here.rooms.snapshots.rewind(here.tenant_id, session_id, rewind.snapshot)
    return session_shape(session, here.rooms.addresses)


@routes.post("/{session_id}:fork", status_code=201, summary="Open a new session with its files")
async def fork_session(here: Here, session_id: SessionId, fork: Fork) -> SessionShape:
    session = await here.rooms.snapshots.fork(
        here.tenant_id,
        session_id,
        snapshot_id=fork.snapshot,
        key=fork.key,
        user=fork.user,
        env=fork.env,
        memory=fork.memory,
        wake=fork.wake,
    )
    return session_shape(session, here.rooms.addresses)


@everywhere.get("", summary="Snapshots of all sessions, ended ones too, in pages")
async def list_all_snapshots(
    here: Here,
    label: Annotated[str | None, Query(max_length=200)] = None,
    outlives_session: bool | None = None,
    newest_first: bool = False,
    after: After = None,
    limit: Limit = 100,
) -> Page[SnapshotShape]:
    found = await here.rooms.snapshots.all(
        here.tenant_id,
        label=label,
        outlives_session=outlives_session,
        newest_first=newest_first,
        after=after,
        limit=limit,
    )
    return Page[SnapshotShape](
        items=[_shape(each) for each in found], next=found[-1].id if len(found) == limit else None
    )


def _shape(snapshot: Snapshot) -> SnapshotShape:
    return SnapshotShape(
        id=snapshot.id,
        session_id=snapshot.session_id,
        label=snapshot.label,
        cause=snapshot.cause,
        saved_generation=snapshot.saved_generation,
        files=snapshot.files,
        total_bytes=snapshot.total_bytes,
        is_pinned=snapshot.is_pinned,
        outlives_session=snapshot.outlives_session,
        has_memory=snapshot.memory is not None,
        created_at=snapshot.created_at,
    )
