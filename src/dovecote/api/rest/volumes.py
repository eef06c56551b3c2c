"""Routes of volumes, and of mounts in sessions."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Path, Query
from pydantic import AfterValidator, BaseModel, Field

from dovecote.api.rest.here import After, Call, Here, Limit, SessionId
from dovecote.api.rest.shapes import Body, MountShape, NewMount, Page
from dovecote.control.volumes import PathLimitView, VolumeView
from dovecote.model.ids import parse_label
from dovecote.model.volumes import Mount, parse_path

routes = APIRouter(prefix="/v1", tags=["volumes"])

VolumeName = Annotated[str, Path(), AfterValidator(lambda text: parse_label(text, "a volume"))]
# In the query: clients fold `..` in the path of a URL before they send it.
LimitedPath = Annotated[str, Query(min_length=1, max_length=4096), AfterValidator(parse_path)]
Force = Annotated[bool, Query(description="Whatever uses it.")]


class NewVolume(Body):
    name: str = Field(description="1-100 of A-Z a-z 0-9 _ . -.")
    max_bytes: int = Field(description="Writes beyond fail at once.")
    user: str | None = Field(None, min_length=1, max_length=200, description="Whose files they are, if one user's.")


class ChangedVolume(Body):
    max_bytes: int


class VolumeShape(BaseModel):
    id: str
    name: str
    user_id: str | None
    max_bytes: int
    used_bytes: int | None = Field(description="Null when its host does not have it.")
    created_at: datetime


class WishedLimit(Body):
    max_bytes: int = Field(description="Writes beyond fail at once, below the path.")


class PathLimitShape(BaseModel):
    id: str
    path: str
    max_bytes: int
    used_bytes: int | None = Field(description="Null when nothing is there; the next mount makes it again.")
    created_at: datetime


def _limit_shape(view: PathLimitView) -> PathLimitShape:
    of = view.limit
    return PathLimitShape(
        id=of.id, path=of.path, max_bytes=of.max_bytes, used_bytes=view.used_bytes, created_at=of.created_at
    )


def _shape(view: VolumeView) -> VolumeShape:
    v = view.volume
    return VolumeShape(
        id=v.id,
        name=v.name,
        user_id=v.user_id,
        max_bytes=v.max_bytes,
        used_bytes=view.used_bytes,
        created_at=v.created_at,
    )


@routes.post("/volumes", status_code=201, summary="Make a volume")
async def create_volume(here: Here, new: NewVolume) -> VolumeShape:
    volumes = here.rooms.volumes
    made = await volumes.create(here.tenant_id, new.name, max_bytes=new.max_bytes, user=new.user)
    return _shape(await volumes.view(made))


@routes.get("/volumes", summary="List volumes, in pages")
async def list_volumes(here: Here, after: After = None, limit: Limit = 100) -> Page[VolumeShape]:
    found = await here.rooms.volumes.list(here.tenant_id, after=after, limit=limit)
    items = [_shape(await here.rooms.volumes.view(volume)) for volume in found]
    return Page[VolumeShape](items=items, next=found[-1].id if len(found) == limit else None)


@routes.get("/volumes/{name}", summary="One volume, with what it holds now")
async def get_volume(here: Here, name: VolumeName) -> VolumeShape:
    return _shape(await here.rooms.volumes.view(await here.rooms.volumes.get(here.tenant_id, name)))


@routes.patch("/volumes/{name}", summary="Change its limit, effective at once")
async def resize_volume(here: Here, name: VolumeName, change: ChangedVolume) -> VolumeShape:
    changed = await here.rooms.volumes.resize(here.tenant_id, name, max_bytes=change.max_bytes)
    return _shape(await here.rooms.volumes.view(changed))


@routes.delete("/volumes/{name}", status_code=204, summary="Delete it and its files")
async def delete_volume(here: Here, name: VolumeName, force: Force = False) -> None:
    await here.rooms.volumes.delete(here.tenant_id, name, force=force)


@routes.get("/volumes/{name}/limits", summary="Limits of paths in it and what is there, in pages")
async def list_path_limits(
    here: Here, name: VolumeName, after: After = None, limit: Limit = 100
) -> Page[PathLimitShape]:
    volumes = here.rooms.volumes
    volume = await volumes.get(here.tenant_id, name)
    found = await volumes.limits.list(volume, after=after, limit=limit)
    items = [_limit_shape(await volumes.limits.view(volume, each)) for each in found]
    return Page[PathLimitShape](items=items, next=found[-1].id if len(found) == limit else None)


@routes.put("/volumes/{name}/limit", summary="Give a path a limit, effective at once")
async def limit_path(here: Here, name: VolumeName, path: LimitedPath, wished: WishedLimit) -> PathLimitShape:
    volumes = here.rooms.volumes
    volume = await volumes.get(here.tenant_id, name)
    limit = await volumes.limits.set(volume, path, wished.max_bytes)
    return _limit_shape(await volumes.limits.view(volume, limit))


@routes.get("/volumes/{name}/limit", summary="The limit of a path, with what is there now")
async def get_path_limit(here: Here, name: VolumeName, path: LimitedPath) -> PathLimitShape:
    volumes = here.rooms.volumes
    volume = await volumes.get(here.tenant_id, name)
    return _limit_shape(await volumes.limits.view(volume, await volumes.limits.get(volume, path)))


@routes.delete("/volumes/{name}/limit", status_code=204, summary="Lift it; the files stay")
async def lift_path_limit(here: Here, name: VolumeName, path: LimitedPath) -> None:
    volumes = here.rooms.volumes
    await volumes.limits.lift(await volumes.get(here.tenant_id, name), path)


@routes.post("/sessions/{session_id}/mounts", status_code=201, summary="Mount a volume into a session")
async def mount_volume(here: Here, session_id: SessionId, mount: NewMount) -> Page[MountShape]:
    session = await here.rooms.volumes.mount(here.tenant_id, session_id, mount.record())
    return await _mounts(here, session.mounts)


@routes.get("/sessions/{session_id}/mounts", summary="The session's own mounts")
async def list_mounts(here: Here, session_id: SessionId) -> Page[MountShape]:
    session = await here.rooms.sessions.get(here.tenant_id, session_id)
    return await _mounts(here, session.mounts)


@routes.delete("/sessions/{session_id}/mounts", status_code=204, summary="Unmount what is mounted at a path")
async def unmount_volume(
    here: Here, session_id: SessionId, at: Annotated[str, Query(max_length=4096)], force: Force = False
) -> None:
    await here.rooms.sessions.unmount(here.tenant_id, session_id, at, force=force)


async def _mounts(here: Call, mounts: tuple[Mount, ...]) -> Page[MountShape]:
    shown = await here.rooms.volumes.names(here.tenant_id, mounts)
    return Page[MountShape](items=[MountShape.of(mount) for mount in shown], next=None)
