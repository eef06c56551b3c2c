"""Routes of a session's leases, and of why it is awake."""

from __future__ import annotations

from datetime import timedelta

from fastapi import APIRouter

from dovecote.api.rest.activity_shapes import ActivityShape, NewLease, activity_shape
from dovecote.api.rest.here import Here, SessionId
from dovecote.api.rest.shapes import SessionShape, session_shape

routes = APIRouter(prefix="/v1/sessions", tags=["sessions"])


@routes.post("/{session_id}/lease", summary="Wake it, and keep it awake for so long")
async def lease_session(here: Here, session_id: SessionId, new: NewLease) -> SessionShape:
    session = await here.rooms.sessions.lease(here.tenant_id, session_id, timedelta(seconds=new.seconds))
    return session_shape(session, here.rooms.addresses)


@routes.delete("/{session_id}/lease", summary="End its lease: from now on its use alone counts")
async def release_session(here: Here, session_id: SessionId) -> SessionShape:
    session = await here.rooms.sessions.release(here.tenant_id, session_id)
    return session_shape(session, here.rooms.addresses)


@routes.get("/{session_id}/activity", summary="Why it is awake or rests, and what happens to it next")
async def get_activity(here: Here, session_id: SessionId) -> ActivityShape:
    return activity_shape(await here.rooms.sessions.activity(here.tenant_id, session_id))
