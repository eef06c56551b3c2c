"""The sessions that have an instance, as this process sees them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from weakref import WeakValueDictionary

from dovecote.control.fleet import Guest, Host, Observed
from dovecote.control.sessions.hooks import INITIALIZE, Inside
from dovecote.model.past import HookRun
from dovecote.model.records import Revision, Session
from dovecote.model.states import SessionState, check_session_move


@dataclass
class Live:
    """`session` runs ahead of its record by freezing and thawing only: those are true of the host, not of the books."""

    session: Session
    revision: Revision
    host: Host
    instance_id: str
    address: str
    pid: int
    busy: int = 0  # calls of the API that are inside
    busy_since: float = 0.0
    starting: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False)  # one start for all who want its port
    touched: float = field(default_factory=time.monotonic)
    seen: Observed | None = None  # at the last tick
    memory_bytes: int = 0  # measured now and then, without what is cached
    initializing: asyncio.Task[HookRun] | None = field(default=None, repr=False)
    open_ports: set[int] = field(default_factory=set, repr=False)  # that took connections when last looked at

    @property
    def guest(self) -> Guest:
        return self.host.guest(self.instance_id)

    @property
    def is_ready(self) -> bool:
        return self.session.state is SessionState.READY

    @property
    def environment(self) -> dict[str, str]:
        """What every command of the session sees: the template's, the revision's and the session's variables."""
        return {**self.revision.inside.env, **self.revision.env, **self.session.env}

    @property
    def default_user(self) -> tuple[str, str]:
        """Name of the user that commands run as when they name none, and where they start."""
        return self.revision.inside.user, self.revision.inside.cwd

    def become(self, state: SessionState, reason: str = "") -> None:
        check_session_move(self.session.state, state)
        past = self.session.past.moved(datetime.now(UTC), state, reason)
        self.session = replace(self.session, state=state, reason=reason, past=past)

    @property
    def inside(self) -> Inside:
        """The instance as a hook meets it."""
        start = self.session.start or self.revision.start
        return Inside(self.instance_id, self.address, self.guest, self.revision, start, self.environment)

    @property
    def is_initialized(self) -> bool:
        if self.revision.hooks.initialize is None:
            return True
        run = self.session.past.run_of(INITIALIZE, self.instance_id)
        return run is not None and run.is_ok

    def enter(self) -> None:
        """A call of the API goes inside; until `leave` it keeps the session awake."""
        if not self.busy:
            self.busy_since = time.monotonic()
        self.busy += 1

    def leave(self) -> None:
        self.busy -= 1
        self.touch()

    def touch(self) -> None:
        self.touched = time.monotonic()


@dataclass(frozen=True)
class InstanceView:
    """The instance of a live session, for its owner and for operators."""

    instance_id: str
    address: str
    pid: int
    usage: Mapping[str, int | float]


def name_of(session: Session) -> tuple[str, str, str]:
    """What its caller names it by; of all that live no two are named alike."""
    return session.function_id, session.user_id, session.key


class LiveSessions:
    """By id, slug and name; with one lock for each session, so that its moves come one after the other."""

    def __init__(self) -> None:
        self._by_id: dict[str, Live] = {}
        self._by_slug: dict[str, Live] = {}
        self._by_name: dict[tuple[str, str, str], Live] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def get(self, session_id: str) -> Live | None:
        return self._by_id.get(session_id)

    def by_slug(self, slug: str) -> Live | None:
        return self._by_slug.get(slug)

    def named(self, name: tuple[str, str, str]) -> Live | None:
        return self._by_name.get(name)

    def all(self) -> list[Live]:
        return list(self._by_id.values())

    def add(self, live: Live) -> None:
        self._by_id[live.session.id] = live
        self._by_slug[live.session.slug] = live
        self._by_name[name_of(live.session)] = live

    def drop(self, session_id: str) -> Live | None:
        live = self._by_id.pop(session_id, None)
        if live is not None:
            self._by_slug.pop(live.session.slug, None)
            if self.named(name := name_of(live.session)) is live:
                del self._by_name[name]
        return live

    def lock(self, session_id: str) -> asyncio.Lock:
        return self._locks.setdefault(session_id, asyncio.Lock())
