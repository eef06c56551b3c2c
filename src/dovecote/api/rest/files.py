"""Routes of files and ports. Contents stream through in both directions; nothing holds a whole file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import Field

from dovecote.api.rest.file_shapes import FileListing, FileShape
from dovecote.api.rest.here import Here, SessionId, pair
from dovecote.api.rest.shapes import Body, Page, PortShape, shown, streamed
from dovecote.api.uploads import Upload
from dovecote.control.sandboxes import Listing, Stat

UPLOADS = (Upload("PUT", "/v1/sessions/{session_id}/files"),)
routes = APIRouter(prefix="/v1/sessions/{session_id}", tags=["files"])

BYTES = "application/octet-stream"
RENDERED_AT_ONCE = 500  # entries, between which others have their turn
Path = Annotated[str, Query(min_length=1, max_length=4096, description="Relative ones start in the user's home.")]
User = Annotated[str | None, Query(max_length=64, description="Act as; the template's own user if left out.")]
Follow = Annotated[bool, Query(description="Of a link, what it names; else the link itself.")]
Bits = Annotated[int, Field(ge=0, le=0o7777, description="Permission bits, decimal; 420 is 0644.")]


class NewDirectory(Body):
    path: str = Field(min_length=1, max_length=4096)
    user: str | None = None


class NewLink(Body):
    path: str = Field(min_length=1, max_length=4096)
    target: str = Field(min_length=1, max_length=4096, description="Taken as it is; need not be there.")
    user: str | None = None


class Rename(Body):
    source: str = Field(min_length=1, max_length=4096)
    target: str = Field(min_length=1, max_length=4096)
    user: str | None = None


class Attributes(Body):
    path: str = Field(min_length=1, max_length=4096)
    mode: Bits | None = None
    metadata: dict[str, str] | None = Field(None, description="All of it; what is not named is removed.")
    user: str | None = None


class Made(Body):
    created: bool = Field(description="false: it was there already.")


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
    mode: Annotated[
        int | None, Query(ge=0, le=0o7777, description="Permission bits, decimal; kept, or 420 (0644), if left out.")
    ] = None,
    metadata: Annotated[
        list[str] | None,
        Query(max_length=64, description="`name:text`, all of it, empty for none; kept if left out."),
    ] = None,
) -> None:
    await here.rooms.sandboxes.write_file(
        here.tenant_id,
        session_id,
        path,
        request.stream(),
        user=user,
        mode=mode,
        metadata=None if metadata is None else dict(pair(each) for each in metadata if each),
    )


@routes.patch("/files", summary="Change the mode or the metadata of what is at a path")
async def alter_file(here: Here, session_id: SessionId, change: Attributes) -> FileShape:
    stat = await here.rooms.sandboxes.alter(
        here.tenant_id, session_id, change.path, mode=change.mode, metadata=change.metadata, user=change.user
    )
    return FileShape(**file_fields(change.path, stat))


@routes.delete("/files", status_code=204, summary="Remove a file or a directory")
async def remove_file(
    here: Here, session_id: SessionId, path: Path, user: User = None, recursive: bool = False
) -> None:
    await here.rooms.sandboxes.remove(here.tenant_id, session_id, path, recursive=recursive, user=user)


@routes.get("/files/stat", summary="What is at a path")
async def stat_file(
    here: Here, session_id: SessionId, path: Path, user: User = None, follow: Follow = True
) -> FileShape:
    stat = await here.rooms.sandboxes.stat(here.tenant_id, session_id, path, user=user, follow=follow)
    return FileShape(**file_fields(path, stat))


@routes.get(
    "/files/list", summary="What is in a directory", response_class=StreamingResponse, response_model=FileListing
)
async def list_files(
    here: Here,
    session_id: SessionId,
    path: Path,
    user: User = None,
    depth: Annotated[int, Query(ge=1, le=32, description="1 is the directory itself.")] = 1,
    limit: Annotated[int, Query(ge=1, le=100_000, description="Entries; `truncated` says whether it cut.")] = 10_000,
    follow: Follow = True,
) -> Response:
    found = await here.rooms.sandboxes.list_dir(
        here.tenant_id, session_id, path, depth=depth, most=limit, user=user, follow=follow
    )
    return StreamingResponse(_listed(found), media_type="application/json")


@routes.post("/files/mkdir", summary="Make a directory and those above it")
async def make_dir(here: Here, session_id: SessionId, new: NewDirectory) -> Made:
    return Made(created=await here.rooms.sandboxes.make_dir(here.tenant_id, session_id, new.path, user=new.user))


@routes.post("/files/link", status_code=204, summary="Make a symbolic link")
async def make_link(here: Here, session_id: SessionId, new: NewLink) -> None:
    await here.rooms.sandboxes.make_link(here.tenant_id, session_id, new.path, new.target, user=new.user)


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


async def _listed(listing: Listing) -> AsyncGenerator[bytes, None]:
    """A FileListing, in pieces: 100,000 entries at once would hold up everybody."""
    yield b'{"items":['
    for at in range(0, len(listing.entries), RENDERED_AT_ONCE):
        part = [file_fields(entry.path, entry.stat) for entry in listing.entries[at : at + RENDERED_AT_ONCE]]
        yield (b"," if at else b"") + orjson.dumps(part)[1:-1]
        await asyncio.sleep(0)
    yield b'],"truncated":' + orjson.dumps(listing.is_cut) + b"}"


def file_fields(path: str, stat: Stat) -> dict[str, Any]:
    """A FileShape's."""
    return {
        "path": shown(path),
        "kind": stat.kind,
        "size": stat.size,
        "mode": stat.mode,
        "permissions": stat.permissions,
        "uid": stat.uid,
        "gid": stat.gid,
        "owner": shown(stat.owner) or str(stat.uid),
        "group": shown(stat.group) or str(stat.gid),
        "modified_at": stat.modified_at,
        "target": shown(stat.target) if stat.kind == "link" else None,
        "metadata": {shown(name): shown(value) for name, value in stat.metadata.items()},
    }
