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


class ToTurn(Body):
    turn: int = Field(ge=1, lt=1 << 31, description="Its number.")


class ChatFork(ToTurn):
    key: str | None = Field(None, description="Your own name for the new session.")
    wake: bool = True


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
async def list_turns(
    here: Here,
    chat_id: ChatId,
    after: After = None,
    limit: Limit = 100,
    rewound: Annotated[bool, Query(description="Also those that the chat went back to before of.")] = False,
) -> Page[TurnShape]:
    found = await here.rooms.chats.turns(here.tenant_id, chat_id, after=after, limit=limit, rewound=rewound)
    items = [turn_shape(turn) for turn in found]
    return Page[TurnShape](items=items, next=found[-1].id if len(found) == limit else None)


@routes.post(
    "/{chat_id}:rewind", summary="Go back to the end of a turn, files and messages; what runs in the session ends"
)
async def rewind_chat(here: Here, chat_id: ChatId, to: ToTurn) -> TurnShape:
    return turn_shape(await here.rooms.chats.rewind(here.tenant_id, chat_id, to.turn))


@routes.post(
    "/{chat_id}:fork", status_code=201, summary="Open a new chat and session as they were at the end of a turn"
)
async def fork_chat(here: Here, chat_id: ChatId, fork: ChatFork) -> ChatShape:
    return chat_shape(await here.rooms.chats.fork(here.tenant_id, chat_id, fork.turn, key=fork.key, wake=fork.wake))
