"""E2B's routes of volumes and of the files in them."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import Field

from dovecote.api.e2b.auth import bearer_of
from dovecote.api.e2b.here import Call, Here
from dovecote.api.e2b.shapes import Body
from dovecote.api.rest.shapes import streamed
from dovecote.api.rooms import Rooms
from dovecote.api.uploads import Upload
from dovecote.control.sandboxes import Stat
from dovecote.control.volumes import AT, Contents, place
from dovecote.errors import Conflict, Failed, Invalid, NotFound
from dovecote.model.ids import parse_id
from dovecote.model.records import Session, Volume
from dovecote.model.sizes import GIB

routes = APIRouter()
UPLOADS = (Upload("PUT", "/volumecontent/{volume_id}/file"),)

VOLUME_BYTES = 10 * GIB  # E2B's clients name no size; `dovecote volume resize` changes it
WITHIN = 60.0  # seconds for one change
KINDS = {"file": "file", "directory": "directory", "link": "symlink"}

VolumeId = Annotated[str, Path(max_length=100)]
FilePath = Annotated[str, Query(min_length=1, max_length=4096)]
Owner = Annotated[int | None, Query(ge=0, le=65535)]
Mode = Annotated[int | None, Query(ge=0, le=0o7777)]
Force = Annotated[bool, Query()]


class NewVolume(Body):
    name: str = Field(min_length=1, max_length=100)


class Attributes(Body):
    uid: int | None = Field(None, ge=0, le=65535)
    gid: int | None = Field(None, ge=0, le=65535)
    mode: int | None = Field(None, ge=0, le=0o7777)


@routes.post("/volumes", status_code=201)
async def create_volume(here: Here, new: NewVolume) -> Response:
    volume = await here.rooms.volumes.create(here.tenant_id, new.name, max_bytes=VOLUME_BYTES)
    return JSONResponse(await _with_token(here, volume), 201)


@routes.get("/volumes")
async def list_volumes(here: Here) -> Response:
    volumes = await here.rooms.volumes.list(here.tenant_id, limit=1000)
    return JSONResponse([{"volumeID": each.id, "name": each.name} for each in volumes])


@routes.get("/volumes/{volume_id}")
async def get_volume(here: Here, volume_id: VolumeId) -> Response:
    return JSONResponse(await _with_token(here, await _volume(here, volume_id)))


@routes.delete("/volumes/{volume_id}", status_code=204)
async def delete_volume(here: Here, volume_id: VolumeId) -> None:
    """Raises Conflict (in_use) while a sandbox mounts it."""
    volume = await _volume(here, volume_id)
    await here.rooms.contents.forget(volume)
    await here.rooms.volumes.delete(here.tenant_id, volume.name)


async def _volume(here: Call, volume_id: str) -> Volume:
    try:
        parse_id(volume_id, "vol")
    except Invalid:
        raise NotFound(f"no volume {volume_id[:60]!r}", code="no_such_volume") from None
    return await here.rooms.volumes.by_id(here.tenant_id, volume_id)


async def _with_token(here: Call, volume: Volume) -> dict[str, str]:
    token = await here.rooms.contents.token(volume)
    return {"volumeID": volume.id, "name": volume.name, "token": token}


# -- files; who has the volume's token needs no key


@dataclass(frozen=True)
class Inside:
    """The volume's own session, in which root acts."""

    rooms: Rooms
    session: Session

    async def stat(self, path: str) -> dict[str, object]:
        """Below a file there is nothing. Raises NotFound."""
        at = place(path)
        try:
            found = await self.rooms.sandboxes.stat(self.session.tenant_id, self.session.id, at, user="root")
        except Invalid as error:
            if error.code != "not_a_directory":
                raise
            raise NotFound(f"no file {path[:200]!r} in the volume", code="file_not_found") from None
        return _entry(at, found)

    async def change(self, *commands: Sequence[str]) -> None:
        """Raises Failed (not_changed)."""
        for argv in commands:
            done = await self.rooms.sandboxes.run(
                self.session.tenant_id, self.session.id, argv=argv, user="root", cwd="/", timeout=WITHIN
            )
            if done.exit_code != 0:
                why = done.stderr.decode(errors="replace").strip()[:300]
                raise Failed(f"{argv[0]} failed: {why}", code="not_changed")

    async def set(self, path: str, uid: int | None, gid: int | None, mode: int | None) -> None:
        at = place(path)
        owner = f"{'' if uid is None else uid}{'' if gid is None else f':{gid}'}"
        commands = [["chown", "--no-dereference", owner, "--", at]] if owner else []
        commands += [["chmod", f"{mode:o}", "--", at]] if mode is not None else []
        await self.change(*commands)


