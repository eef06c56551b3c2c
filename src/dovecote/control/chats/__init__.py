"""Conversations and their turns, as records. The agent writes them through the public API like anyone."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from dovecote.control.sessions import Sessions
from dovecote.control.snapshots import Snapshots
from dovecote.control.tenancy import Tenancy
from dovecote.errors import Conflict, DovecoteError, Invalid, NotFound
from dovecote.model.ids import new_id
from dovecote.model.records import Chat, Session, Snapshot, Turn
from dovecote.store import Store

log = logging.getLogger(__name__)

LONGEST_TITLE = 200
LONGEST_NOTE = 500
MOST_MESSAGES = 1000
TRIES = 8


class Chats:
    def __init__(self, store: Store, sessions: Sessions, tenancy: Tenancy, snapshots: Snapshots) -> None:
        self._store = store
        self._sessions = sessions
        self._tenancy = tenancy
        self._snapshots = snapshots

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
        equals: dict[str, Any] = {}
        if user is not None:
            owner = await self._tenancy.find_user(tenant_id, user)
            if owner is None:
                return []
            equals["user_id"] = owner.id
        return await self._store.tenant(tenant_id).chats.list(after=after, limit=limit, **equals)

    async def add_turn(self, tenant_id: str, chat_id: str, messages: Sequence[dict[str, Any]]) -> Turn:
        """Appends, and takes a snapshot of the files at its end. Turns are numbered from 1 without a gap.

        The turn is kept whatever becomes of the snapshot; why there is none is noted on it.
        """
        if not 0 < len(messages) <= MOST_MESSAGES:
            raise Invalid(f"a turn has from 1 to {MOST_MESSAGES} messages")
        chat = await self.get(tenant_id, chat_id)
        turn = await self._append(chat, messages)
        try:
            taken = await self._snapshots.at_turn(tenant_id, chat.session_id, f"turn {turn.number}")
            noted = replace(turn, snapshot_id=taken.id)
        except DovecoteError as error:
            noted = replace(turn, snapshot_note=f"{error.code}: {error.message}"[:LONGEST_NOTE])
        try:
            return await self._store.tenant(tenant_id).turns.swap(noted)
        except DovecoteError as error:
            # The messages are stored: an error would have the caller add them a second time.
            log.warning("turn %s goes without its snapshot: %s", turn.id, error)
            return turn

    async def _append(self, chat: Chat, messages: Sequence[dict[str, Any]]) -> Turn:
        turns = self._store.tenant(chat.tenant_id).turns
        for _ in range(TRIES):
            try:
                return await turns.insert(
                    Turn(
                        id=new_id("trn"),
                        tenant_id=chat.tenant_id,
                        chat_id=chat.id,
                        # Those that were rewound count: their numbers are not given again.
                        number=await turns.count(chat_id=chat.id) + 1,
                        messages=[*messages],
                        created_at=datetime.now(UTC),
                    )
                )
            except Conflict:
                continue  # somebody else's turn took the number
        raise Conflict("too many turns of one chat at once", code="busy", hint="try again")

    async def turns(
        self, tenant_id: str, chat_id: str, *, after: str | None = None, limit: int = 100, rewound: bool = False
    ) -> Sequence[Turn]:
        """`rewound` also lists those that the chat went back to before of."""
        await self.get(tenant_id, chat_id)
        equals: dict[str, Any] = {} if rewound else {"rewound_at": None}
        return await self._store.tenant(tenant_id).turns.list(chat_id=chat_id, after=after, limit=limit, **equals)

    async def rewind(self, tenant_id: str, chat_id: str, number: int) -> Turn:
        """Back to the end of that turn, the session's files and the messages. May be repeated, also when cut short.

        Files go first: until all is done, the later turns are listed still. Raises what rewinding a session raises,
        NotFound (no_such_turn) and Conflict (no_snapshot), both before anything has changed.
        """
        chat = await self.get(tenant_id, chat_id)
        turn = await self._turn(chat, number)
        snapshot = await self._snapshot(chat, turn)
        await self._snapshots.rewind(tenant_id, chat.session_id, snapshot.id)
        for _ in range(TRIES):
            try:
                await self._hide_after(turn)
                return turn
            except Conflict:
                continue  # one of them was being given its snapshot
        raise Conflict("the chat's turns keep changing", code="busy", hint="rewind it again")

    async def fork(
        self, tenant_id: str, chat_id: str, number: int, *, key: str | None = None, wake: bool = True
    ) -> Chat:
        """A new chat on a new session, as this one was at the end of that turn. This one stays as it is."""
        chat = await self.get(tenant_id, chat_id)
        turn = await self._turn(chat, number)
        snapshot = await self._snapshot(chat, turn)
        session = await self._snapshots.fork(tenant_id, chat.session_id, snapshot_id=snapshot.id, key=key, wake=wake)
        forked = replace(chat, id=new_id("cha"), session_id=session.id, created_at=datetime.now(UTC), generation=0)
        try:
            await self._copy_until(turn, chat, forked, session)
        except DovecoteError:
            # Nobody has its id yet.
            await self._sessions.delete(tenant_id, session.id)
            raise
        return forked

    async def _copy_until(self, last: Turn, chat: Chat, forked: Chat, session: Session) -> None:
        scope = self._store.tenant(chat.tenant_id)
        copies: list[Turn] = []
        async for turn in scope.turns.each(chat_id=chat.id, rewound_at=None):
            if turn.number > last.number:
                continue
            copies.append(replace(turn, id=new_id("trn"), chat_id=forked.id, number=len(copies) + 1, generation=0))
        for place, turn in enumerate(copies):
            if turn.snapshot_id is not None:
                try:
                    old = await self._snapshots.get(chat.tenant_id, chat.session_id, turn.snapshot_id)
                except NotFound:
                    copies[place] = replace(turn, snapshot_id=None, snapshot_note="its snapshot was let go")
                else:
                    copies[place] = replace(turn, snapshot_id=(await self._snapshots.copy(old, session)).id)
        async with scope.together() as whole:
            await whole.chats.insert(forked)
            for turn in copies:
                await whole.turns.insert(turn)

    async def _hide_after(self, turn: Turn) -> None:
        now = datetime.now(UTC)
        scope = self._store.tenant(turn.tenant_id)
        later = [each async for each in scope.turns.each(chat_id=turn.chat_id, rewound_at=None)]
        async with scope.together() as whole:
            for each in later:
                if each.number > turn.number:
                    await whole.turns.swap(replace(each, rewound_at=now))

    async def _turn(self, chat: Chat, number: int) -> Turn:
        turn = await self._store.tenant(chat.tenant_id).turns.find(chat_id=chat.id, number=number, rewound_at=None)
        if turn is None:
            raise NotFound(f"the chat has no turn {number}", code="no_such_turn", hint="list its turns")
        return turn

    async def _snapshot(self, chat: Chat, turn: Turn) -> Snapshot:
        if turn.snapshot_id is not None:
            try:
                return await self._snapshots.get(chat.tenant_id, chat.session_id, turn.snapshot_id)
            except NotFound:
                pass  # the tier keeps only so many, and anybody of the tenant may delete one
        raise Conflict(
            f"no snapshot of turn {turn.number} is kept",
            code="no_snapshot",
            hint=turn.snapshot_note or "choose a later turn; the tier says how many are kept",
        )
