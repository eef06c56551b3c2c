"""What each route is given: the caller's tenant and the rooms that it may call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Path, Query, Request
from pydantic import AfterValidator

from dovecote.api.rooms import Rooms
from dovecote.errors import Invalid
from dovecote.model.ids import parse_id, parse_name


@dataclass(frozen=True)
class Call:
    """One authenticated request."""

    tenant_id: str
    rooms: Rooms
    request_id: str


async def call(request: Request) -> Call:
    principal = request.scope["dovecote.principal"]
    return Call(principal.tenant_id, request.app.state.rooms, request.scope["dovecote.request_id"])


def _id(kind: str) -> AfterValidator:
    return AfterValidator(lambda text: parse_id(text, kind))


def _number(value: int) -> int:
    if not 0 < value < 1 << 31:
        raise Invalid(f"not a command's number: {value}", code="malformed_id")
    return value


Here = Annotated[Call, Depends(call)]
SessionId = Annotated[str, Path(description="`ses_...`"), _id("ses")]
NamedSnapshot = Annotated[str, _id("snp")]  # in a body or a query
SnapshotId = Annotated[str, Path(description="`snp_...`"), _id("snp")]
ChatId = Annotated[str, Path(description="`cha_...`"), _id("cha")]
KeyId = Annotated[str, Path(description="`key_...`"), _id("key")]
WatcherId = Annotated[str, Path(description="`wat_...`"), _id("wat")]
AppName = Annotated[str, Path(), AfterValidator(lambda text: parse_name(text, "an app"))]
FunctionName = Annotated[str, Path(), AfterValidator(lambda text: parse_name(text, "a function"))]
Number = Annotated[int, Path(description="A command's number in its session"), AfterValidator(_number)]
After = Annotated[str | None, Query(max_length=200, description="`next` of the page before")]
Limit = Annotated[int, Query(ge=1, le=1000, description="Items in a page")]


def pair(text: str) -> tuple[str, str]:
    """Metadata as a query parameter has it."""
    name, colon, value = text.partition(":")
    if not colon:
        raise Invalid(f"not metadata: {text[:60]!r}", hint="name:text")
    return name, value
