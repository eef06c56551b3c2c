"""Routes of published apps."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from pydantic import AfterValidator, Field

from dovecote.api.rest.activity_shapes import HookRunShape, hook_run_shape
from dovecote.api.rest.here import After, AppName, Here, Limit
from dovecote.api.rest.shapes import AppInstanceShape, AppShape, Body, Page, StartShape, app_shape, duration
from dovecote.model.ids import parse_id

routes = APIRouter(prefix="/v1/apps", tags=["apps"])

Count = Annotated[int, Field(ge=0, le=1000)]
Positive = Annotated[int, Field(ge=1, le=1000)]
Idle = Annotated[float, Field(gt=0, le=86400)]


class NewApp(Body):
    session_id: Annotated[str, AfterValidator(lambda text: parse_id(text, "ses"))] = Field(
        description="Whose files become the app."
    )
    name: str | None = Field(
        None, description="Its host name. The same name again is a new revision, without downtime."
    )
    start: StartShape | None = Field(None, description="How it is started; the session's own if null.")
    minimum: Count | None = Field(None, description="Instances kept while nobody visits; 0 if never said.")
    maximum: Positive | None = Field(None, description="Most instances at once; 5 if never said.")
    target_concurrency: Positive | None = Field(
        None, description="Requests at once that one instance is meant to serve; 10 if never said."
    )
    idle_after_seconds: Idle | None = Field(
        None, description="Without a visitor for so long it goes to `minimum`; 60 if never said."
    )


class ChangedApp(Body):
    minimum: Count | None = None
    maximum: Positive | None = None
    target_concurrency: Positive | None = None
    idle_after_seconds: Idle | None = None


@routes.post("", status_code=201, summary="Publish a session's project")
async def publish_app(here: Here, new: NewApp) -> AppShape:
    app = await here.rooms.apps.publish(
        here.tenant_id,
        new.session_id,
        name=new.name,
        start=new.start.record() if new.start else None,
        minimum=new.minimum,
        maximum=new.maximum,
        target_concurrency=new.target_concurrency,
        idle_after=duration(new.idle_after_seconds),
    )
    return app_shape(app, here.rooms.addresses)


@routes.get("", summary="List apps, in pages")
async def list_apps(here: Here, after: After = None, limit: Limit = 100) -> Page[AppShape]:
    found = await here.rooms.apps.list(here.tenant_id, after=after, limit=limit)
    items = [app_shape(app, here.rooms.addresses) for app in found]
    return Page[AppShape](items=items, next=found[-1].id if len(found) == limit else None)


@routes.get("/{name}", summary="One app")
async def get_app(here: Here, name: AppName) -> AppShape:
    return app_shape(await here.rooms.apps.get(here.tenant_id, name), here.rooms.addresses)


@routes.patch("/{name}", summary="Change how it scales")
async def update_app(here: Here, name: AppName, change: ChangedApp) -> AppShape:
    app = await here.rooms.apps.update(
        here.tenant_id,
        name,
        minimum=change.minimum,
        maximum=change.maximum,
        target_concurrency=change.target_concurrency,
        idle_after=duration(change.idle_after_seconds),
    )
    return app_shape(app, here.rooms.addresses)


@routes.delete("/{name}", status_code=204, summary="Unpublish it")
async def unpublish_app(here: Here, name: AppName) -> None:
    await here.rooms.apps.unpublish(here.tenant_id, name)


@routes.get("/{name}/instances", summary="The instances that it has now")
async def list_app_instances(here: Here, name: AppName) -> Page[AppInstanceShape]:
    found = await here.rooms.apps.instances(here.tenant_id, name)
    return Page[AppInstanceShape](
        items=[
            AppInstanceShape(instance_id=each.instance_id, address=each.address, is_ready=each.is_ready)
            for each in found
        ],
        next=None,
    )


@routes.get("/{name}/hooks", summary="How the hooks of its function went last, in whichever instance")
async def list_app_hook_runs(here: Here, name: AppName) -> Page[HookRunShape]:
    app = await here.rooms.apps.get(here.tenant_id, name)
    runs = here.rooms.sessions.hooks.of(app.function_id)
    return Page[HookRunShape](items=[hook_run_shape(run) for run in runs], next=None)
