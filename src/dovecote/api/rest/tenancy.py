"""Routes of API keys and of end users' tiers."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import Field

from dovecote.api.rest.activity_shapes import TierShape, tier_shape
from dovecote.api.rest.here import After, Here, KeyId, Limit
from dovecote.api.rest.shapes import Body, KeyShape, NewKeyShape, Page, UserShape, key_shape
from dovecote.errors import NotFound
from dovecote.model.records import User
from dovecote.model.sizes import TIERS

routes = APIRouter(prefix="/v1", tags=["tenancy"])


UserName = Annotated[str, Path(min_length=1, max_length=200)]


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


@routes.get("/users", summary="List end users and their tiers, in pages")
async def list_users(here: Here, after: After = None, limit: Limit = 100) -> Page[UserShape]:
    found = await here.rooms.tenancy.list_users(here.tenant_id, after=after, limit=limit)
    return Page[UserShape](
        items=[_user_shape(user) for user in found], next=found[-1].id if len(found) == limit else None
    )


@routes.get("/users/{user}", summary="An end user and their tier")
async def get_user(here: Here, user: UserName) -> UserShape:
    found = await here.rooms.tenancy.find_user(here.tenant_id, user)
    if found is None:
        raise NotFound(f"no user {user[:60]!r}", hint="a user exists from the first session on")
    return _user_shape(found)


@routes.put("/users/{user}", summary="Set the tier of an end user, for open sessions too")
async def set_user(here: Here, user: UserName, change: ChangedUser) -> UserShape:
    return _user_shape(await here.rooms.sessions.set_user_tier(here.tenant_id, user, change.tier))


@routes.get("/tiers", summary="The tiers that there are")
async def list_tiers(here: Here) -> Page[TierShape]:
    return Page[TierShape](items=[tier_shape(tier) for tier in TIERS.values()], next=None)


def _user_shape(user: User) -> UserShape:
    return UserShape(id=user.id, name=user.name, tier=user.tier, created_at=user.created_at)
