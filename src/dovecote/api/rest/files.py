"""Routes of files and ports. Contents stream through in both directions; nothing holds a whole file."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import Field

from dovecote.api.rest.here import Here, SessionId
from dovecote.api.rest.shapes import Body, FileShape, Page, PortShape, shown, streamed
from dovecote.api.uploads import Upload
from dovecote.control.sandboxes import Stat

UPLOADS = (Upload("PUT", "/v1/sessions/{session_id}/files"),)
routes = APIRouter(prefix="/v1/sessions/{session_id}", tags=["files"])

BYTES = "application/octet-stream"
Path = Annotated[str, Query(min_length=1, max_length=4096, description="Relative ones start in the user's home.")]
User = Annotated[str | None, Query(max_length=64, description="Act as; the template's own user if left out.")]


class NewDirectory(Body):
    path: str = Field(min_length=1, max_length=4096)
    user: str | None = None


class Rename(Body):
    source: str = Field(min_length=1, max_length=4096)
    target: str = Field(min_length=1, max_length=4096)
    user: str | None = None


@routes.get(
    "/files",
    summary="Read a file",
    response_class=StreamingResponse,
    responses={200: {"content": {BYTES: {}}}},
)
async def read_file(
    here: Here,
    session_id: SessionId,
    path: Path,
    user: User = None,
    offset: Annotated[int, Query(ge=0)] = 0,
    length: Annotated[int | None, Query(ge=0, description="Bytes; to its end if left out.")] = None,
) -> Response:
    chunks = here.rooms.sandboxes.read_file(here.tenant_id, session_id, path, user=user, offset=offset, length=length)
    # Awaited before the answer begins, so that a file that is not there is a 404 and not an empty 200.
    first = await anext(chunks, b"")
    return StreamingResponse(streamed(first, chunks), media_type=BYTES)


@routes.put(
    "/files",
    status_code=204,
    summary="Write the body to a file, whole or not at all",
    openapi_extra={"requestBody": {"content": {BYTES: {}}}},
)
async def write_file(
    here: Here,
    session_id: SessionId,
    path: Path,
    request: Request,
    user: User = None,
    mode: Annotated[int, Query(ge=0, le=0o7777, description="Permission bits, decimal; 420 is 0644.")] = 0o644,
) -> None:
    await here.rooms.sandboxes.write_file(here.tenant_id, session_id, path, request.stream(), user=user, mode=mode)


@routes.delete("/files", status_code=204, summary="Remove a file or a directory")
async def remove_file(
    here: Here, session_id: SessionId, path: Path, user: User = None, recursive: bool = False
) -> None:
    await here.rooms.sandboxes.remove(here.tenant_id, session_id, path, recursive=recursive, user=user)


@routes.get("/files/stat", summary="What is at a path")
async def stat_file(here: Here, session_id: SessionId, path: Path, user: User = None) -> FileShape:
    return stat_shape(path, await here.rooms.sandboxes.stat(here.tenant_id, session_id, path, user=user))


@routes.get("/files/list", summary="What is in a directory")
async def list_files(
    here: Here,
    session_id: SessionId,
    path: Path,
    user: User = None,
    depth: Annotated[int, Query(ge=1, le=32, description="1 is the directory itself.")] = 1,
) -> Page[FileShape]:
    found = await here.rooms.sandboxes.list_dir(here.tenant_id, session_id, path, depth=depth, user=user)
    return Page[FileShape](items=[stat_shape(entry.path, entry.stat) for entry in found], next=None)


@routes.post("/files/mkdir", status_code=204, summary="Make a directory and those above it")
async def make_dir(here: Here, session_id: SessionId, new: NewDirectory) -> None:
    await here.rooms.sandboxes.make_dir(here.tenant_id, session_id, new.path, user=new.user)


@routes.post("/files/rename", status_code=204, summary="Rename or move")
async def rename_file(here: Here, session_id: SessionId, change: Rename) -> None:
    await here.rooms.sandboxes.rename(here.tenant_id, session_id, change.source, change.target, user=change.user)


@routes.get("/ports", summary="Ports that something listens on", tags=["sessions"])
async def list_ports(here: Here, session_id: SessionId) -> Page[PortShape]:
    rooms = here.rooms
    found = await rooms.sandboxes.ports(here.tenant_id, session_id)
    slug = (await rooms.sessions.get(here.tenant_id, session_id)).slug
    return Page[PortShape](
        items=[
            PortShape(port=p.port, loopback_only=p.loopback_only, address=rooms.addresses.box(slug, p.port))
            for p in found
        ],
        next=None,
    )


def stat_shape(path: str, stat: Stat) -> FileShape:
    return FileShape(
        path=shown(path),
        kind=stat.kind,
        size=stat.size,
        mode=stat.mode,
        uid=stat.uid,
        gid=stat.gid,
        modified_at=stat.modified_at,
        target=shown(stat.target) if stat.kind == "link" else None,
    )
