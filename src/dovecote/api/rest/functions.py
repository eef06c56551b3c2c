"""Routes of functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any, TypeVar, cast

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from dovecote.api.rest.activity_shapes import HookRunShape, hook_run_shape
from dovecote.api.rest.here import After, Call, FunctionName, Here, Limit
from dovecote.api.rest.making import STREAMED, streamed_once_received, way_line
from dovecote.api.rest.serving import (
    AffinityShape,
    HooksShape,
    InvokingShape,
    SharingShape,
    affinity_shape,
    hooks_shape,
    invoking_shape,
    sharing_shape,
)
from dovecote.api.rest.shapes import (
    Body,
    MountShape,
    NetworkShape,
    NewMount,
    Page,
    StartShape,
    network_shape,
    start_shape,
)
from dovecote.api.uploads import Upload
from dovecote.control.functions import Runs
from dovecote.control.templates import Deployed, OnTheWay
from dovecote.errors import Invalid
from dovecote.model.records import Function, Revision
from dovecote.model.rules import SaveRules
from dovecote.model.serving import Affinity

routes = APIRouter(prefix="/v1", tags=["functions"])

UPLOADS = (Upload("PUT", "/v1/functions/{name}/files"),)

Shape = TypeVar("Shape", bound=Body)


class RulesShape(Body):
    """What its sessions do not save, as patterns of gitignore, relative to the home or absolute."""

    leave_out: list[str] = Field(default_factory=list, max_length=100)
    keep: list[str] = Field(default_factory=list, max_length=100, description="Wins over all that leaves out.")
    reinstall: str | None = Field(
        default=None, max_length=32768, description="Brings back what was left out; follows from lock files if null."
    )

    def record(self) -> SaveRules:
        return SaveRules(tuple(self.leave_out), tuple(self.keep), self.reinstall)


class RevisionChange(Body):
    """What makes a new revision; what is not there stays as it is."""

    template: str = Field("base", description="Files that its instances start with; those put over another one go.")
    spec: str = Field("small", description="nano, small, medium or large.")
    level: str | None = Field(None, description="Isolation level; the installation's own if null.")
    network: NetworkShape = Field(default_factory=NetworkShape)
    env: dict[str, str] = Field(default_factory=dict)
    start: StartShape | None = None
    mounts: list[NewMount] = Field(default_factory=list, max_length=32, description="In each of its instances.")
    rules: RulesShape = Field(default_factory=RulesShape)
    sharing: SharingShape = SharingShape()
    hooks: HooksShape = Field(default_factory=HooksShape)


class FunctionChange(RevisionChange):
    """What it serves, and how, may change by parts: `{"affinity": {"ttl": 60}}` leaves the modes as they are."""

    affinity: AffinityShape = AffinityShape()
    affinity_header: str | None = Field(None, max_length=100, description="Short for `affinity` with this `header`.")
    invoking: InvokingShape = InvokingShape()
    public: bool = Field(False, description="Whether anybody may call it, at its public address.")


class NewFunction(FunctionChange):
    name: str = Field(description="Its host name.")


class UpdatedFunction(FunctionChange):
    files: int | None = Field(
        default=None, ge=1, lt=1 << 31, description="The number of a revision of it, whose files it shall have."
    )


class Earlier(Body):
    revision: int = Field(ge=1, lt=1 << 31, description="The number of the one that it shall run.")


class RevisionShape(BaseModel):
    id: str
    number: int
    is_current: bool
    template: str
    template_digest: str = Field(description="Of the tree that it starts with, whatever the name means by now.")
    spec: str
    level: str
    network: NetworkShape
    env: dict[str, str]
    start: StartShape | None
    mounts: list[MountShape]
    rules: RulesShape
    sharing: SharingShape
    hooks: HooksShape
    created_at: datetime


class FunctionShape(BaseModel):
    id: str
    name: str
    address: str = Field(description="Called with a key.")
    path_address: str = Field(description="The same on the bare host.")
    public_address: str | None = Field(description="Called by anybody; null unless it is public.")
    public: bool
    affinity: AffinityShape
    affinity_header: str
    invoking: InvokingShape
    revision_id: str
    revision: RevisionShape = Field(description="The current one.")
    created_at: datetime


@routes.post("/functions", status_code=201, summary="Define a function")
async def create_function(here: Here, new: NewFunction) -> FunctionShape:
    function = await here.rooms.functions.create(
        here.tenant_id,
        new.name,
        affinity=_affinity(Affinity(), new),
        invoking=new.invoking.record(),
        is_public=new.public,
        **await _runs(here, new, RevisionChange.model_fields.keys()),
    )
    return await function_shape(here, function)


@routes.get("/functions", summary="List functions, in pages")
async def list_functions(here: Here, after: After = None, limit: Limit = 100) -> Page[FunctionShape]:
    found = await here.rooms.functions.list(here.tenant_id, after=after, limit=limit)
    items = [await function_shape(here, function) for function in found]
    return Page[FunctionShape](items=items, next=found[-1].id if len(found) == limit else None)


@routes.get("/functions/{name}", summary="One function")
async def get_function(here: Here, name: FunctionName) -> FunctionShape:
    return await function_shape(here, await here.rooms.functions.get(here.tenant_id, name))


@routes.patch("/functions/{name}", summary="Change it; what it runs becomes a new revision, for new sessions")
async def update_function(here: Here, name: FunctionName, change: UpdatedFunction) -> FunctionShape:
    function = await here.rooms.functions.get(here.tenant_id, name)
    given = change.model_fields_set
    current = await here.rooms.functions.revision(here.tenant_id, function.revision_id)
    if "sharing" in given:
        change.sharing = _merged(sharing_shape(current.sharing), change.sharing)
    if "hooks" in given:
        change.hooks = _merged(hooks_shape(current.hooks), change.hooks)
    function = await here.rooms.functions.update(
        function,
        affinity=_affinity(function.affinity, change) if given & {"affinity", "affinity_header"} else None,
        invoking=_merged(invoking_shape(function.invoking), change.invoking).record() if "invoking" in given else None,
        is_public=change.public if "public" in given else None,
        files=change.files,
        **await _runs(here, change, given & RevisionChange.model_fields.keys()),
    )
    return await function_shape(here, function)


@routes.delete("/functions/{name}", status_code=204, summary="Remove it, and end its sessions and instances")
async def delete_function(here: Here, name: FunctionName) -> None:
    await here.rooms.deployments.remove(here.tenant_id, name)


@routes.get("/functions/{name}/revisions", summary="What it runs and ran, the newest first, in pages")
async def list_revisions(
    here: Here, name: FunctionName, after: After = None, limit: Limit = 100
) -> Page[RevisionShape]:
    function, found = await here.rooms.functions.revisions(here.tenant_id, name, after=after, limit=limit)
    items = [await revision_shape(here, function, revision) for revision in found]
    return Page[RevisionShape](items=items, next=found[-1].id if len(found) == limit else None)


@routes.get("/functions/{name}/hooks", summary="How its hooks went last, in whichever instance")
async def list_hook_runs(here: Here, name: FunctionName) -> Page[HookRunShape]:
    function = await here.rooms.functions.get(here.tenant_id, name)
    runs = here.rooms.sessions.hooks.of(function.id)
    return Page[HookRunShape](items=[hook_run_shape(run) for run in runs], next=None)


@routes.post("/functions/{name}/rollback", summary="Let new sessions run another of its revisions")
async def rollback_function(here: Here, name: FunctionName, to: Earlier) -> FunctionShape:
    function = await here.rooms.functions.get(here.tenant_id, name)
    return await function_shape(here, await here.rooms.functions.rollback(function, to.revision))


@routes.put(
    "/functions/{name}/files",
    summary="Put files over its template: the body, a tar or zip of a directory; a new revision",
    response_class=Response,
    responses=STREAMED,
    openapi_extra={"requestBody": {"content": {"application/x-tar": {}, "application/zip": {}}}},
)
async def put_files(
    here: Here,
    name: FunctionName,
    request: Request,
    template: Annotated[str | None, Query(max_length=201, description="Its own if it is not named.")] = None,
    build: Annotated[str, Query(description="A command that runs once, in the files.")] = "",
    current: Annotated[bool, Query(description="Whether new sessions get it; if not, a change may name it.")] = True,
) -> Response:
    function = await here.rooms.functions.get(here.tenant_id, name)
    events = await here.rooms.deployments.files.put(
        function, request.stream(), template=template, build=build, is_current=current
    )

    async def line(event: OnTheWay | Deployed) -> Mapping[str, object]:
        if not isinstance(event, Deployed):
            return way_line(event)
        function = await here.rooms.functions.get(here.tenant_id, name)
        return {"type": "ready", "revision": (await revision_shape(here, function, event.revision)).model_dump()}

    return await streamed_once_received(here, events, line)


async def _runs(here: Call, change: RevisionChange, names: Any) -> Runs:
    """The named ones of what a revision says, as records."""
    runs: dict[str, Any] = {}
    for name in names:
        value = getattr(change, name)
        if name == "mounts":
            value = await here.rooms.volumes.resolve(here.tenant_id, [mount.record() for mount in value])
        elif isinstance(value, Body):
            value = cast(Any, value).record()
        runs[name] = value
    return cast(Runs, runs)


def _affinity(current: Affinity, change: FunctionChange) -> Affinity:
    """Raises Invalid when the header is named twice."""
    named = change.affinity_header
    affinity = _merged(affinity_shape(current), change.affinity).record()
    if named is None:
        return affinity
    if "header" in change.affinity.model_fields_set and change.affinity.header.lower() != named.lower():
        raise Invalid("affinity_header and affinity.header name two headers", hint="leave one of them out")
    return replace(affinity, header=named)


def _merged(current: Shape, change: Shape) -> Shape:
    given = {name: getattr(change, name) for name in change.model_fields_set}
    return current.model_copy(update=given)


async def function_shape(here: Call, function: Function) -> FunctionShape:
    addresses = here.rooms.addresses
    revision = await here.rooms.functions.revision(here.tenant_id, function.revision_id)
    return FunctionShape(
        id=function.id,
        name=function.name,
        address=addresses.function(function.name),
        path_address=addresses.function_path(function.name),
        public_address=addresses.function(function.slug) if function.is_public else None,
        public=function.is_public,
        affinity=affinity_shape(function.affinity),
        affinity_header=function.affinity.header,
        invoking=invoking_shape(function.invoking),
        revision_id=function.revision_id,
        revision=await revision_shape(here, function, revision),
        created_at=function.created_at,
    )


async def revision_shape(here: Call, function: Function, revision: Revision) -> RevisionShape:
    rules = revision.rules
    shown = await here.rooms.volumes.names(here.tenant_id, revision.mounts) if revision.mounts else ()
    return RevisionShape(
        id=revision.id,
        number=revision.number,
        is_current=revision.id == function.revision_id,
        template=revision.template_name,
        template_digest=revision.template,
        spec=revision.spec,
        level=revision.level,
        network=network_shape(revision.network),
        env=revision.env,
        start=start_shape(revision.start),
        mounts=[MountShape.of(mount) for mount in shown],
        rules=RulesShape(leave_out=[*rules.leave_out], keep=[*rules.keep], reinstall=rules.reinstall),
        sharing=sharing_shape(revision.sharing),
        hooks=hooks_shape(revision.hooks),
        created_at=revision.created_at,
    )
