"""Sessions in memory that need no instances, for tests of the edges."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from dovecote.control.sessions import Activity
from dovecote.control.sessions.activity import Reason, ToCome
from dovecote.control.sessions.idle import Why
from dovecote.errors import Conflict, NotFound
from dovecote.model.ids import new_id, random_text
from dovecote.model.past import HookRun, Past
from dovecote.model.records import Session, Start, User
from dovecote.model.states import Desired, SessionState
from dovecote.model.trees import Lag, LagState
from tests.unit.fake_tenancy import NOW, FakeTenancy


@dataclass
class View:
    instance_id: str
    address: str
    pid: int
    usage: dict[str, int | float]


class FakeSessions:
    def __init__(self, tenancy: FakeTenancy) -> None:
        self.tenancy = tenancy
        self.all: dict[str, Session] = {}
        self.created: list[dict[str, Any]] = []
        self.lookups = 0
        self.failure: Exception | None = None
        self.its_lag = Lag(LagState.PENDING, saved_ago=0.81, behind=0.4, pending=3, recovery_point=2.0)

    async def create(self, tenant_id: str, *, key: str | None, env: Any, wake: bool, **rest: Any) -> Session:
        if any(each.key == key for each in self.all.values()):
            raise Conflict(f"there is a session {key!r}", code="exists")
        self.created.append({"env": env, **rest})
        session = Session(
            id=new_id("ses"),
            tenant_id=tenant_id,
            user_id=new_id("usr"),
            function_id=new_id("fun"),
            revision_id=new_id("rev"),
            key=key or random_text(),
            slug=random_text(),
            state=SessionState.READY if wake else SessionState.NEW,
            desired=Desired.LIVE,
            created_at=NOW,
            last_active_at=NOW,
            tier=rest["tier"] or "default",
            idle_after=rest["idle_after"],
            mounts=tuple(rest.get("mounts", ())),
            metadata=rest.get("metadata") or {},
        )
        self.all[session.id] = session
        return session

    async def get(self, tenant_id: str, session_id: str) -> Session:
        self.lookups += 1
        if self.failure is not None:
            raise self.failure
        session = self.all.get(session_id)
        if session is None or session.tenant_id != tenant_id:
            raise NotFound(f"no session {session_id}", code="no_such_session")
        return session

    async def list(self, tenant_id: str, *, after: str | None, limit: int, **_: Any) -> list[Session]:
        mine = [each for each in self.all.values() if each.tenant_id == tenant_id]
        ids = [each.id for each in mine if each.state is not SessionState.ENDED]
        first = ids.index(after) + 1 if after else 0
        return [self.all[each] for each in ids[first : first + limit]]

    async def update(self, tenant_id: str, session_id: str, *, idle_after: timedelta | None, **_: Any) -> Session:
        return await self._become(tenant_id, session_id, idle_after=idle_after)

    async def delete(self, tenant_id: str, session_id: str) -> None:
        await self._become(tenant_id, session_id, state=SessionState.ENDED)

    async def wake(self, tenant_id: str, session_id: str) -> Session:
        return await self._become(tenant_id, session_id, state=SessionState.READY)

    async def freeze(self, tenant_id: str, session_id: str) -> Session:
        return await self._become(tenant_id, session_id, state=SessionState.FROZEN)

    async def park(self, tenant_id: str, session_id: str) -> Session:
        return await self._become(tenant_id, session_id, state=SessionState.PARKED)

    async def save(self, tenant_id: str, session_id: str) -> Session:
        return await self._become(tenant_id, session_id, saved_at=NOW)

    async def set_start(self, tenant_id: str, session_id: str, start: Start | None) -> Session:
        return await self._become(tenant_id, session_id, start=start)

    async def set_user_tier(self, tenant_id: str, name: str, tier: str) -> User:
        self.tenancy.tiers[name] = tier
        return await self.tenancy.user(tenant_id, name)

    async def lease(self, tenant_id: str, session_id: str, span: timedelta) -> Session:
        return await self._become(tenant_id, session_id, awake_until=NOW + span)

    async def release(self, tenant_id: str, session_id: str) -> Session:
        return await self._become(tenant_id, session_id, awake_until=NOW)

    async def activity(self, tenant_id: str, session_id: str) -> Activity:
        session = await self.get(tenant_id, session_id)
        return Activity(
            state=session.state,
            why="awake: `npm run dev` runs",
            reasons=[Reason(Why.COMMANDS, "`npm run dev` runs", since=NOW)],
            next=[ToCome("end", NOW)],
            unused_for=timedelta(seconds=3),
            window=timedelta(minutes=5),
            is_promised=False,
            awake_until=session.awake_until,
            past=Past()
            .moved(NOW, "ready", "woken")
            .ran(HookRun("initialize", NOW, False, 0.5, "it answered 500"))
            .breached(NOW, "its processes were killed"),
        )

    async def lag(self, tenant_id: str, session_id: str) -> Lag:
        await self.get(tenant_id, session_id)
        return self.its_lag

    async def instance(self, tenant_id: str, session_id: str) -> View:
        await self.get(tenant_id, session_id)
        return View("ins_x", "10.201.0.7", 4242, {"memory_bytes": 1 << 20})

    async def _become(self, tenant_id: str, session_id: str, **changes: Any) -> Session:
        self.all[session_id] = replace(await self.get(tenant_id, session_id), **changes)
        return self.all[session_id]
