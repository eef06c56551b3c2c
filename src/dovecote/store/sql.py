"""Records in SQL. `_Records._scoped` is the one place where a tenant's scope happens."""

from __future__ import annotations

import builtins
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime
from functools import cache, cached_property
from typing import Any, Generic

import sqlalchemy as sa

from dovecote.errors import Conflict, Forbidden, Invalid, NotFound
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
from dovecote.store import tables
from dovecote.store.contract import MOST, Before, Holding, R, Scope
from dovecote.store.databases import MIGRATION_TIMEOUT, Database, Run
from dovecote.store.failures import in_our_words
from dovecote.store.outcome import Outcome
from dovecote.store.rows import to_row
from dovecote.store.tables import Kind


class SQLStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    def tenant(self, tenant_id: str) -> Scope:
        assert tenant_id, "a tenant's id; everyone() is for all"
        return _Scope(self._database, tenant_id, self._database.run)

    def everyone(self) -> Scope:
        return _Scope(self._database, None, self._database.run)

    async def open(self) -> None:
        await self._database.open()

    async def close(self) -> None:
        await self._database.close()

    async def migrate(self) -> None:
        from dovecote.store.migrations import upgrade  # Alembic is needed here only, and slow to import

        with in_our_words("database"):
            async with self._database.transaction(MIGRATION_TIMEOUT) as (_, connection):
                await self._database.lock_for_migration(connection)
                await connection.run(upgrade)

    async def invocations_due(
        self,
        now: datetime,
        *,
        is_final: bool,
        limit: int = 100,
        but_tenants: Collection[str] = (),
        but_functions: Collection[str] = (),
    ) -> list[Invocation]:
        kind = tables.INVOCATIONS
        values = {
            "now": kind.shapes["due_at"].write(now),
            "but_tenants": list(but_tenants),
            "but_functions": list(but_functions),
            "most": _bounded(limit),
        }
        with in_our_words(kind.noun):
            return [kind.read(row) for row in (await self._database.run(_due(is_final), values, writes=False)).rows]

    async def forget_invocations(self, finished_before: datetime, *, limit: int = 100) -> int:
        kind, c = tables.INVOCATIONS, tables.INVOCATIONS.table.c
        is_old = sa.and_(c.finished_at < kind.shapes["finished_at"].write(finished_before), c.due_at.is_(None))
        some = sa.select(c.id).where(is_old).limit(_bounded(limit))
        with in_our_words(kind.noun):
            return (await self._database.run(sa.delete(kind.table).where(c.id.in_(some)), writes=True)).changed


class _Scope:
    def __init__(self, database: Database, tenant_id: str | None, run: Run) -> None:
        self._database = database
        self._tenant_id = tenant_id
        self._run = run

    def _of(self, kind: Kind[R]) -> _Records[R]:
        return _Records(kind, self._tenant_id, self._run)

    @cached_property
    def tenants(self) -> _Records[Tenant]:
        return self._of(tables.TENANTS)

    @cached_property
    def users(self) -> _Records[User]:
        return self._of(tables.USERS)

    @cached_property
    def keys(self) -> _Records[ApiKey]:
        return self._of(tables.KEYS)

    @cached_property
    def functions(self) -> _Records[Function]:
        return self._of(tables.FUNCTIONS)

    @cached_property
    def revisions(self) -> _Records[Revision]:
        return self._of(tables.REVISIONS)

    @cached_property
    def sessions(self) -> _Records[Session]:
        return self._of(tables.SESSIONS)

    @cached_property
    def apps(self) -> _Records[App]:
        return self._of(tables.APPS)

    @cached_property
    def chats(self) -> _Records[Chat]:
        return self._of(tables.CHATS)

    @cached_property
    def turns(self) -> _Records[Turn]:
        return self._of(tables.TURNS)

    @cached_property
    def snapshots(self) -> _Records[Snapshot]:
        return self._of(tables.SNAPSHOTS)

    @cached_property
    def volumes(self) -> _Records[Volume]:
        return self._of(tables.VOLUMES)

    @cached_property
    def path_limits(self) -> _Records[PathLimit]:
        return self._of(tables.PATH_LIMITS)

    @cached_property
    def templates(self) -> _Records[Template]:
        return self._of(tables.TEMPLATES)

    @cached_property
    def invocations(self) -> _Records[Invocation]:
        return self._of(tables.INVOCATIONS)

    @asynccontextmanager
    async def together(self) -> AsyncIterator[Scope]:
        assert self._run == self._database.run, "together already: use the scope at hand"
        async with self._database.transaction() as (run, _):
            yield _Scope(self._database, self._tenant_id, run)


