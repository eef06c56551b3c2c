"""E2B's routes of sandboxes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Annotated, TypeVar
from urllib.parse import parse_qsl, unquote

from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import JSONResponse

from dovecote.api.e2b import errors
from dovecote.api.e2b.here import Call, Here, SandboxId, found
from dovecote.api.e2b.recipes import bare
from dovecote.api.e2b.shapes import (
    Connect,
    Egress,
    Fork,
    NewSandbox,
    OldSandbox,
    Pause,
    Refresh,
    Resume,
    Timeout,
    detail_shape,
    is_there,
    listed_shape,
    sandbox_shape,
    span,
)
from dovecote.api.e2b.snapshots import named, taken
from dovecote.control.sessions import Wishes
from dovecote.errors import Conflict, DovecoteError, Invalid, NotFound
from dovecote.model.records import Session

routes = APIRouter()

T = TypeVar("T")
STAYS = timedelta(days=1)  # E2B's sandboxes rest when they are told to, not when they are idle
PAGE = 100
STATES = ("running", "paused")
# Names that E2B's clients ask for without having made them.
KNOWN = {"": None, "base": None, "code-interpreter-v1": "code", "code-interpreter": "code"}

Key = Annotated[str | None, Header(alias="idempotency-key")]
Metadata = Annotated[str | None, Query(max_length=20_000)]
States = Annotated[list[str] | None, Query(max_length=10)]
Limit = Annotated[int, Query(ge=1, le=1000)]
Token = Annotated[str | None, Query(alias="nextToken", max_length=200)]


@routes.post("/sandboxes")
async def create_old(here: Here, new: OldSandbox, key: Key = None) -> Response:
    return await _create(here, new, key)


@routes.post("/v2/sandboxes")
async def create(here: Here, new: NewSandbox, key: Key = None) -> Response:
    return await _create(here, new, key)


async def _create(here: Call, new: NewSandbox, key: str | None) -> Response:
    async def act() -> str:
        return (await _open(here, new)).id

    session_id = await here.repeating.once(here.tenant_id, key, json.dumps(new.model_dump()).encode(), act)
    return await _answer(here, await here.rooms.sessions.get(here.tenant_id, session_id), 201)


async def _open(here: Call, new: NewSandbox) -> Session:
    new.check()
    rooms = here.rooms
    wishes = Wishes(
        idle_after=STAYS,
        quiet_after=STAYS,
        timeout=span(new.timeout),
        at_timeout=new.at_timeout(),
        resumes_on_use=new.auto_resume.enabled,
        needs_token=new.secure,
        env=new.env_vars,
        metadata=new.metadata,
        network=new.network_policy(),
        mounts=await rooms.volumes.resolve(here.tenant_id, new.mounts(), user="default"),
    )
    try:
        wishes["template"] = _template(here, bare(new.template_id))
        session = await rooms.sessions.create(here.tenant_id, **wishes)
    except NotFound as error:
        snapshot = await named(here, new.template_id)
        if error.code != "no_such_template" or snapshot is None:
            raise
        wishes["template"] = None
        session = await rooms.snapshots.begin(here.tenant_id, snapshot.id, **wishes)
    try:
        # Clients take it that what their template starts is there.
        return await rooms.sessions.wake(here.tenant_id, session.id)
    except DovecoteError:
        await rooms.sessions.delete(here.tenant_id, session.id)  # nobody has its id yet
        raise


def _template(here: Call, name: str) -> str | None:
    """Ours of that name; None is what sandboxes have that name none."""
    if name not in KNOWN:
        return name
    functions = here.rooms.functions
    own = {*functions.bases.not_made(), *(each.name for each in functions.bases.made())}
    return KNOWN[name] if KNOWN[name] in own else None


@routes.get("/sandboxes")
async def list_running(here: Here, metadata: Metadata = None) -> Response:
    sessions = _matching(here, ["running"], metadata, after=None)
    return JSONResponse([await _listed(here, session) async for session in sessions])


@routes.get("/v2/sandboxes")
async def list_sandboxes(
    here: Here,
    metadata: Metadata = None,
    state: States = None,
    limit: Limit = PAGE,
    token: Token = None,
    order: Annotated[str, Query(pattern="asc|desc")] = "desc",
    template: Annotated[str | None, Query(max_length=200)] = None,
    started_after: Annotated[datetime | None, Query(alias="startedAfter")] = None,
) -> Response:
    states = [each for text in state or [",".join(STATES)] for each in text.split(",") if each]
    items: list[dict[str, object]] = []
    last = None
    async for session in _matching(here, states, metadata, after=token, newest_first=order == "desc"):
        if started_after is not None and session.created_at <= _in_a_zone(started_after):
            continue
        shape = await _listed(here, session)
        if template is not None and shape["templateID"] != template:
            continue
        if len(items) == limit:
            return JSONResponse(items, headers={"x-next-token": str(last)})
        items.append(shape)
        last = session.id
    return JSONResponse(items)


async def _matching(
    here: Call, states: list[str], metadata: str | None, *, after: str | None, newest_first: bool = True
) -> AsyncIterator[Session]:
    if not set(states) <= set(STATES):
        raise Invalid(f"a state is one of {', '.join(STATES)}")
    # Clients quote names and texts, and then the whole as a query.
    pairs = parse_qsl(metadata or "", keep_blank_values=True)
    wanted = {unquote(name): unquote(text) for name, text in pairs}
    is_paused = None if set(states) == set(STATES) else states == ["paused"]
    while True:
        page = await here.rooms.sessions.list(
            here.tenant_id,
            function="sandbox",
            metadata=wanted,
            is_paused=is_paused,
            after=after,
            newest_first=newest_first,
        )
        for session in page:
            if is_there(session):
                yield session
        if len(page) < PAGE:
            return
        after = page[-1].id


async def _listed(here: Call, session: Session) -> dict[str, object]:
    shape = listed_shape(session, await here.revision(session))
    mounts = await here.rooms.volumes.names(here.tenant_id, session.mounts)
    return shape | {"volumeMounts": [{"name": each.volume, "path": each.at} for each in mounts]}


@routes.get("/sandboxes/{sandbox_id}")
async def get_sandbox(here: Here, sandbox_id: SandboxId) -> Response:
    session = await found(here, sandbox_id)
    detail = detail_shape(session, await here.revision(session), here.domain)
    return JSONResponse(await _listed(here, session) | detail)


@routes.delete("/sandboxes/{sandbox_id}", status_code=204)
async def delete_sandbox(here: Here, sandbox_id: SandboxId) -> None:
    await here.rooms.sessions.delete(here.tenant_id, (await found(here, sandbox_id)).id)


@routes.post("/sandboxes/{sandbox_id}/timeout", status_code=204)
async def set_timeout(here: Here, sandbox_id: SandboxId, new: Timeout) -> None:
    session = await found(here, sandbox_id)
    if session.is_paused:
        raise NotFound("the sandbox is paused", code="paused", hint="connect to it first")
    await here.rooms.sessions.set_timeout(here.tenant_id, session.id, span(new.timeout))


@routes.post("/sandboxes/{sandbox_id}/refreshes", status_code=204)
async def refresh(here: Here, sandbox_id: SandboxId, new: Refresh) -> None:
    """Later, never sooner."""
    session = await found(here, sandbox_id)
    wanted = datetime.now(UTC) + span(new.duration)
    if not session.is_paused and (session.timeout_at is None or session.timeout_at < wanted):
        await here.rooms.sessions.set_timeout(here.tenant_id, session.id, span(new.duration))


@routes.post("/sandboxes/{sandbox_id}/pause", status_code=204)
async def pause(here: Here, sandbox_id: SandboxId, how: Pause | None = None) -> None:
    session = await found(here, sandbox_id)
    is_whole = how is None or how.memory
    await here.rooms.sessions.pause(here.tenant_id, session.id, hibernate=None if is_whole else False)
    if not is_whole:
        await here.rooms.sessions.park(here.tenant_id, session.id)


@routes.post("/v2/sandboxes/{sandbox_id}/connect")
@routes.post("/sandboxes/{sandbox_id}/connect")
async def connect(here: Here, sandbox_id: SandboxId, how: Connect) -> Response:
    session = await found(here, sandbox_id)
    return await _resume(here, session, how.timeout, memory=how.memory)


@routes.post("/sandboxes/{sandbox_id}/resume")
async def resume(here: Here, sandbox_id: SandboxId, how: Resume) -> Response:
    session = await found(here, sandbox_id)
    if not session.is_paused:
        raise Conflict("the sandbox is running already", code="running")
    return await _resume(here, session, how.timeout, memory=how.memory)


async def _resume(here: Call, session: Session, timeout: int, *, memory: bool) -> Response:
    was_paused = session.is_paused
    sessions = here.rooms.sessions
    session = await sessions.resume(here.tenant_id, session.id, at_least=span(timeout), restart=not memory)
    return await _answer(here, session, 201 if was_paused else 200)


@routes.post("/sandboxes/{sandbox_id}/fork")
async def fork(here: Here, sandbox_id: SandboxId, how: Fork) -> Response:
    """All forks begin with the same files, and processes where the level can; each succeeds or fails by itself."""
    source = await found(here, sandbox_id)
    rooms = here.rooms
    snapshot = await taken(here, source.id, label="fork")
    results: list[dict[str, object]] = []
    for _ in range(how.count):
        wishes = Wishes(
            idle_after=source.idle_after,
            quiet_after=source.quiet_after,
            timeout=span(how.timeout),
            at_timeout=source.at_timeout,
            resumes_on_use=source.resumes_on_use,
            needs_token=source.needs_token,
            metadata=source.metadata,
            mounts=source.mounts,
        )
        try:
            made = await rooms.snapshots.begin(here.tenant_id, snapshot.id, **wishes)
            results.append({"sandbox": sandbox_shape(made, await here.revision(made), here.domain)})
        except DovecoteError as error:
            results.append({"error": errors.body_of(error)})
    await rooms.snapshots.delete(here.tenant_id, source.id, snapshot.id)
    return JSONResponse(results, 201)


@routes.put("/sandboxes/{sandbox_id}/network", status_code=204)
async def set_network(here: Here, sandbox_id: SandboxId, new: Egress) -> None:
    session = await found(here, sandbox_id)
    await here.rooms.sessions.set_network(here.tenant_id, session.id, new.policy())


async def _answer(here: Call, session: Session, status: int) -> Response:
    return JSONResponse(sandbox_shape(session, await here.revision(session), here.domain), status)


def _in_a_zone(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
