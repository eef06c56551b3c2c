"""What each route is given: the caller's tenant, the rooms, and what this wire keeps of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Path, Request

from dovecote.api.e2b.auth import secret_of
from dovecote.api.e2b.builds import Builds
from dovecote.api.e2b.permits import Permits
from dovecote.api.e2b.repeating import Repeating
from dovecote.api.e2b.shapes import is_there
from dovecote.api.rooms import Rooms
from dovecote.errors import NotFound
from dovecote.model.records import Revision, Session


@dataclass(frozen=True)
class Call:
    """One authenticated request."""

    tenant_id: str
    rooms: Rooms
    repeating: Repeating
    builds: Builds
    permits: Permits
    domain: str  # below which the ports of sandboxes are, as this client reaches them

    async def revision(self, session: Session) -> Revision:
        return await self.rooms.functions.revision(self.tenant_id, session.revision_id)


async def call(request: Request) -> Call:
    state = request.app.state
    rooms: Rooms = state.rooms
    principal = await rooms.tenancy.authenticate(secret_of(request.headers))
    return Call(principal.tenant_id, rooms, state.repeating, state.builds, state.permits, _domain(request, rooms))


def _domain(request: Request, rooms: Rooms) -> str:
    """With the port that the client came by, so that `get_host` names an address that can be reached."""
    scheme = request.headers.get("x-forwarded-proto", "http")
    return rooms.addresses.boxes(scheme)


async def found(here: Call, sandbox_id: str) -> Session:
    """The tenant's sandbox of that id. Raises NotFound, also for one that has ended."""
    session = await here.rooms.sessions.by_slug(sandbox_id)
    if session.tenant_id != here.tenant_id or not is_there(session):
        raise NotFound(f"no sandbox {sandbox_id[:60]!r}", code="no_such_session", hint="it may have ended")
    return session


Here = Annotated[Call, Depends(call)]
SandboxId = Annotated[str, Path(max_length=100)]
