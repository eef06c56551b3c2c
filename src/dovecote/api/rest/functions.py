"""Routes of functions."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import Field

from dovecote.api.rest.here import After, FunctionName, Here, Limit
from dovecote.api.rest.shapes import Body, FunctionShape, MountShape, NetworkShape, Page, StartShape, function_shape
from dovecote.model.rules import SaveRules
from dovecote.model.serving import Affinity

routes = APIRouter(prefix="/v1", tags=["functions"])


class RulesShape(Body):
    """What its sessions do not save, as patterns of gitignore, relative to the home or absolute."""

    leave_out: list[str] = Field(default_factory=list, max_length=100)
    keep: list[str] = Field(default_factory=list, max_length=100, description="Wins over all that leaves out.")
    reinstall: str | None = Field(
        default=None, max_length=32768, description="Brings back what was left out; follows from lock files if null."
    )


class NewFunction(Body):
    name: str = Field(description="Its host name.")
    template: str = Field("base", description="Files that its instances start with.")
    spec: str = Field("small", description="nano, small, medium or large.")
    level: str | None = Field(None, description="Isolation level; the installation's own if null.")
    network: NetworkShape = Field(default_factory=NetworkShape)
    affinity_header: str = Field("x-dovecote-session", description="The header that names a request's session.")
    env: dict[str, str] = Field(default_factory=dict)
    start: StartShape | None = None
    mounts: list[MountShape] = Field(default_factory=list, max_length=32, description="In each of its instances.")
    rules: RulesShape = Field(default_factory=RulesShape)


@routes.post("/functions", status_code=201, summary="Define a function")
async def create_function(here: Here, new: NewFunction) -> FunctionShape:
    function = await here.rooms.functions.create(
        here.tenant_id,
        new.name,
        template=new.template,
        spec=new.spec,
        level=new.level,
        network=new.network.record(),
        affinity=Affinity(header=new.affinity_header),
        env=new.env,
        start=new.start.record() if new.start else None,
        mounts=await here.rooms.volumes.resolve(here.tenant_id, [mount.record() for mount in new.mounts]),
        rules=SaveRules(tuple(new.rules.leave_out), tuple(new.rules.keep), new.rules.reinstall),
    )
    return function_shape(function, here.rooms.addresses)


@routes.get("/functions", summary="List functions, in pages")
async def list_functions(here: Here, after: After = None, limit: Limit = 100) -> Page[FunctionShape]:
    found = await here.rooms.functions.list(here.tenant_id, after=after, limit=limit)
    items = [function_shape(function, here.rooms.addresses) for function in found]
    return Page[FunctionShape](items=items, next=found[-1].id if len(found) == limit else None)


@routes.get("/functions/{name}", summary="One function")
async def get_function(here: Here, name: FunctionName) -> FunctionShape:
    return function_shape(await here.rooms.functions.get(here.tenant_id, name), here.rooms.addresses)
