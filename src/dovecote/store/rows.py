"""Records as rows: what a dataclass looks like in a table and in JSON, derived once from its fields."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import sqlalchemy as sa

from dovecote.errors import Invalid

Convert = Callable[[Any], Any]


@dataclass(frozen=True)
class Shape:
    """How one field is stored: its column, and the way there and back. None is stored as NULL and never converted."""

    column: sa.types.TypeEngine[Any]
    is_optional: bool
    write: Convert
    read: Convert | None  # None where what the database gives is the value

    @property
    def is_document(self) -> bool:
        return isinstance(self.column, sa.JSON)


def shapes(record: type[Any]) -> dict[str, Shape]:
    hints = get_type_hints(record)
    return {field.name: _shape(hints[field.name]) for field in fields(record)}


def to_row(shapes: Mapping[str, Shape], record: Any) -> dict[str, Any]:
    """Raises Invalid for a value that not every database can hold."""
    row = {}
    for name, shape in shapes.items():
        value = getattr(record, name)
        row[name] = None if value is None else shape.write(value)
    return row


def row_reader(record: type[Any], shapes: Mapping[str, Shape]) -> Callable[[Any], Any]:
    """A function from a row, its columns in the order of the fields, to the record."""
    converted = [(n, shape.read) for n, shape in enumerate(shapes.values()) if shape.read]

    def read(row: Any) -> Any:
        values = [*row]
        for n, convert in converted:
            if values[n] is not None:
                values[n] = convert(values[n])
        return record(*values)

    return read


def render_json(value: Any) -> str:
    """Text of a document. Keeps what Python strings may hold, half surrogates included. Raises Invalid."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise Invalid(f"not a JSON document: {error}", code="not_storable") from error
    return text


def _shape(hint: Any) -> Shape:
    inner, is_optional = _without_none(hint)
    if inner is str:
        return Shape(sa.Text(), is_optional, _text, None)
    if inner is bool:
        return Shape(sa.Boolean(), is_optional, bool, bool)
    if inner is int:
        return Shape(sa.BigInteger(), is_optional, _integer, None)
    if inner is datetime:
        return Shape(sa.DateTime(timezone=True), is_optional, _moment, _utc)
    if inner is timedelta:
        return Shape(sa.Double(), is_optional, timedelta.total_seconds, _seconds)
    if isinstance(inner, type) and issubclass(inner, Enum):
        return Shape(sa.Text(), is_optional, _enum_value, inner)
    return Shape(sa.JSON(none_as_null=True), is_optional, _encode, _decoder(inner))


def _without_none(hint: Any) -> tuple[Any, bool]:
    if get_origin(hint) not in (UnionType, Union):
        return hint, False
    kinds = [kind for kind in get_args(hint) if kind is not NoneType]
    assert len(kinds) == 1, f"a field of one kind or None, not {hint}"
    return kinds[0], True


def _text(value: str) -> str:
    if "\0" in value:
        raise Invalid("text with a NUL character cannot be stored", code="not_storable")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise Invalid("text with half a surrogate pair cannot be stored", code="not_storable") from error
    return value


def _integer(value: int) -> int:
    if not -(1 << 63) <= value < 1 << 63:
        raise Invalid(f"{value} is too large to be stored", code="not_storable")
    return value


def _moment(value: datetime) -> datetime:
    if value.tzinfo is None:
        raise Invalid("a time without its zone cannot be stored", code="not_storable", hint="use datetime.now(UTC)")
    return value.astimezone(UTC)


def _utc(value: datetime) -> datetime:
    return value.replace(tzinfo=UTC)  # SQLite gives it without a zone, PostgreSQL with UTC


def _seconds(value: float) -> timedelta:
    return timedelta(seconds=value)


def _enum_value(value: Enum) -> Any:
    return value.value


def _encode(value: Any) -> Any:
    if is_dataclass(value):
        return {field.name: _encode(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, datetime):
        return _moment(value).isoformat()
    if isinstance(value, Mapping):
        return {key: _encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(item) for item in value]
    return value


def _decoder(hint: Any) -> Convert | None:
    """From JSON to what the hint says; None where JSON is that already."""
    inner, _ = _without_none(hint)
    if is_dataclass(inner) and isinstance(inner, type):
        return _dataclass_decoder(inner)
    if isinstance(inner, type) and issubclass(inner, Enum):
        return inner
    if inner is timedelta:
        return _seconds
    if inner is datetime:
        return datetime.fromisoformat
    origin, args = get_origin(inner), get_args(inner)
    item = _decoder(args[0]) if origin in (tuple, list) else _decoder(args[1]) if origin is dict else None
    if origin is tuple:
        assert args[1:] == (...,), "a tuple of any length"
        return lambda value: tuple(item(each) for each in value) if item else tuple(value)
    if origin is list and item:
        return lambda value: [item(each) for each in value]
    if origin is dict and item:
        return lambda value: {key: item(each) for key, each in value.items()}
    assert origin in (list, dict) or inner in (Any, str, int, float, bool), f"no rule to store {hint}"
    return None


def _dataclass_decoder(kind: type[Any]) -> Convert:
    hints = get_type_hints(kind)
    decoders = {field.name: _decoder(hints[field.name]) for field in fields(kind)}

    def decode(value: Any) -> Any:
        # A field that is not in the document takes its default, one that is no longer known is left out:
        # two versions of Dovecote read each other's records during an upgrade.
        known = {}
        for name, convert in decoders.items():
            if name in value:
                item = value[name]
                known[name] = convert(item) if convert and item is not None else item
        return kind(**known)

    return decode
