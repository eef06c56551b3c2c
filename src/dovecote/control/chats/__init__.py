"""Conversations and their turns, as records. The agent writes them through the public API like anyone."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from dovecote.control.sessions import Sessions
from dovecote.control.tenancy import Tenancy
from dovecote.errors import Conflict, Invalid
from dovecote.model.ids import new_id
from dovecote.model.records import Chat, Turn
from dovecote.store import Store

LONGEST_TITLE = 200
MOST_MESSAGES = 1000
TRIES = 8


class Chats:
    def __init__(self, store: Store, sessions: Sessions, tenancy: Tenancy) -> None:
        self._store = store
        self._sessions = sessions
        self._tenancy = tenancy

    async def create(self, tenant_id: str, *, session_id: str, user: str = "default", title: str = "") -> Chat:
        """Raises NotFound when the session is not there."""
        session = await self._sessions.get(tenant_id, session_id)
        owner = await self._tenancy.user(tenant_id, user)
        if owner.id != session.user_id:
            raise Invalid("the session belongs to another user", hint="name the user that it was created for")
        return await self._store.tenant(tenant_id).chats.insert(
            Chat(
                id=new_id("cha"),
                tenant_id=tenant_id,
                user_id=owner.id,
                session_id=session.id,
                title=title[:LONGEST_TITLE],
                created_at=datetime.now(UTC),
            )
        )

    async def get(self, tenant_id: str, chat_id: str) -> Chat:
        return await self._store.tenant(tenant_id).chats.get(chat_id)

    async def list(
        self, tenant_id: str, *, user: str | None = None, after: str | None = None, limit: int = 100
    ) -> Sequence[Chat]:
        equals = {}
        if user is not None:
            owner = await self._tenancy.find_user(tenant_id, user)
            if owner is None:
                return []
            equals["user_id"] = owner.id
        return await self._store.tenant(tenant_id).chats.list(after=after, limit=limit, **equals)

    async def add_turn(self, tenant_id: str, chat_id: str, messages: Sequence[dict[str, Any]]) -> Turn:
        """Appends; turns are numbered from 1 without a gap."""
        if not 0 < len(messages) <= MOST_MESSAGES:
            raise Invalid(f"a turn has from 1 to {MOST_MESSAGES} messages")
        scope = self._store.tenant(tenant_id)
        await scope.chats.get(chat_id)
        for _ in range(TRIES):
            try:
                return await scope.turns.insert(
                    Turn(
                        id=new_id("trn"),
                        tenant_id=tenant_id,
                        chat_id=chat_id,
                        number=await scope.turns.count(chat_id=chat_id) + 1,
                        messages=[*messages],
                        created_at=datetime.now(UTC),
                    )
                )
            except Conflict:
                continue  # somebody else's turn took the number
        raise Conflict("too many turns of one chat at once", code="busy", hint="try again")

    async def turns(
        self, tenant_id: str, chat_id: str, *, after: str | None = None, limit: int = 100
    ) -> Sequence[Turn]:
        await self.get(tenant_id, chat_id)
        return await self._store.tenant(tenant_id).turns.list(chat_id=chat_id, after=after, limit=limit)
