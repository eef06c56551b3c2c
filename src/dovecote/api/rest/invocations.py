"""Routes of asynchronous calls, and of the secret that signs their webhooks."""

from __future__ import annotations

import base64
import binascii
from datetime import datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Path, Query
from pydantic import AfterValidator, BaseModel, Field

from dovecote.api.rest.here import After, FunctionName, Here
from dovecote.api.rest.shapes import Body, Page
from dovecote.control.invocations import LONGEST_OVERLAP, OVERLAP, Wanted
from dovecote.errors import Invalid
from dovecote.model.ids import parse_id
from dovecote.model.invocations import DEFAULT_TIMEOUT, MOST_BODY, Invocation, InvocationState

routes = APIRouter(prefix="/v1", tags=["invocations"])

InvocationId = Annotated[str, Path(description="`inv_...`"), AfterValidator(lambda text: parse_id(text, "inv"))]
FewAtATime = Annotated[int, Query(ge=1, le=100, description="Items in a page")]  # each may hold half a megabyte
MOST_BASE64 = MOST_BODY * 4 // 3 + 4


class NewInvocation(Body):
    method: str = Field("POST", max_length=20)
    path: str = Field("/", description="With the query.")
    headers: dict[str, str] = Field(
        default_factory=dict, description="Credentials, and what belongs to a connection, is left out."
    )
    body: str | None = Field(None, max_length=MOST_BODY + 1, description="As text.")
    body_base64: str | None = Field(None, max_length=MOST_BASE64 + 1, description="As bytes, in place of `body`.")
    session: str | None = Field(
        None,
        description="Key of its session. Without one it is what `headers` and `path` name; where they name none and "
        "the function has sessions, it gets one of its own.",
    )
    user: str = Field("default", min_length=1, max_length=200, description="Your own name for its user.")
    delay_seconds: float = Field(0.0, ge=0, le=86400, description="How long to wait before it is made.")
    timeout_seconds: float = Field(
        DEFAULT_TIMEOUT.total_seconds(), gt=0, le=86400, description="How long one attempt may take."
    )
    idempotency_key: str | None = Field(None, description="The same key again gives the call that has it already.")

    def wanted(self) -> Wanted:
        return Wanted(
            method=self.method,
            path=self.path,
            headers=tuple(self.headers.items()),
            body=_content(self.body, self.body_base64),
            user=self.user,
            key=self.session,
            delay=timedelta(seconds=self.delay_seconds),
            timeout=timedelta(seconds=self.timeout_seconds),
            idempotency_key=self.idempotency_key,
        )


class ResponseShape(BaseModel):
    status: int
    headers: dict[str, str]
    body_base64: str = Field(description=f"The first {MOST_BODY >> 10} kB of it.")
    is_truncated: bool = Field(description="There was more.")


class InvocationShape(BaseModel):
    id: str
    function: str
    function_id: str
    user: str
    session: str | None = Field(description="Key of its session; null where the function has none.")
    session_id: str | None = Field(description="Where it went last; null until it was placed.")
    method: str
    path: str
    state: InvocationState
    attempts: int = Field(description="Those that may have reached the function.")
    retries: int = Field(description="How many attempts may follow the first.")
    waits: int = Field(description="How often there was no place for it, which takes no attempt.")
    created_at: datetime
    due_at: datetime | None = Field(description="While it is queued: when it is tried next.")
    deadline: datetime = Field(description="It is not tried any more after this.")
    timeout_seconds: float
    finished_at: datetime | None
    error_code: str = Field(description="Of the last attempt; empty when it went well.")
    error: str
    delivery: str = Field(description="Of its destination: none, pending, delivered or failed.")
    deliveries: int = Field(description="Attempts to tell the destination.")
    delivery_error: str
    idempotency_key: str | None
    replay_of: str | None
    status: int | None = Field(description="That the function answered last.")


class WholeInvocationShape(InvocationShape):
    headers: dict[str, str]
    body_base64: str
    response: ResponseShape | None


class Rotation(Body):
    overlap_seconds: float = Field(
        default=OVERLAP.total_seconds(),
        ge=0,
        le=LONGEST_OVERLAP.total_seconds(),
        description="How long webhooks are signed with the secret before it too; 0 if somebody else knows that.",
    )


class SecretShape(BaseModel):
    secret: str = Field(description="Key of the HMAC-SHA256 in `x-dovecote-signature` of your webhooks.")


