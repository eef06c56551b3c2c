"""Routes of chats and their turns."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import AfterValidator, Field

from dovecote.api.rest.here import After, ChatId, Here, Limit
from dovecote.api.rest.shapes import Body, ChatShape, Page, TurnShape, chat_shape, turn_shape
from dovecote.model.ids import parse_id

routes = APIRouter(prefix="/v1/chats", tags=["chats"])


class NewChat(Body):
    session_id: Annotated[str, AfterValidator(lambda text: parse_id(text, "ses"))] = Field(
        description="The session that holds its files."
    )
    user: str = Field("default", min_length=1, max_length=200)
    title: str = Field("", max_length=200)


class NewTurn(Body):
    messages: list[dict[str, Any]] = Field(min_length=1, max_length=1000, description="As the agent wrote them.")


@routes.post("", status_code=201, summary="Open a chat on a session")
async def create_chat(here: Here, new: NewChat) -> ChatShape:
    chat = await here.rooms.chats.create(here.tenant_id, session_id=new.session_id, user=new.user, title=new.title)
    return chat_shape(chat)


@routes.get("", summary="List chats, in pages")
async def list_chats(
    here: Here, user: Annotated[str | None, Query(max_length=200)] = None, after: After = None, limit: Limit = 100
) -> Page[ChatShape]:
    found = await here.rooms.chats.list(here.tenant_id, user=user, after=after, limit=limit)
    items = [chat_shape(chat) for chat in found]
    return Page[ChatShape](items=items, next=found[-1].id if len(found) == limit else None)


@routes.get("/{chat_id}", summary="One chat")
async def get_chat(here: Here, chat_id: ChatId) -> ChatShape:
    return chat_shape(await here.rooms.chats.get(here.tenant_id, chat_id))


@routes.post("/{chat_id}/turns", status_code=201, summary="Add a turn")
async def add_turn(here: Here, chat_id: ChatId, new: NewTurn) -> TurnShape:
    return turn_shape(await here.rooms.chats.add_turn(here.tenant_id, chat_id, new.messages))


@routes.get("/{chat_id}/turns", summary="Its turns, in pages")
async def list_turns(here: Here, chat_id: ChatId, after: After = None, limit: Limit = 100) -> Page[TurnShape]:
    found = await here.rooms.chats.turns(here.tenant_id, chat_id, after=after, limit=limit)
    items = [turn_shape(turn) for turn in found]
    return Page[TurnShape](items=items, next=found[-1].id if len(found) == limit else None)
