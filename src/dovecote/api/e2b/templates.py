"""E2B's routes of templates: built step by step, named, tagged, removed. Their ids are their names."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Annotated
from uuid import NAMESPACE_OID, uuid5

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field

from dovecote.api.e2b.builds import Asked, Line
from dovecote.api.e2b.here import Call, Here
from dovecote.api.e2b.recipes import Build, bare
from dovecote.api.e2b.shapes import ENVD_VERSION, Body
from dovecote.api.e2b.snapshots import named
from dovecote.api.rooms import Rooms
from dovecote.api.uploads import Upload
from dovecote.control.templates import MAX_BYTES
from dovecote.errors import Invalid, NotFound, Unsupported
from dovecote.model.ids import parse_template_name
from dovecote.model.records import Template
from dovecote.model.sizes import MIB, SPECS, Limits
from dovecote.model.states import TemplateState

routes = APIRouter()
UPLOADS = (Upload("PUT", "/templates/uploads/{permit}", MAX_BYTES, "copy fewer files in one step"),)

DEFAULT = "default"
MOST_LINES = 100  # in one answer
STATES = {TemplateState.BUILDING: "building", TemplateState.READY: "ready", TemplateState.FAILED: "error"}

Name = Annotated[str, Path(alias="template_id", max_length=300)]
BuildId = Annotated[str, Path(max_length=100)]


class NewBuild(Body):
    name: str = Field("", max_length=300)
    alias: str = Field("", max_length=300)
    tags: list[Annotated[str, Field(min_length=1, max_length=100)]] = Field(default_factory=list, max_length=20)
    cpu_count: int | None = Field(None, ge=1)
    memory_mb: int | None = Field(None, alias="memoryMB", ge=1)

    def spec(self) -> str:
        """The smallest that has what is asked for. Raises Invalid (no_such_spec)."""
        if self.cpu_count is None and self.memory_mb is None:
            return ""
        cpus, memory = self.cpu_count or 0, (self.memory_mb or 0) * MIB
        fitting = [s for s in SPECS.values() if s.limits.cpus >= cpus and s.limits.memory_bytes >= memory]
        if not fitting:
            raise Invalid("no sandbox here is as large", code="no_such_spec", hint="there are " + ", ".join(SPECS))
        return min(fitting, key=lambda spec: (spec.limits.memory_bytes, spec.limits.cpus)).name


class Tagging(Body):
    target: str = Field(max_length=300)
    tags: list[Annotated[str, Field(min_length=1, max_length=100)]] = Field(min_length=1, max_length=20)


class Untagging(Body):
    name: str = Field(max_length=300)
    tags: list[Annotated[str, Field(min_length=1, max_length=100)]] = Field(min_length=1, max_length=20)


class Changed(Body):
    public: bool = False


# -- builds


@routes.post("/v3/templates", status_code=202)
@routes.post("/v2/templates", status_code=202)
async def ask_for_build(here: Here, new: NewBuild) -> Response:
    base, _, tag = bare(new.name or new.alias).partition(":")
    tags = list(dict.fromkeys([*([tag] if tag else []), *new.tags])) or [DEFAULT]
    first, *others = [parse_template_name(f"{base}:{each}") for each in tags]
    asked = here.builds.ask(
        here.tenant_id, first, tuple(each.partition(":")[2] or DEFAULT for each in others), new.spec()
    )
    shape = {"templateID": base, "buildID": asked.build_id, "public": False, "names": [base], "aliases": [base]}
    return JSONResponse(shape | {"tags": tags}, 202)


@routes.get("/templates/{template_id}/files/{name}", status_code=201)
async def ask_to_send(here: Here, request: Request, template_id: Name, name: str) -> Response:
    """Whether the files of a step were sent before, and where they are sent."""
    is_there = here.rooms.templates.sent.find(here.tenant_id, name) is not None
    permit = here.permits.give(here.tenant_id, name)
    scheme = request.headers.get("x-forwarded-proto", "http")
    url = f"{scheme}://{request.headers.get('host', '')}/templates/uploads/{permit}"
    return JSONResponse({"present": is_there, "url": url}, 201)


@routes.put("/templates/uploads/{permit}")
async def send(request: Request, permit: str) -> Response:
    """Needs no key: the address is the permission."""
    rooms: Rooms = request.app.state.rooms
    given = request.app.state.permits.look(permit)
    await rooms.templates.sent.keep(given.tenant_id, given.name, request.stream())
    return Response(status_code=200)


@routes.post("/v2/templates/{template_id}/builds/{build_id}", status_code=202)
async def begin_build(here: Here, template_id: Name, build_id: BuildId, build: Build) -> Response:
    here.builds.begin(here.builds.get(here.tenant_id, build_id), build)
    return Response(status_code=202)


@routes.get("/templates/{template_id}/builds/{build_id}/status")
async def get_status(
    here: Here,
    template_id: Name,
    build_id: BuildId,
    offset: Annotated[int, Query(alias="logsOffset", ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=MOST_LINES)] = MOST_LINES,
) -> Response:
    asked = await _asked(here, template_id, build_id)
    shape: dict[str, object] = {
        "templateID": template_id,
        "buildID": build_id,
        "status": asked.state,
        "logs": [],
        "logEntries": [_line(each) for each in asked.lines[offset : offset + limit]],
    }
    if asked.state == "error":
        last = [_line(each) for each in asked.lines if each.level == "error"]
        shape["reason"] = {"message": asked.reason, "step": asked.step, "logEntries": last}
    return JSONResponse(shape)


@routes.get("/templates/{template_id}/builds/{build_id}/logs")
async def get_logs(here: Here, template_id: Name, build_id: BuildId) -> Response:
    asked = await _asked(here, template_id, build_id)
    return JSONResponse({"logs": [_line(each) for each in asked.lines[-MOST_LINES:]]})


async def _asked(here: Call, template_id: str, build_id: str) -> Asked:
    """The build; of one that a restart forgot, what its template's record says."""
    try:
        return here.builds.get(here.tenant_id, build_id)
    except NotFound:
        for template in await _of(here, template_id):
            if template.build_id == build_id:
                spec = template.spec
                state = STATES[template.state]
                return Asked(here.tenant_id, template.name, (), spec, build_id, state, template.reason)
        raise


