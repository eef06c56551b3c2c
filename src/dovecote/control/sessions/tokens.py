"""Finds a session by what its token was used for, where a request tells neither the session nor the token."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from dovecote.control.sessions.live import LiveSessions
from dovecote.model.records import Session
from dovecote.model.states import SessionState
from dovecote.store import Store

MOST = 20_000  # records that one search looks at, besides the sessions in memory
AT_ONCE = 500  # tokens tried before others may run


class Tokens:
    def __init__(self, store: Store, live: LiveSessions) -> None:
        self._store = store
        self._live = live
        self._searching = asyncio.Lock()  # anybody may ask: only one search at a time goes through the records

    async def find(self, proves: Callable[[str], bool]) -> Session | None:
        """The session of any tenant that has not ended and whose token `proves` takes. None where there is none."""
        for tried, live in enumerate(self._live.all()):
            if live.session.token and proves(live.session.token):
                return live.session
            if tried % AT_ONCE == AT_ONCE - 1:
                await asyncio.sleep(0)
        async with self._searching:
            return await self._find_resting(proves)

    async def _find_resting(self, proves: Callable[[str], bool]) -> Session | None:
        resting = [each for each in SessionState if each is not SessionState.ENDED]
        tried = 0
        async for session in self._store.everyone().sessions.each(state=resting):
            if session.token and proves(session.token):
                return session
            tried += 1
            if tried >= MOST:
                break
        return None
