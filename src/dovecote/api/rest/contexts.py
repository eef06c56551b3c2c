"""Routes of code contexts. What an execution says is NDJSON, as it is said."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Response
from pydantic import AfterValidator, BaseModel, Field

from dovecote.api.rest.here import Here, SessionId
from dovecote.api.rest.lines import NDJSON, lasting, line
from dovecote.api.rest.shapes import Body, Page, shown
from dovecote.control.sandboxes import (
    Accepted,
    Began,
    Context,
    Ended,
    Fault,
    Happening,
    Printed,
    Result,
    Truncated,
)
from dovecote.model.ids import parse_id

routes = APIRouter(prefix="/v1/sessions/{session_id}", tags=["contexts"])

STREAMED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "NDJSON: `accepted`, `began`, `output`, `result`, `fault`, `truncated`, at last `ended`.",
        "content": {NDJSON: {}},
    }
}
Language = Annotated[str, Field(max_length=60, description="python, javascript, typescript, or a kernel's there.")]
ContextId = Annotated[str, Path(description="`ctx_...`"), AfterValidator(lambda text: parse_id(text, "ctx"))]
ExecutionId = Annotated[str, Path(description="`exe_...`"), AfterValidator(lambda text: parse_id(text, "exe"))]


class NewContext(Body):
    language: Language = "python"
    cwd: str | None = Field(None, description="The user's home if null.")
    user: str | None = Field(None, description="The template's own user if null.")
    env: dict[str, str] = Field(default_factory=dict)


class NewExecution(Body):
    code: str
    env: dict[str, str] = Field(default_factory=dict, description="Variables during this execution only.")
    timeout_seconds: float = Field(300, gt=0, description="It is interrupted after running so long.")
    max_output_bytes: int = Field(8 << 20, ge=1, le=16 << 20, description="What it may say; the rest is dropped.")

    def arguments(self) -> dict[str, Any]:
        return {
            "code": self.code,
            "env": self.env,
            "timeout": self.timeout_seconds,
            "max_output": self.max_output_bytes,
        }


class NewDefaultExecution(NewExecution):
    language: Language = "python"


class Interrupt(Body):
    execution: Annotated[str, AfterValidator(lambda text: parse_id(text, "exe"))] | None = Field(
        None, description="Only this one, running or waiting; what runs if null."
    )


class ContextShape(BaseModel):
    id: str
    language: str
    cwd: str
    user: str
    is_default: bool = Field(description="Used by executions that name a language only.")
    number: int = Field(description="Of the command that it is.")
    started_at: datetime


@routes.post("/contexts", status_code=201, summary="Start a code context")
async def create_context(here: Here, session_id: SessionId, new: NewContext) -> ContextShape:
    made = await here.rooms.sandboxes.contexts.create(
        here.tenant_id, session_id, language=new.language, cwd=new.cwd, user=new.user, env=new.env
    )
    return context_shape(made)


@routes.get("/contexts", summary="The contexts that run, oldest first")
async def list_contexts(here: Here, session_id: SessionId) -> Page[ContextShape]:
    found = await here.rooms.sandboxes.contexts.list(here.tenant_id, session_id)
    return Page[ContextShape](items=[context_shape(each) for each in found], next=None)


@routes.get("/contexts/{context_id}", summary="One context")
async def get_context(here: Here, session_id: SessionId, context_id: ContextId) -> ContextShape:
    return context_shape(await here.rooms.sandboxes.contexts.get(here.tenant_id, session_id, context_id))


@routes.delete("/contexts/{context_id}", status_code=204, summary="End it and forget its state")
async def remove_context(here: Here, session_id: SessionId, context_id: ContextId) -> None:
    await here.rooms.sandboxes.contexts.remove(here.tenant_id, session_id, context_id)


@routes.post("/contexts/{context_id}:restart", summary="Begin anew, without its state")
async def restart_context(here: Here, session_id: SessionId, context_id: ContextId) -> ContextShape:
    return context_shape(await here.rooms.sandboxes.contexts.restart(here.tenant_id, session_id, context_id))


@routes.post("/contexts/{context_id}:interrupt", status_code=204, summary="End what runs; it keeps its state")
async def interrupt_context(here: Here, session_id: SessionId, context_id: ContextId, which: Interrupt) -> None:
    await here.rooms.sandboxes.contexts.interrupt(here.tenant_id, session_id, context_id, which.execution)


@routes.post("/contexts/{context_id}/execute", summary="Run code in it", response_class=Response, responses=STREAMED)
async def execute(here: Here, session_id: SessionId, context_id: ContextId, new: NewExecution) -> Response:
    events = here.rooms.sandboxes.contexts.execute(here.tenant_id, session_id, context_id=context_id, **new.arguments())
    return await lasting(events, render, here.request_id)


@routes.get(
    "/contexts/{context_id}/executions/{execution_id}",
    summary="What an execution has said and goes on to say",
    response_class=Response,
    responses=STREAMED,
)
async def follow_execution(
    here: Here, session_id: SessionId, context_id: ContextId, execution_id: ExecutionId
) -> Response:
    events = here.rooms.sandboxes.contexts.follow(here.tenant_id, session_id, context_id, execution_id)
    return await lasting(events, render, here.request_id)


@routes.post(
    "/execute",
    summary="Run code in the default context of a language, which is started when it is missing",
    response_class=Response,
    responses=STREAMED,
)
async def execute_in_default(here: Here, session_id: SessionId, new: NewDefaultExecution) -> Response:
    events = here.rooms.sandboxes.contexts.execute(here.tenant_id, session_id, language=new.language, **new.arguments())
    return await lasting(events, render, here.request_id)


def context_shape(context: Context) -> ContextShape:
    return ContextShape(
        id=context.id,
        language=shown(context.language),
        cwd=shown(context.cwd),
        user=shown(context.user),
        is_default=context.is_default,
        number=context.number,
        started_at=context.started_at,
    )


def render(event: Happening) -> bytes:
    return line(**_body(event))


def _body(event: Happening) -> dict[str, object]:
    if isinstance(event, Accepted):
        return {"type": "accepted", "execution": event.execution_id, "context": event.context_id}
    if isinstance(event, Began):
        return {"type": "began"}
    if isinstance(event, Printed):
        return {"type": "output", "stream": event.stream, "text": event.text}
    if isinstance(event, Result):
        return {"type": "result", "data": event.data, "is_main": event.is_main, "omitted": event.omitted}
    if isinstance(event, Fault):
        return {"type": "fault", "name": event.name, "value": event.value, "traceback": event.traceback}
    if isinstance(event, Truncated):
        return {"type": "truncated"}
    assert isinstance(event, Ended)
    return {"type": "ended", "status": event.status, "count": event.count, "dropped_bytes": event.dropped_bytes}
