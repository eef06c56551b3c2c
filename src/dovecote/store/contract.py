"""What a store of records promises to everyone above it."""

from __future__ import annotations

import builtins
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol, TypeVar

from dovecote.model.invocations import Invocation
from dovecote.model.records import (
    ApiKey,
    App,
    Chat,
    Function,
    PathLimit,
    Revision,
    Session,
    Snapshot,
    Template,
    Tenant,
    Turn,
    User,
    Volume,
)

Record = (
    Tenant
    | User
    | ApiKey
    | Function
    | Revision
    | Session
    | App
    | Chat
    | Turn
    | Invocation
    | Snapshot
    | Volume
    | PathLimit
    | Template
)
R = TypeVar("R", bound=Record)

MOST = 1000  # records in one answer


@dataclass(frozen=True)
class Before:
    """Asks for records whose time in a field is earlier; those without one are left out."""

    moment: datetime


@dataclass(frozen=True)
class Holding:
    """Of a field that is a document of texts by name: has all of these."""

    texts: Mapping[str, str]


class Records(Protocol[R]):
    """Records of one kind, in one scope. What another tenant has is, in a tenant's scope, not there.

    `equals` are fields with the value they must have; None is "has none", a set or list is "one of these",
    `Before(moment)` is an earlier time, `Holding(texts)` a document with these texts.
    Every method is one statement with a bounded time. Raises Failed (store_unreachable, store_busy) and StorageFailed
    (disk_full, store_read_only), which say nothing about the record, and Invalid for what cannot be stored.
    """

    async def get(self, id: str) -> R:
        """Raises NotFound."""

    async def find(self, **equals: Any) -> R | None:
        """The first in the order of `list`, or None."""

    async def insert(self, record: R) -> R:
        """Raises Conflict (exists) when a unique rule says so, Forbidden for another tenant's record."""

    async def swap(self, record: R) -> R:
        """Writes the record if nobody has since `record` was read; returns it as it now is, a generation later.

        Raises Conflict (stale) when somebody was first, Conflict (exists) when a unique rule says so, NotFound.
        """

    async def list(
        self, *, after: str | None = None, limit: int = 100, newest_first: bool = False, **equals: Any
    ) -> list[R]:
        """One page, oldest first. `after` is the id of the last record of the page before.

        What is inserted or changed meanwhile moves no record to another page. Raises Invalid (bad_cursor) when
        `after` names no record, or one that has been deleted.
        """

    async def newest(self, **equals: Any) -> R | None:
        """The one that `list` would come to last."""

    def each(self, **equals: Any) -> AsyncIterator[R]:
        """Every record, read page by page; unlike `list`, the caller may delete them on the way."""

    async def count(self, **equals: Any) -> int: ...

    async def delete(self, id: str) -> None:
        """May be repeated."""


class Scope(Protocol):
    """The records that one caller may see."""

    @property
    def tenants(self) -> Records[Tenant]: ...
    @property
    def users(self) -> Records[User]: ...
    @property
    def keys(self) -> Records[ApiKey]: ...
    @property
    def functions(self) -> Records[Function]: ...
    @property
    def revisions(self) -> Records[Revision]: ...
    @property
    def sessions(self) -> Records[Session]: ...
    @property
    def apps(self) -> Records[App]: ...
    @property
    def chats(self) -> Records[Chat]: ...
    @property
    def turns(self) -> Records[Turn]: ...
    @property
    def snapshots(self) -> Records[Snapshot]: ...
    @property
    def volumes(self) -> Records[Volume]: ...
    @property
    def path_limits(self) -> Records[PathLimit]: ...
    @property
    def templates(self) -> Records[Template]: ...
    @property
    def invocations(self) -> Records[Invocation]: ...

    def together(self) -> AbstractAsyncContextManager[Scope]:
        """All or nothing: what is written through the scope that it yields. Leaving with an error undoes it.

        Keep it short and wait for nothing else inside: SQLite has one writer, and the whole may take ten seconds.
        After an error inside, the rest of it fails too.
        """


class Store(Protocol):
    """Records of one installation. Drivers: SQLite, PostgreSQL; tests/contract/test_store.py says the rest."""

    def tenant(self, tenant_id: str) -> Scope:
        """What belongs to this tenant. Every statement carries `tenant_id = ?`."""

    def everyone(self) -> Scope:
        """Every tenant's. For reconcilers and authentication only."""

    async def invocations_due(
        self,
        now: datetime,
        *,
        is_final: bool,
        limit: int = 100,
        but_tenants: Collection[str] = (),
        but_functions: Collection[str] = (),
    ) -> builtins.list[Invocation]:
        """Those whose time to be looked at has come, of all tenants: of each the oldest, then of each the next.

        `is_final` asks for those whose destination is to be told, else for those that are to be made. Claim one by
        swapping it with a later `due_at`: of several who try, one succeeds.
        """

    async def forget_invocations(self, finished_before: datetime, *, limit: int = 100) -> int:
        """Deletes some that have nothing more to do. Answers how many."""

    async def open(self) -> None:
        """Once, before anything else. Raises Failed (store_unreachable) at once rather than on the first use."""

    async def migrate(self) -> None:
        """Brings the tables to this version. May be repeated, and by several processes at once."""

    async def close(self) -> None:
        """May be repeated."""