def _line(line: Line) -> dict[str, str]:
    return {"timestamp": line.at.isoformat(), "message": line.message, "level": line.level, "step": line.step}


# -- tags; ahead of what would take `tags` for a template


@routes.post("/templates/tags", status_code=201)
async def tag_template(here: Here, new: Tagging) -> Response:
    template = await here.rooms.templates.tag(here.tenant_id, bare(new.target), new.tags)
    return JSONResponse({"tags": new.tags, "buildID": _build_id(template)}, 201)


@routes.delete("/templates/tags", status_code=204)
async def untag_template(here: Here, old: Untagging) -> None:
    base = bare(old.name).partition(":")[0]
    for tag in old.tags:
        await here.rooms.templates.delete(here.tenant_id, parse_template_name(f"{base}:{tag}"))


@routes.get("/templates/{template_id}/tags")
async def list_tags(here: Here, template_id: Name) -> Response:
    found = await _of(here, template_id)
    if not found:
        raise _none(template_id)
    shapes = [
        {
            "tag": each.name.partition(":")[2] or DEFAULT,
            "buildID": _build_id(each),
            "createdAt": each.updated_at.isoformat(),
        }
        for each in found
        if each.digest is not None
    ]
    return JSONResponse(shapes)


# -- what is there


@routes.get("/v2/templates")
@routes.get("/templates")
async def list_templates(here: Here) -> Response:
    """Tags are not listed apart."""
    shapes = [_own_shape(each.name, each.digest) for each in here.rooms.functions.bases.made()]
    bases: dict[str, list[Template]] = {}
    for template in await _all(here):
        bases.setdefault(template.name.partition(":")[0], []).append(template)
    return JSONResponse([*shapes, *(_shape(name, of) for name, of in bases.items())])


@routes.get("/templates/aliases/{alias}")
async def get_alias(here: Here, alias: Annotated[str, Path(max_length=300)]) -> Response:
    base = bare(alias).partition(":")[0]
    if base not in _own(here) and not await _of(here, base):
        raise _none(alias)
    return JSONResponse({"templateID": base, "public": base in _own(here)})


