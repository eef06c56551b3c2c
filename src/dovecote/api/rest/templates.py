"""Routes of templates. Making one answers with NDJSON events as it goes on; leaving does not end it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import AfterValidator, BaseModel, Field

from dovecote.api.rest.here import After, Call, Here, Limit
from dovecote.api.rest.making import STREAMED, streamed, streamed_once_received, way_line
from dovecote.api.rest.shapes import Body, Page, StartShape, start_shape
from dovecote.api.uploads import Upload
from dovecote.control.templates import Done, Event, Prepared
from dovecote.model.ids import parse_template_name
from dovecote.model.records import Template
from dovecote.model.states import TemplateState
from dovecote.model.trees import Template as Own

routes = APIRouter(prefix="/v1", tags=["templates"])

ON_DEMAND = "on_demand"
TAR = "application/x-tar"
UPLOADS = (Upload("POST", "/v1/templates:upload"), Upload("POST", "/v1/templates:build"))
TemplateName = Annotated[str, Path(), AfterValidator(parse_template_name)]
Name = Annotated[str, Query(max_length=201, description="The template's name, or `name:tag`.")]
Port = Annotated[
    int | None, Query(ge=1, le=65535, description="What the image's command opens, where the image does not say.")
]


Spec = Annotated[str, Query(max_length=40, description="Of sandboxes that name none; their function's if empty.")]


class Tags(Body):
    tags: list[Annotated[str, Field(min_length=1, max_length=100)]] = Field(min_length=1, max_length=20)


class NewTemplate(Body):
    name: str = Field(description="1-100 of A-Z a-z 0-9 _ . -, or `name:tag`. One that is there is made anew.")
    reference: str = Field(min_length=1, max_length=600, description="An image in a registry: host/name:tag.")
    port: int | None = Field(
        None, ge=1, le=65535, description="What the image's command opens, where the image does not say."
    )


class TemplateShape(BaseModel):
    id: str | None = Field(description="Null for the installation's own.")
    name: str
    state: str = Field(description="building, ready, failed; on_demand: one that is made when it is first used.")
    usable: bool = Field(description="Functions can start from it; from what it was before, while it is made anew.")
    source: str = Field(description="The reference that it was made from, or archive, build, or an own one's name.")
    source_digest: str = Field(description="sha256 of the image's manifest; empty where there was no image.")
    digest: str | None = Field(description="Of its tree; revisions of functions pin it.")
    user: str | None = Field(description="Whom commands run as.")
    directory: str | None = Field(description="Where commands start.")
    env: dict[str, str]
    start: StartShape | None = Field(description="Of functions that name none.")
    files: int
    total_bytes: int
    error_code: str = Field(description="Why making it failed; empty when it did not.")
    reason: str
    build_id: str = Field(description="Of the making that it is the result of, or that is under way.")
    spec: str = Field(description="Of sandboxes that name none; empty leaves it to their function.")
    created_at: datetime | None
    updated_at: datetime | None


@routes.post(
    "/templates", summary="Make a template of an image in a registry", response_class=Response, responses=STREAMED
)
async def import_template(here: Here, new: NewTemplate) -> Response:
    events = await here.rooms.templates.pull(here.tenant_id, new.name, new.reference, port=new.port)
    return streamed(here, events, _line)


@routes.post(
    "/templates:upload",
    summary="Make a template of an archive of an image: the body, a plain tar",
    response_class=Response,
    responses=STREAMED,
    openapi_extra={"requestBody": {"content": {TAR: {}}}},
)
async def upload_template(here: Here, name: Name, request: Request, port: Port = None) -> Response:
    events = await here.rooms.templates.unpack(here.tenant_id, name, request.stream(), port=port)
    return await streamed_once_received(here, events, _line)


@routes.post(
    "/templates:build",
    summary="Make a template of a Dovecotefile and the files beside it: the body, a plain tar",
    response_class=Response,
    responses=STREAMED,
    openapi_extra={"requestBody": {"content": {TAR: {}}}},
)
async def build_template(here: Here, name: Name, request: Request, spec: Spec = "") -> Response:
    events = await here.rooms.templates.build(here.tenant_id, name, request.stream(), spec=spec)
    return await streamed_once_received(here, events, _line)


@routes.post(
    "/templates/{name}:prepare",
    summary="Make one of the installation's own now, and not when it is first used",
    response_class=Response,
    responses=STREAMED,
)
async def prepare_template(here: Here, name: TemplateName) -> Response:
    return await streamed_once_received(here, here.rooms.templates.prepare(name), _line)


@routes.get("/templates", summary="List templates, in pages; the installation's own come first")
async def list_templates(here: Here, after: After = None, limit: Limit = 100) -> Page[TemplateShape]:
    found = await here.rooms.templates.list(here.tenant_id, after=after, limit=limit)
    own = _own(here) if after is None else []
    items = [*own, *(template_shape(template) for template in found)]
    return Page[TemplateShape](items=items, next=found[-1].id if len(found) == limit else None)


@routes.get("/templates/{name}", summary="One template")
async def get_template(here: Here, name: TemplateName) -> TemplateShape:
    for own in _own(here):
        if own.name == name:
            return own
    return template_shape(await here.rooms.templates.get(here.tenant_id, name))


@routes.post("/templates/{name}/tags", summary="Give what it is now other names too: `name:tag`")
async def tag_template(here: Here, name: TemplateName, new: Tags) -> TemplateShape:
    return template_shape(await here.rooms.templates.tag(here.tenant_id, name, new.tags))


@routes.delete("/templates/{name}", status_code=204, summary="Remove it; functions that start from it keep its files")
async def delete_template(here: Here, name: TemplateName) -> None:
    await here.rooms.templates.delete(here.tenant_id, name)


async def _line(event: Event) -> Mapping[str, object]:
    if isinstance(event, Done):
        return {"type": "ready", "template": template_shape(event.template).model_dump()}
    if isinstance(event, Prepared):
        return {"type": "ready", "template": own_shape(event.template).model_dump()}
    return way_line(event)


def template_shape(template: Template) -> TemplateShape:
    inside = template.pinned
    return TemplateShape(
        id=template.id,
        name=template.name,
        state=template.state.value,
        usable=template.digest is not None,
        source=template.source,
        source_digest=template.source_digest,
        digest=template.digest,
        user=inside.user if inside else None,
        directory=inside.cwd if inside else None,
        env=inside.env if inside else {},
        start=start_shape(template.start),
        files=template.files,
        total_bytes=template.total_bytes,
        error_code=template.error_code,
        reason=template.reason,
        build_id=template.build_id,
        spec=template.spec,
        created_at=template.created_at,
        updated_at=template.updated_at,
    )


def _own(here: Call) -> list[TemplateShape]:
    """The installation's own, those among them that are made when they are first used too."""
    functions = here.rooms.functions
    made = [own_shape(template) for template in functions.bases.made()]
    return [*made, *(_on_demand(name) for name in functions.bases.not_made())]


def own_shape(template: Own) -> TemplateShape:
    inside = template.inside
    shape = _on_demand(template.name)
    known = {"state": TemplateState.READY.value, "digest": template.digest}
    return shape.model_copy(update={**known, "user": inside.user, "directory": inside.cwd, "env": inside.env})


def _on_demand(name: str) -> TemplateShape:
    return TemplateShape(
        id=None,
        name=name,
        state=ON_DEMAND,
        usable=True,
        source=name,
        source_digest="",
        digest=None,
        user=None,
        directory=None,
        env={},
        start=None,
        files=0,
        total_bytes=0,
        error_code="",
        reason="",
        build_id="",
        spec="",
        created_at=None,
        updated_at=None,
    )
