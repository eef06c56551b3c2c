"""E2B's routes of snapshots: new sandboxes begin with them as with templates."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse

from dovecote.api.e2b.here import Call, Here, SandboxId, found
from dovecote.api.e2b.shapes import Body
from dovecote.errors import NotFound, Unsupported
from dovecote.model.records import Snapshot

routes = APIRouter()

DEFAULT_TAG = ":default"


class NewSnapshot(Body):
    name: str = ""
    memory: bool | None = None

    def label(self) -> str:
        return self.name.removesuffix(DEFAULT_TAG)


@routes.post("/sandboxes/{sandbox_id}/snapshots", status_code=201)
async def create_snapshot(here: Here, sandbox_id: SandboxId, new: NewSnapshot) -> JSONResponse:
    session = await found(here, sandbox_id)
    snapshot = await taken(here, session.id, label=new.label(), memory=new.memory, outlives_session=True)
    return JSONResponse(_shape(snapshot), 201)


@routes.get("/snapshots")
async def list_snapshots(
    here: Here,
    sandbox_id: Annotated[str | None, Query(alias="sandboxID", max_length=100)] = None,
    name: Annotated[str | None, Query(max_length=200)] = None,
    limit: Annotated[int, Query(ge=1, le=999)] = 100,
    token: Annotated[str | None, Query(alias="nextToken", max_length=200)] = None,
) -> JSONResponse:
    """Those of a sandbox that has ended too."""
    session_id = None
    if sandbox_id is not None:
        session_id = await _ever(here, sandbox_id)
        if session_id is None:
            return JSONResponse([])
    there = await here.rooms.snapshots.all(
        here.tenant_id,
        session_id=session_id,
        label=name.removesuffix(DEFAULT_TAG) if name else None,
        outlives_session=True,
        after=token,
        limit=limit + 1,
        newest_first=True,
    )
    headers = {"x-next-token": there[limit - 1].id} if len(there) > limit else {}
    return JSONResponse([_shape(each) for each in there[:limit]], headers=headers)


async def taken(
    here: Call, session_id: str, *, label: str, memory: bool | None = None, outlives_session: bool = False
) -> Snapshot:
    """With its memory where its level can, unless that is not wanted. Raises Unsupported where it is and cannot be."""
    create = partial(
        here.rooms.snapshots.create, here.tenant_id, session_id, label=label, outlives_session=outlives_session
    )
    try:
        return await create(memory=memory is not False)
    except Unsupported:
        if memory:
            raise
        return await create()


async def named(here: Call, name: str) -> Snapshot | None:
    """What a client may mean that names it where a template is asked for."""
    return await here.rooms.snapshots.named(here.tenant_id, name.removesuffix(DEFAULT_TAG))


async def _ever(here: Call, sandbox_id: str) -> str | None:
    try:
        session = await here.rooms.sessions.by_slug(sandbox_id, is_ended=True)
    except NotFound:
        return None
    return session.id if session.tenant_id == here.tenant_id else None


def _shape(snapshot: Snapshot) -> dict[str, object]:
    return {"snapshotID": snapshot.id, "names": [snapshot.label + DEFAULT_TAG] if snapshot.label else []}