class _Records(Generic[R]):
    def __init__(self, kind: Kind[R], tenant_id: str | None, run: Run) -> None:
        self._kind = kind
        self._tenant_id = tenant_id
        self._run = run

    async def get(self, id: str) -> R:
        found = await self.find(id=id)
        if found is None:
            code = f"no_such_{self._kind.noun.replace(' ', '_')}"
            raise NotFound(f"no {self._kind.noun} {id[:60]!r}", code=code, hint="list them to see which there are")
        return found

    async def find(self, **equals: Any) -> R | None:
        page = await self._page(1, None, equals)
        return page[0] if page else None

    async def list(
        self, *, after: str | None = None, limit: int = 100, newest_first: bool = False, **equals: Any
    ) -> list[R]:
        last = None
        if after is not None:
            last = await self.find(id=after)
            if last is None:
                raise Invalid(
                    f"no {self._kind.noun} {after[:60]!r} to list after", code="bad_cursor", hint="list from the start"
                )
        return await self._page(_bounded(limit), last, equals, newest_first)

    async def newest(self, **equals: Any) -> R | None:
        order = [column.desc() for column in self._kind.order]
        statement = self._where(sa.select(self._kind.table), equals).order_by(*order).limit(1)
        rows = (await self._do(statement)).rows
        return self._kind.read(rows[0]) if rows else None

    async def each(self, **equals: Any) -> AsyncIterator[R]:
        last = None
        while page := await self._page(MOST, last, equals):
            for record in page:
                yield record
            if len(page) < MOST:
                return
            last = page[-1]

    async def count(self, **equals: Any) -> int:
        statement = self._where(sa.select(sa.func.count()).select_from(self._kind.table), equals)
        return int((await self._do(statement)).rows[0][0])

    async def insert(self, record: R) -> R:
        self._check_owner(record)
        await self._do(self._kind.insert, to_row(self._kind.shapes, record), writes=True)
        return record

    async def swap(self, record: R) -> R:
        self._check_owner(record)
        kind = self._kind
        assert not kind.is_fixed, f"a {kind.noun} never changes"
        row = to_row(kind.shapes, record)
        its_owner = row.pop(kind.owner.name)
        row |= {"its_owner": its_owner, "its_id": row.pop("id", its_owner), "its_generation": record.generation}
        row["generation"] = record.generation + 1
        if not (await self._do(kind.swap, row, writes=True)).changed:
            await self.get(record.id)  # NotFound, or there in another generation
            raise Conflict(
                f"the {kind.noun} has changed since it was read", code="stale", hint="read it again and repeat"
            )
        return replace(record, generation=record.generation + 1)

    async def delete(self, id: str) -> None:
        await self._do(self._where(sa.delete(self._kind.table), {"id": id}), writes=True)

    async def _page(
        self, limit: int, last: R | None, equals: dict[str, Any], newest_first: bool = False
    ) -> builtins.list[R]:
        order = self._kind.order
        by = [column.desc() for column in order] if newest_first else order
        statement = self._where(sa.select(self._kind.table), equals).order_by(*by).limit(limit)
        if last is not None:
            position = sa.tuple_(
                *[self._kind.shapes[column.name].write(getattr(last, column.name)) for column in order]
            )
            here = sa.tuple_(*order)
            statement = statement.where(here < position if newest_first else here > position)
        return [self._kind.read(row) for row in (await self._do(statement)).rows]

    def _where(self, statement: Any, equals: dict[str, Any]) -> Any:
        statement = self._scoped(statement)
        for name, value in equals.items():
            shape = self._kind.shapes.get(name)
            if shape is None or shape.is_document is not isinstance(value, Holding):
                raise Invalid(
                    f"records of kind {self._kind.noun} cannot be looked up by {name!r}", code="no_such_field"
                )
            column = self._kind.table.c[name]
            if value is None:
                statement = statement.where(column.is_(None))
            elif isinstance(value, Holding):
                # A key that a path of SQLite cannot hold is refused where it is set: see parse_metadata.
                statement = statement.where(*(column[key].as_string() == text for key, text in value.texts.items()))
            elif isinstance(value, Before):
                statement = statement.where(column < shape.write(value.moment))
            elif isinstance(value, (frozenset, set, list, tuple)):
                statement = statement.where(column.in_([shape.write(each) for each in value]))
            else:
                statement = statement.where(column == shape.write(value))
        return statement

    def _scoped(self, statement: Any) -> Any:
        return statement if self._tenant_id is None else statement.where(self._kind.owner == self._tenant_id)

    def _check_owner(self, record: R) -> None:
        if self._tenant_id is not None and getattr(record, self._kind.owner.name) != self._tenant_id:
            raise Forbidden(f"this {self._kind.noun} belongs to another tenant", code="other_tenant")

    async def _do(self, statement: Any, values: dict[str, Any] | None = None, *, writes: bool = False) -> Outcome:
        with in_our_words(self._kind.noun):
            return await self._run(statement, values, writes=writes)


@cache
def _due(is_final: bool) -> sa.Select[Any]:
    """Made once: it is asked several times a second, and making it takes longer than its answer."""
    kind, c = tables.INVOCATIONS, tables.INVOCATIONS.table.c
    is_due = sa.and_(
        c.due_at.is_not(None),  # as the index has it
        c.due_at <= sa.bindparam("now", type_=c.due_at.type),
        c.finished_at.is_not(None) if is_final else c.finished_at.is_(None),
        c.tenant_id.not_in(sa.bindparam("but_tenants", expanding=True)),
        c.function_id.not_in(sa.bindparam("but_functions", expanding=True)),
    )
    turn = sa.func.row_number().over(partition_by=c.tenant_id, order_by=(c.due_at, c.id)).label("turn")
    lines = sa.select(c.id, c.due_at, turn).where(is_due).subquery("lines")
    order = (lines.c.turn, lines.c.due_at, lines.c.id)
    most = sa.bindparam("most", type_=sa.Integer)
    first = sa.select(lines.c.id, lines.c.turn).order_by(*order).limit(most).subquery("first")
    return sa.select(kind.table).join(first, c.id == first.c.id).order_by(first.c.turn, c.due_at, c.id)


def _bounded(limit: int) -> int:
    if not 1 <= limit <= MOST:
        raise Invalid(f"limit must be from 1 to {MOST}, not {limit}")
    return limit
