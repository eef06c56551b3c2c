"""Routes of API keys and of end users' tiers."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import Field

from dovecote.api.rest.here import Here, KeyId
from dovecote.api.rest.shapes import Body, KeyShape, NewKeyShape, Page, UserShape, key_shape

routes = APIRouter(prefix="/v1", tags=["tenancy"])


class NewKey(Body):
    name: str = Field(min_length=1, max_length=100, description="For you, to tell it from others.")


class ChangedUser(Body):
    tier: str = Field(description="default, regular, vip or svip.")


@routes.post("/keys", status_code=201, summary="Make an API key; its secret is shown this once")
async def create_key(here: Here, new: NewKey) -> NewKeyShape:
    made = await here.rooms.tenancy.create_key(here.tenant_id, new.name)
    return NewKeyShape(**key_shape(made.key).model_dump(), secret=made.secret)


@routes.get("/keys", summary="List API keys, without their secrets")
async def list_keys(here: Here) -> Page[KeyShape]:
    found = await here.rooms.tenancy.list_keys(here.tenant_id)
    return Page[KeyShape](items=[key_shape(key) for key in found], next=None)


@routes.delete("/keys/{key_id}", status_code=204, summary="Revoke an API key")
async def revoke_key(here: Here, key_id: KeyId) -> None:
    await here.rooms.tenancy.revoke_key(here.tenant_id, key_id)


@routes.put("/users/{user}", summary="Set the tier of an end user")
async def set_user(
    here: Here, user: Annotated[str, Path(min_length=1, max_length=200)], change: ChangedUser
) -> UserShape:
    await here.rooms.tenancy.user(here.tenant_id, user)
    await here.rooms.tenancy.set_tier(here.tenant_id, user, change.tier)
    found = await here.rooms.tenancy.user(here.tenant_id, user)
    return UserShape(id=found.id, name=found.name, tier=found.tier, created_at=found.created_at)