async def _inside(request: Request, volume_id: VolumeId) -> Inside:
    rooms: Rooms = request.app.state.rooms
    contents: Contents = rooms.contents
    return Inside(rooms, await contents.admit(bearer_of(request.headers), volume_id))


Files = Annotated[Inside, Depends(_inside)]


@routes.get("/volumecontent/{volume_id}/path")
async def get_entry(files: Files, path: FilePath) -> Response:
    return JSONResponse(await files.stat(path))


@routes.patch("/volumecontent/{volume_id}/path")
async def change_entry(files: Files, path: FilePath, change: Attributes) -> Response:
    await files.stat(path)
    await files.set(path, change.uid, change.gid, change.mode)
    return JSONResponse(await files.stat(path))


@routes.delete("/volumecontent/{volume_id}/path", status_code=204)
async def remove_entry(files: Files, path: FilePath) -> None:
    if place(path) == AT:
        raise Invalid("the root of a volume stays", hint="delete the volume")
    session = files.session
    await files.stat(path)
    await files.rooms.sandboxes.remove(session.tenant_id, session.id, place(path), recursive=True, user="root")


@routes.get("/volumecontent/{volume_id}/dir")
async def list_directory(files: Files, path: FilePath, depth: Annotated[int, Query(ge=1, le=100)] = 1) -> Response:
    session, at = files.session, place(path)
    found = await files.rooms.sandboxes.list_dir(session.tenant_id, session.id, at, depth=depth, user="root")
    return JSONResponse([_entry(posixpath.join(at, each.path), each.stat) for each in found.entries])


@routes.post("/volumecontent/{volume_id}/dir", status_code=201)
async def make_directory(
    files: Files, path: FilePath, uid: Owner = None, gid: Owner = None, mode: Mode = None, force: Force = False
) -> Response:
    at = place(path)
    if not force:
        await files.stat(posixpath.dirname(posixpath.normpath("/" + path)))
        if await _is_there(files, path):
            raise Conflict(f"{path} is there already", code="exists")
    await files.change(["mkdir", "-p", "--", at])
    await files.set(path, uid, gid, mode)
    return JSONResponse(await files.stat(path), 201)


@routes.get("/volumecontent/{volume_id}/file")
async def read_file(files: Files, path: FilePath) -> Response:
    session = files.session
    pieces = files.rooms.sandboxes.read_file(session.tenant_id, session.id, place(path), user="root")
    # Awaited before the answer begins, so that what is not there is a 404 and not an empty 200.
    first = await anext(pieces, b"")
    return StreamingResponse(streamed(first, pieces), media_type="application/octet-stream")


@routes.put("/volumecontent/{volume_id}/file", status_code=201)
async def write_file(
    files: Files,
    request: Request,
    path: FilePath,
    uid: Owner = None,
    gid: Owner = None,
    mode: Mode = None,
    force: Annotated[bool, Query()] = True,
) -> Response:
    session = files.session
    if not force and await _is_there(files, path):
        raise Conflict(f"{path} is there already", code="exists")
    chunks = request.stream()
    await files.rooms.sandboxes.write_file(session.tenant_id, session.id, place(path), chunks, user="root")
    await files.set(path, uid, gid, mode)
    return JSONResponse(await files.stat(path), 201)


async def _is_there(files: Inside, path: str) -> bool:
    try:
        await files.stat(path)
    except NotFound:
        return False
    return True


def _entry(at: str, stat: Stat) -> dict[str, object]:
    path = at.removeprefix(AT) or "/"
    moment = stat.modified_at.isoformat()
    shape: dict[str, object] = {
        "name": posixpath.basename(path) or "/",
        "type": KINDS.get(stat.kind, "unknown"),
        "path": path,
        "size": stat.size,
        "mode": stat.mode,
        "uid": stat.uid,
        "gid": stat.gid,
        "atime": moment,
        "mtime": moment,
        "ctime": moment,
    }
    return shape | ({"target": stat.target} if stat.target else {})