@routes.post("/functions/{name}/invocations", status_code=202, summary="Call a function and wait for nothing")
async def create_invocation(here: Here, name: FunctionName, new: NewInvocation) -> InvocationShape:
    function = await here.rooms.functions.get(here.tenant_id, name)
    return invocation_shape(await here.rooms.invocations.create(function, new.wanted()))


@routes.get("/invocations", summary="List asynchronous calls, in pages")
async def list_invocations(
    here: Here,
    function: Annotated[str | None, Query(max_length=40)] = None,
    user: Annotated[str | None, Query(max_length=200)] = None,
    session: Annotated[str | None, Query(max_length=200, description="Key of one.")] = None,
    state: Annotated[list[InvocationState] | None, Query(max_length=6, description="Any of these.")] = None,
    newest_first: bool = False,
    after: After = None,
    limit: FewAtATime = 50,
) -> Page[InvocationShape]:
    found = await here.rooms.invocations.list(
        here.tenant_id,
        function=function,
        user=user,
        key=session,
        states=state or (),
        newest_first=newest_first,
        after=after,
        limit=limit,
    )
    items = [invocation_shape(each) for each in found]
    return Page[InvocationShape](items=items, next=found[-1].id if len(found) == limit else None)


@routes.get("/invocations/{invocation_id}", summary="One asynchronous call, its request and what came of it")
async def get_invocation(here: Here, invocation_id: InvocationId) -> WholeInvocationShape:
    found = await here.rooms.invocations.get(here.tenant_id, invocation_id)
    return WholeInvocationShape(
        **invocation_shape(found).model_dump(),
        headers=found.headers,
        body_base64=found.body,
        response=_response_shape(found),
    )


@routes.post("/invocations/{invocation_id}:cancel", summary="Make it no more; an attempt under way is cut off")
async def cancel_invocation(here: Here, invocation_id: InvocationId) -> InvocationShape:
    return invocation_shape(await here.rooms.invocations.cancel(here.tenant_id, invocation_id))


@routes.post("/invocations/{invocation_id}:replay", status_code=202, summary="Make one that has ended once more")
async def replay_invocation(here: Here, invocation_id: InvocationId) -> InvocationShape:
    return invocation_shape(await here.rooms.invocations.replay(here.tenant_id, invocation_id))


@routes.get("/webhook-secret", summary="What signs your webhooks; made when it is first asked for")
async def get_webhook_secret(here: Here) -> SecretShape:
    return SecretShape(secret=await here.rooms.webhook_secrets.get(here.tenant_id))


@routes.post("/webhook-secret:rotate", summary="A new secret; the one before it signs too for a while")
async def rotate_webhook_secret(here: Here, change: Rotation | None = None) -> SecretShape:
    overlap = timedelta(seconds=(change or Rotation()).overlap_seconds)
    return SecretShape(secret=await here.rooms.webhook_secrets.rotate(here.tenant_id, overlap=overlap))


def invocation_shape(invocation: Invocation) -> InvocationShape:
    return InvocationShape(
        id=invocation.id,
        function=invocation.function,
        function_id=invocation.function_id,
        user=invocation.user,
        session=invocation.key,
        session_id=invocation.session_id,
        method=invocation.method,
        path=invocation.path,
        state=invocation.state,
        attempts=invocation.attempts,
        retries=invocation.retries,
        waits=invocation.waits,
        created_at=invocation.created_at,
        due_at=invocation.due_at if invocation.state is InvocationState.QUEUED else None,
        deadline=invocation.deadline,
        timeout_seconds=invocation.timeout.total_seconds(),
        finished_at=invocation.finished_at,
        error_code=invocation.error_code,
        error=invocation.error,
        delivery=invocation.delivery,
        deliveries=invocation.deliveries,
        delivery_error=invocation.delivery_error,
        idempotency_key=invocation.idempotency_key,
        replay_of=invocation.replay_of,
        status=invocation.status,
    )


def _response_shape(invocation: Invocation) -> ResponseShape | None:
    if invocation.status is None:
        return None
    return ResponseShape(
        status=invocation.status,
        headers=invocation.response_headers,
        body_base64=invocation.response_body,
        is_truncated=invocation.is_truncated,
    )


def _content(text: str | None, encoded: str | None) -> bytes:
    if text is not None and encoded is not None:
        raise Invalid("a body is either text or base64")
    if encoded is None:
        return (text or "").encode()
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Invalid("body_base64 is not base64") from error