@routes.get("/templates/{template_id}")
async def get_template(here: Here, template_id: Name) -> Response:
    found = await _of(here, template_id)
    if not found:
        raise _none(template_id)
    shape = _shape(bare(template_id).partition(":")[0], found)
    return JSONResponse(shape | {"builds": [_build(each) for each in found]})


@routes.delete("/templates/{template_id}", status_code=204)
async def delete_template(here: Here, template_id: Name) -> None:
    """With all its tags, or one of them; a snapshot too, which clients take for a template."""
    name = bare(template_id)
    found = [each for each in await _of(here, name) if ":" not in name or each.name == parse_template_name(name)]
    snapshot = None if found else await named(here, template_id)
    if snapshot is not None:
        await here.rooms.snapshots.delete(here.tenant_id, snapshot.session_id, snapshot.id)
    elif not found:
        raise _none(template_id)
    for template in found:
        await here.rooms.templates.delete(here.tenant_id, template.name)


@routes.patch("/v2/templates/{template_id}")
@routes.patch("/templates/{template_id}")
async def change_template(here: Here, template_id: Name, change: Changed) -> Response:
    if not await _of(here, template_id):
        raise _none(template_id)
    if change.public:
        raise Unsupported("templates are their tenant's alone", code="no_public_templates")
    return JSONResponse({"names": [bare(template_id)]})


# -- inside


async def _all(here: Call) -> list[Template]:
    return list(await here.rooms.templates.list(here.tenant_id, limit=1000))


async def _of(here: Call, name: str) -> list[Template]:
    """The templates of one name, whatever their tags; the one without comes first."""
    base = bare(name).partition(":")[0]
    return sorted(
        (each for each in await _all(here) if each.name.partition(":")[0] == base), key=lambda each: each.name
    )


def _own(here: Call) -> set[str]:
    return {each.name for each in here.rooms.functions.bases.made()}


def _none(name: str) -> NotFound:
    return NotFound(f"no template {name[:60]!r}", code="no_such_template", hint="`dovecote template ls` lists them")


def _build_id(template: Template) -> str:
    return template.build_id or str(uuid5(NAMESPACE_OID, template.digest or template.id))


def _build(template: Template) -> dict[str, object]:
    limits = _limits(template.spec)
    return {
        "buildID": _build_id(template),
        "status": STATES[template.state],
        "createdAt": template.created_at.isoformat(),
        "updatedAt": template.updated_at.isoformat(),
        "cpuCount": math.ceil(limits.cpus),
        "memoryMB": limits.memory_bytes // MIB,
    }


def _shape(name: str, of: list[Template]) -> dict[str, object]:
    newest = max(of, key=lambda each: each.updated_at)
    moments = (min(each.created_at for each in of), newest.updated_at)
    return _common(name, _build_id(newest), STATES[newest.state], _limits(newest.spec), moments)


def _own_shape(name: str, digest: str) -> dict[str, object]:
    epoch = datetime.fromtimestamp(0, UTC)
    shape = _common(name, str(uuid5(NAMESPACE_OID, digest)), "ready", _limits(""), (epoch, epoch))
    return shape | {"public": True, "isDefault": True}


def _common(
    name: str, build_id: str, state: str, limits: Limits, moments: tuple[datetime, datetime]
) -> dict[str, object]:
    return {
        "templateID": name,
        "buildID": build_id,
        "buildStatus": state,
        "cpuCount": math.ceil(limits.cpus),
        "memoryMB": limits.memory_bytes // MIB,
        "diskSizeMB": limits.disk_bytes // MIB,
        "public": False,
        "aliases": [name],
        "names": [name],
        "createdAt": moments[0].isoformat(),
        "updatedAt": moments[1].isoformat(),
        "createdBy": None,
        "lastSpawnedAt": None,
        "spawnCount": 0,
        "buildCount": 1,
        "envdVersion": ENVD_VERSION,
    }


def _limits(spec: str) -> Limits:
    return SPECS[spec or "small"].limits
