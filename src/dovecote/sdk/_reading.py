"""Shapes from JSON, by the types of their fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import datetime
from functools import cache
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

Shape = TypeVar("Shape")


def read(kind: type[Shape], document: Mapping[str, Any]) -> Shape:
    """A shape from JSON. Fields that a newer server added are passed over."""
    types = _types(cast(Any, kind))  # mypy takes no type variable for hashable
    return kind(**{name: _value(types[name], value) for name, value in document.items() if name in types})


@cache
def _types(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {each.name: hints[each.name] for each in fields(kind)}


def _value(hint: Any, value: Any) -> Any:
    """What a field of this type holds: shapes, times, lists of them, or None; all else as JSON has it."""
    if value is None:
        return None
    if hint is datetime:
        return datetime.fromisoformat(value)
    if is_dataclass(hint):
        return read(cast(type[Any], hint), value)
    if get_origin(hint) is list:
        return [_value(get_args(hint)[0], item) for item in value]
    if type(None) in get_args(hint):
        return _value(next(each for each in get_args(hint) if each is not type(None)), value)
    return value
