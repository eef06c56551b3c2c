"""Every value that a record may have comes back as it was, from both databases."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from datetime import UTC, datetime, timedelta, timezone
from enum import Enum
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from dovecote.model.records import Chat
from dovecote.store import Store
from dovecote.store.tables import KINDS
from tests.contract.stores import NOW, A, place, store
from tests.servers import postgresql_server

__all__ = ["place", "postgresql_server", "store"]  # fixtures

pytestmark = pytest.mark.anyio

TEXT = some.text(some.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
DOCUMENT_TEXT = some.text(some.characters(), max_size=20)  # NUL and half surrogates too
NUMBERS = some.integers(-(1 << 63), (1 << 63) - 2)
ZONES = some.sampled_from([UTC, timezone(timedelta(hours=8)), timezone(timedelta(hours=-5, minutes=-30))])
DOCUMENTS = some.recursive(
    some.none()
    | some.booleans()
    | some.integers()
    | some.floats(allow_nan=False, allow_infinity=False)
    | DOCUMENT_TEXT,
    lambda inner: some.lists(inner, max_size=4) | some.dictionaries(DOCUMENT_TEXT, inner, max_size=4),
    max_leaves=12,
)


def values_of(hint: Any, *, in_document: bool = False) -> some.SearchStrategy[Any]:
    """Values of the kind that an annotation of a field names."""
    args = get_args(hint)
    origin = get_origin(hint)
    if origin is UnionType:
        return some.one_of([values_of(arg, in_document=in_document) for arg in args])
    if origin is dict:
        return some.dictionaries(DOCUMENT_TEXT, values_of(args[1], in_document=True), max_size=4)
    if origin in (list, tuple):
        return some.lists(values_of(args[0], in_document=True), max_size=4).map(origin)
    if is_dataclass(hint) and isinstance(hint, type):
        return instances_of(hint, in_document=True)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return some.sampled_from(hint)
    simple: dict[Any, some.SearchStrategy[Any]] = {
        str: DOCUMENT_TEXT if in_document else TEXT,
        int: some.integers() if in_document else NUMBERS,
        bool: some.booleans(),
        float: some.floats(allow_nan=False, allow_infinity=False),
        NoneType: some.none(),
        datetime: some.datetimes(datetime(1900, 1, 1), datetime(9000, 1, 1), timezones=ZONES),
        timedelta: some.timedeltas(timedelta(0), timedelta(days=10_000)),
        Any: DOCUMENTS,
    }
    return simple[hint]


def instances_of(kind: type[Any], *, in_document: bool = False) -> some.SearchStrategy[Any]:
    hints = get_type_hints(kind)
    return some.builds(kind, **{f.name: values_of(hints[f.name], in_document=in_document) for f in fields(kind)})


def two_records(kind: Any) -> some.SearchStrategy[tuple[Any, Any, Any]]:
    tenant = {} if kind.table.name == "tenants" else {"tenant_id": A}
    one = instances_of(kind.record).map(lambda record: replace(record, id="x_1", **tenant))
    return some.tuples(some.just(kind), one, one)


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(drawn=some.sampled_from(KINDS).flatmap(two_records))
async def test_every_record_comes_back_as_it_was(store: Store, drawn: tuple[Any, Any, Any]) -> None:
    kind, first, second = drawn
    everyone = store.everyone()
    kept = getattr(everyone, kind.table.name)
    if kind.table.name == "turns":
        await everyone.chats.delete("cha_1")
        await everyone.chats.insert(Chat("cha_1", A, "usr_1", "ses_1", "", NOW))
        first, second = replace(first, chat_id="cha_1"), replace(second, chat_id="cha_1")
    try:
        await kept.insert(first)
        assert await kept.get("x_1") == first
        if not kind.is_fixed:
            second = replace(second, generation=first.generation)
            assert await kept.swap(second) == replace(second, generation=first.generation + 1) == await kept.get("x_1")
    finally:
        await kept.delete("x_1")
